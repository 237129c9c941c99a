#include "server/backend_factory.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cpu/cpu_level.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(BackendFactoryTest, EveryCpuLevelOfThisMachineCanBeAskedFor) {
  for (const CpuLevel level : AvailableCpuLevels()) {
    const std::string name(Name(level));
    const auto backend = OpenBackend({.cpu_level = name, .threads = 1});
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT((*backend)->description(), HasSubstr("cpu " + name + ","));
  }
  const auto best = OpenBackend({.threads = 1});
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_THAT((*best)->description(), HasSubstr(std::string(Name(DetectCpuLevel()))));
}

TEST(BackendFactoryTest, ACpuLevelThatIsNotThereIsNamedWithThoseThatAre) {
  const auto unknown = OpenBackend({.cpu_level = "mmx"});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("there are: auto, portable"));
  if (DetectCpuLevel() == CpuLevel::kAvx512Bf16) GTEST_SKIP() << "this machine lacks no level";
  const auto lacking = OpenBackend({.cpu_level = "avx512_bf16"});
  EXPECT_EQ(lacking.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(lacking.status().message()), HasSubstr("this machine lacks"));
}

TEST(BackendFactoryTest, UnknownDevicesAndTypesAreNamed) {
  EXPECT_THAT(std::string(OpenBackend({.device = "tpu"}).status().message()),
              HasSubstr("'tpu'; there are cpu and auto"));
  EXPECT_THAT(std::string(OpenBackend({.dtype = "int8"}).status().message()),
              HasSubstr("'int8'; there are float32 and bfloat16"));
}

}  // namespace
}  // namespace sensorium
