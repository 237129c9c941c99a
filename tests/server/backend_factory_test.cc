#include "server/backend_factory.h"

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST(BackendFactoryTest, OpensTheCpuByName) {
  const auto backend = OpenBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->description(), StartsWith("cpu "));
}

TEST(BackendFactoryTest, NamesWhatThereIsForWhatThereIsNot) {
  const auto device = OpenBackend({.device = "tpu"}).status();
  EXPECT_EQ(device.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(device.message(), "device is 'tpu'; there are cpu, cuda and auto");
  const auto dtype = OpenBackend({.dtype = "int3"}).status();
  EXPECT_EQ(dtype.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(dtype.message()), HasSubstr("'int3'"));
  const auto determinism = OpenBackend({.determinism = "lucky"}).status();
  EXPECT_EQ(determinism.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(determinism.message(), "determinism is 'lucky'; there are strict and fast");
}

// On a machine without a GPU one clear line; on one with it, it opens and says which.
TEST(BackendFactoryTest, CudaOpensOrSaysInOneLineWhyNot) {
  const auto backend = OpenBackend({.device = "cuda"});
  if (backend.ok()) {
    EXPECT_THAT((*backend)->description(), StartsWith("cuda: "));
    return;
  }
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(backend.status().message());
  EXPECT_THAT(message, Not(HasSubstr("\n")));
#ifdef SENSORIUM_BUILT_WITH_CUDA
  EXPECT_THAT(message, HasSubstr("CUDA device"));
#else
  EXPECT_EQ(message, "device is 'cuda'; this build has the CPU backend only");
#endif
}

TEST(BackendFactoryTest, AutoAlwaysFindsADevice) {
  const auto backend = OpenBackend({.device = "auto", .threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const bool has_cuda = OpenBackend({.device = "cuda"}).ok();
  EXPECT_THAT((*backend)->description(), StartsWith(has_cuda ? "cuda: " : "cpu "));
}

}  // namespace
}  // namespace sensorium
