// `sensorium serve` as a process of its own: how it starts, refuses and ends.
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
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
