// `sensorium serve` as a process of its own: how it starts, refuses and ends.
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/trace.h"
#include "sensorium/v1/sensorium.grpc.pb.h"
#include "server/remote_client.h"
#include "tests/server/serve_process.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kDemo = {"--config", SENSORIUM_SOURCE_DIR "/config/demo.yaml",
                                        "--threads", "1"};

std::vector<std::string> Demo(std::vector<std::string> more) {
  more.insert(more.begin(), kDemo.begin(), kDemo.end());
  return more;
}

TEST(ServeTest, SigtermDrainsTheServerWhichExitsWithZero) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0"}));
    const std::string port = server.Port();
    ASSERT_NE(port, "") << server.Log();
    EXPECT_TRUE(RemoteClient("127.0.0.1:" + port).ListModels().ok());
    server.Signal(signal);
    EXPECT_EQ(server.ExitCode(), 0) << server.Log();
    EXPECT_THAT(server.Log(), AllOf(HasSubstr("draining"), HasSubstr("stopped")));
  }
}

TEST(ServeTest, ASecondServerOnThePortSaysSoInOneLineBeforeItLoads) {
  ServeProcess first(Demo({"--listen", "127.0.0.1:0"}));
  const std::string port = first.Port();
  ASSERT_NE(port, "") << first.Log();
  ServeProcess second(Demo({"--listen", "127.0.0.1:" + port}));
  EXPECT_EQ(second.ExitCode(), 1);
  EXPECT_EQ(second.Log(),
            "sensorium: cannot listen on 127.0.0.1:" + port + ": the port is in use\n");
}

TEST(ServeTest, ASignalWhileModelsLoadEndsTheLoading) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0"}), signal);
    EXPECT_EQ(server.ExitCode(), 128 + signal) << server.Log();
    EXPECT_THAT(server.Log(),
                AllOf(HasSubstr("while loading: stopped"), Not(HasSubstr("serving"))));
  }
}

// All that two clients had at once, from a server that learns its prices as it goes.
TEST(ServeTest, ItsTraceNamesEveryRequestAndReplaysDecisionByDecision) {
  const std::string trace =
      ::testing::TempDir() + "/serve_test_" + std::to_string(getpid()) + ".trace";
  std::vector<std::string> ids;
  {
    ServeProcess server(Demo({"--listen", "127.0.0.1:0", "--trace", trace}));
    const std::string port = server.Port();
    ASSERT_NE(port, "") << server.Log();
    std::mutex mu;
    std::vector<std::thread> clients;
    for (int c = 0; c < 2; ++c) {
      clients.emplace_back([&] {
        RemoteClient client("127.0.0.1:" + port);
        v1::GenerateRequest request;
        request.set_model("molmo-mini");
        request.set_max_tokens(12);
        request.set_n(2);
        v1::Message& message = *request.add_messages();
        message.set_role(v1::USER);
        message.add_parts()->set_text("Describe this image.");
        for (int i = 0; i < 4; ++i) {
          EXPECT_TRUE(client
                          .Generate(request,
                                    [&](const v1::GenerateResponse& response) {
                                      if (response.has_started()) {
                                        std::lock_guard lock(mu);
                                        ids.push_back(response.started().request_id());
                                      }
                                      return true;
                                    })
                          .ok());
        }
      });
    }
    for (std::thread& client : clients) client.join();
    server.Signal(SIGTERM);
    ASSERT_EQ(server.ExitCode(), 0) << server.Log();
  }
  std::ostringstream lines;
  lines << std::ifstream(trace).rdbuf();
  ASSERT_EQ(ids.size(), 8u);
  for (const std::string& id : ids) {
    EXPECT_THAT(lines.str(), HasSubstr("\"request\":\"" + id + "\"")) << id;
  }
  FILE* replay =
      popen((std::string(SENSORIUM_BINARY) + " bench replay " + trace + " 2>&1").c_str(), "r");
  ASSERT_NE(replay, nullptr);
  std::string told(4096, '\0');
  told.resize(fread(told.data(), 1, told.size(), replay));
  EXPECT_EQ(pclose(replay), 0);
  EXPECT_THAT(told, AllOf(HasSubstr("; 8 jobs, 8 admissions, 0 preemptions, 0 refusals\n"),
                          HasSubstr("every decision was reproduced\n")));
  std::filesystem::remove(trace);
}

// From the metadata of a call to the weight that the scheduler charges it by.
TEST(ServeTest, TheTenantThatACallNamesHasItsConfiguredWeightAndLimits) {
  const std::string base = ::testing::TempDir() + "/serve_test_" + std::to_string(getpid());
  const std::string config = base + ".yaml", trace = base + ".trace";
  std::ofstream(config) << "models:\n  - name: molmo-mini\n    path: "
                        << SENSORIUM_SOURCE_DIR "/config/models/molmo-mini\n"
                        << "tenants:\n  - {name: gold, weight: 3}\n  - {name: silver, weight: 0.5, "
                        << "max_waiting: 5, max_running: 2, max_blocks: 40}\n";
  std::map<std::string, std::string> tenant_of;  // by request id
  {
    ServeProcess server({"--config", config, "--listen", "127.0.0.1:0", "--trace", trace});
    const std::string port = server.Port();
    ASSERT_NE(port, "") << server.Log();
    const auto stub = v1::Inference::NewStub(
        grpc::CreateChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials()));
    for (const std::string tenant : {"gold", "stranger", "silver", "gold", ""}) {
      grpc::ClientContext context;
      if (!tenant.empty()) context.AddMetadata("x-tenant", tenant);
      v1::GenerateRequest request;
      request.set_max_tokens(2);
      v1::Message& message = *request.add_messages();
      message.set_role(v1::USER);
      message.add_parts()->set_text("hello");
      const auto stream = stub->Generate(&context, request);
      v1::GenerateResponse response;
      while (stream->Read(&response)) {
        if (response.has_started()) tenant_of[response.started().request_id()] = tenant;
      }
      ASSERT_TRUE(stream->Finish().ok());
    }
    server.Signal(SIGTERM);
    ASSERT_EQ(server.ExitCode(), 0) << server.Log();
  }
  const auto reader = TraceReader::Open(trace);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const std::vector<TenantOptions>& tenants = (*reader)->header().options.tenants;
  const std::map<std::string, int32_t> weights = {
      {"gold", 3000}, {"silver", 500}, {"stranger", 1000}, {"", 1000}};
  int arrivals = 0;
  std::map<std::string, int32_t> index_of;
  while (true) {
    const auto event = (*reader)->Next();
    ASSERT_TRUE(event.ok()) << event.status();
    if (*event == nullptr) break;
    if ((*event)->kind != TraceEvent::Kind::kAdd) continue;
    ++arrivals;
    const std::string& tenant = tenant_of.at((*event)->request);
    const int32_t index = (*event)->spec.tenant;
    EXPECT_EQ(tenants[index].weight, weights.at(tenant)) << tenant;
    const TenantOptions limits =
        tenant == "silver" ? TenantOptions{.max_waiting = 5, .max_running = 2, .max_blocks = 40}
                           : TenantOptions{};
    EXPECT_EQ(tenants[index].max_waiting, limits.max_waiting) << tenant;
    EXPECT_EQ(tenants[index].max_running, limits.max_running) << tenant;
    EXPECT_EQ(tenants[index].max_blocks, limits.max_blocks) << tenant;
    EXPECT_EQ(index_of.emplace(tenant, index).first->second, index) << tenant;
  }
  EXPECT_EQ(arrivals, 5);
  std::set<int32_t> told_apart;
  for (const auto& [tenant, index] : index_of) told_apart.insert(index);
  EXPECT_EQ(told_apart.size(), 4u);
  std::filesystem::remove(config);
  std::filesystem::remove(trace);
}

TEST(ServeTest, WhatIsNoAddressToListenOnIsWrongUsage) {
  for (const char* address : {"127.0.0.1:99999", "nonsense"}) {
    ServeProcess server(Demo({"--listen", address}));
    EXPECT_EQ(server.ExitCode(), 2);
    EXPECT_THAT(server.Log(), HasSubstr(std::string(address) + "' is not HOST:PORT"));
  }
}

TEST(ServeTest, TheCpuLevelIsTheOneAskedFor) {
  ServeProcess portable(Demo({"--listen", "127.0.0.1:0", "--cpu-level", "portable"}));
  ASSERT_NE(portable.Port(), "");
  EXPECT_THAT(portable.Log(), HasSubstr("device: cpu portable"));
  ServeProcess unknown(Demo({"--listen", "127.0.0.1:0", "--cpu-level", "mmx"}));
  EXPECT_EQ(unknown.ExitCode(), 1);
  EXPECT_THAT(unknown.Log(), HasSubstr("no cpu level is named \"mmx\"; there are: auto, portable"));
}

}  // namespace
}  // namespace sensorium
