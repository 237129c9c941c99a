// What opening the CPU backend and its memory answer; its ops are tested in tests/runtime/backend.
#include "runtime/cpu/cpu_backend.h"

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "runtime/cpu/host_limits.h"

namespace sensorium {
namespace {

TEST(CpuBackendTest, RefusesWhatItCannotBe) {
  EXPECT_EQ(CpuBackend::Create({.dtype = DType::kFloat16, .level = {}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CpuBackend::Create({.threads = -1, .level = {}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  if (DetectCpuLevel() < CpuLevel::kAvx512Bf16) {
    EXPECT_EQ(CpuBackend::Create({.level = CpuLevel::kAvx512Bf16}).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

TEST(CpuBackendTest, SaysWhatItRunsOn) {
  const auto backend = CpuBackend::Create({.threads = 2, .level = CpuLevel::kPortable});
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->description(), "cpu portable, 2 threads");
  EXPECT_GE(UsableCores(), 1);
}

TEST(CpuBackendTest, AllocatesAlignedMemoryOrSaysBothNumbers) {
  const auto backend = CpuBackend::Create({.threads = 1, .level = {}});
  ASSERT_TRUE(backend.ok());
  auto buffer = (*backend)->Allocate(1000);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 64, 0u);
  EXPECT_EQ((*buffer)->size_bytes(), 1000u);
  EXPECT_TRUE((*backend)->Allocate(0).ok());
  const auto huge = (*backend)->Allocate(size_t{1} << 60).status();
  EXPECT_EQ(huge.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(huge.message().find("1152921504606846976"), absl::string_view::npos);
  EXPECT_NE(huge.message().find("available"), absl::string_view::npos);
}

}  // namespace
}  // namespace sensorium
