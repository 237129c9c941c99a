// `sensorium serve` on the emulated CUDA device, from outside: a device that breaks under a
// request, and one that is full at start. Executed by emulation.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "server/remote_client.h"
#include "tests/server/serve_process.h"

namespace sensorium {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CudaServeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    base_ = ::testing::TempDir() + "/cuda_" + name + "_" + std::to_string(getpid());
    Configure("cuda");
  }
  void Configure(const std::string& device) {
    std::ofstream(Config()) << "models: [{path: " SENSORIUM_MODELS
                               "/molmo-mini}]\n"
                               "server: {listen: '127.0.0.1:0', drain_delay_seconds: 3}\n"
                               "device: {kind: "
                            << device
                            << "}\n"
                               "engine: {kv_cache_mib: 16, image_cache_mib: 1, max_batch_tokens: 16}\n";
  }
  void TearDown() override {
    std::filesystem::remove(Config());
    std::filesystem::remove(BreakFile());
  }
  std::string Config() const { return base_ + ".yaml"; }
  std::string BreakFile() const { return base_ + ".break"; }
  ServeProcess Start(int memory_mib) const {
    return ServeProcess({"--config", Config()}, 0,
                        {"CUDA_EMU_MEMORY_MIB=" + std::to_string(memory_mib),
                         "CUDA_EMU_BREAK_FILE=" + BreakFile()});
  }

 private:
  std::string base_;
};

v1::GenerateRequest Ask() {
  v1::GenerateRequest request;
  request.set_max_tokens(2);
  v1::Message& message = *request.add_messages();
  message.set_role(v1::USER);
  message.add_parts()->set_text("What color is the star?");
  return request;
}

TEST_F(CudaServeTest, ABrokenDeviceFailsTheRequestFlipsHealthAndEndsTheProcess) {
  ServeProcess server = Start(/*memory_mib=*/400);
  const std::string port = server.Port();
  ASSERT_NE(port, "") << server.Log();
  EXPECT_THAT(server.Log(), HasSubstr("device: cuda: emulated device (8.0)"));
  RemoteClient client("127.0.0.1:" + port);
  const auto ignore = [](const v1::GenerateResponse&) { return true; };
  EXPECT_TRUE(client.Generate(Ask(), ignore).ok());
  const auto health_stub = grpc::health::v1::Health::NewStub(OpenChannel("127.0.0.1:" + port));
  const auto health = [&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status =
        health_stub->Check(&context, grpc::health::v1::HealthCheckRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  };
  EXPECT_EQ(health(), grpc::health::v1::HealthCheckResponse::SERVING);

  std::ofstream(BreakFile()) << "now";
  const absl::Status failed = client.Generate(Ask(), ignore);
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  EXPECT_THAT(std::string(failed.message()), HasSubstr("the device failed: Wait"));
  // While the balancer still asks, and then no more.
  auto now = health();
  for (int i = 0; i < 20 && now == grpc::health::v1::HealthCheckResponse::SERVING; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    now = health();
  }
  EXPECT_EQ(now, grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(client.Generate(Ask(), ignore).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.ExitCode(), 1) << server.Log();
  EXPECT_THAT(server.Log(),
              AllOf(HasSubstr("the device failed: Wait"),
                    HasSubstr("unspecified launch failure (cudaErrorLaunchFailure)"),
                    HasSubstr("an op queued before it failed"), HasSubstr("PagedAttention"),
                    HasSubstr("sensorium: the device failed; see the log above")));
}

TEST_F(CudaServeTest, AutoTakesTheGpu) {
  Configure("auto");
  ServeProcess server = Start(/*memory_mib=*/400);
  ASSERT_NE(server.Port(), "") << server.Log();
  EXPECT_THAT(server.Log(), AllOf(HasSubstr("device: cuda: emulated device (8.0)"),
                                  Not(HasSubstr("no GPU is used"))));
}

// A full GPU is somebody's mistake: a server a hundred times as slow is no answer to it.
TEST_F(CudaServeTest, AutoDoesNotTakeTheCpuInsteadOfAFullGpu) {
  Configure("auto");
  for (int memory_mib : {0, 60}) {
    ServeProcess server = Start(memory_mib);
    EXPECT_EQ(server.ExitCode(), 1) << server.Log();
    EXPECT_THAT(server.Log(), AllOf(HasSubstr("CUDA device"), Not(HasSubstr("device: cpu"))));
  }
}

// Not enough for the weights, not enough for the KV blocks behind them: the plan against what is
// free, in one line.
TEST_F(CudaServeTest, AFullDeviceAtStartPrintsThePlanOfMemory) {
  for (const auto& [memory_mib, wanted] :
       {std::pair{126, "wanted for weights; taken: weights "},
        std::pair{145, "16.0 MiB wanted for KV blocks and activations; taken: weights "}}) {
    ServeProcess server = Start(memory_mib);
    EXPECT_EQ(server.ExitCode(), 1) << server.Log();
    EXPECT_THAT(server.Log(), AllOf(HasSubstr(wanted), HasSubstr("workspace 112.0 MiB, free "),
                                    HasSubstr(" MiB taken at start"), HasSubstr("sensorium: the "),
                                    Not(HasSubstr("terminate"))));
  }
}

}  // namespace
}  // namespace sensorium
