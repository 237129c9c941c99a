#include "server/backend_factory.h"

#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cpu/cpu_level.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(BackendFactoryTest, EveryCpuLevelOfThisMachineCanBeAskedFor) {
  for (const CpuLevel level : AvailableCpuLevels()) {
    const std::string name(Name(level));
    const auto backend = OpenBackend({.device = "cpu", .cpu_level = name, .threads = 1});
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT((*backend)->description(), HasSubstr("cpu " + name + ","));
  }
  const auto best = OpenBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_THAT((*best)->description(), HasSubstr(std::string(Name(DetectCpuLevel()))));
}

TEST(BackendFactoryTest, ACpuLevelThatIsNotThereIsNamedWithThoseThatAre) {
  const auto unknown = OpenBackend({.device = "cpu", .cpu_level = "mmx"});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("there are: auto, portable"));
  if (DetectCpuLevel() == CpuLevel::kAvx512Bf16) GTEST_SKIP() << "this machine lacks no level";
  const auto lacking = OpenBackend({.device = "cpu", .cpu_level = "avx512_bf16"});
  EXPECT_EQ(lacking.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(lacking.status().message()), HasSubstr("this machine lacks"));
}

TEST(BackendFactoryTest, NamesWhatThereIsForWhatThereIsNot) {
  const auto device = OpenBackend({.device = "tpu"}).status();
  EXPECT_EQ(device.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(device.message(), "device is 'tpu'; there are cpu, cuda and auto");
  const auto dtype = OpenBackend({.dtype = "int8"}).status();
  EXPECT_EQ(dtype.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(dtype.message()), HasSubstr("'int8'; there are float32 and bfloat16"));
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
