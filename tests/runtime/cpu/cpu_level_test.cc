#include "runtime/cpu/cpu_level.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using ::testing::HasSubstr;

TEST(CpuLevelTest, LevelsRiseFromPortableToTheDetectedOne) {
  const std::vector<CpuLevel> levels = AvailableCpuLevels();
  ASSERT_FALSE(levels.empty());
  EXPECT_EQ(levels.front(), CpuLevel::kPortable);
  EXPECT_EQ(levels.back(), DetectCpuLevel());
  for (size_t i = 1; i < levels.size(); ++i) EXPECT_LT(levels[i - 1], levels[i]);
}

TEST(CpuLevelTest, ANameParsesToItsLevel) {
  for (CpuLevel level : AvailableCpuLevels()) {
    const auto parsed = ParseCpuLevel(Name(level));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, level);
  }
  EXPECT_EQ(*ParseCpuLevel("auto"), DetectCpuLevel());
}

TEST(CpuLevelTest, AnUnknownNameIsAnsweredWithTheKnownOnes) {
  const absl::Status status = ParseCpuLevel("avx1024").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  for (const char* part : {"avx1024", "auto", "portable", "avx2", "avx512", "avx512_bf16"})
    EXPECT_THAT(message, HasSubstr(part));
}

TEST(CpuLevelTest, ALevelAboveTheMachineIsRefusedWithWhatItHas) {
  if (DetectCpuLevel() == CpuLevel::kAvx512Bf16) GTEST_SKIP() << "this machine has every level";
  const absl::Status status = ParseCpuLevel("avx512_bf16").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("portable"));
}

}  // namespace
}  // namespace sensorium
