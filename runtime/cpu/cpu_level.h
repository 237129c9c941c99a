// Which instructions the CPU kernels use. Chosen once at start, named in the log; a lower one than
// the machine has can be forced. Same level, same tokens: results are bit-identical within a level
// and merely close between levels.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sensorium {

enum class CpuLevel : uint8_t {
  kPortable,    // any CPU the binary starts on: x86-64-v2, arm64
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // AVX-512 F, BW, DQ, VL
  kAvx512Bf16,  // the same and AVX512_BF16: vdpbf16ps
};

std::string_view Name(CpuLevel level);  // "portable", "avx2", "avx512", "avx512_bf16"

// The highest level that this CPU and its operating system both support.
CpuLevel DetectCpuLevel();

// All levels up to the detected one, lowest first.
std::vector<CpuLevel> AvailableCpuLevels();

// The level of that name, or the detected one for "auto". INVALID_ARGUMENT when there is none of
// that name, FAILED_PRECONDITION when this machine does not reach it.
absl::StatusOr<CpuLevel> ParseCpuLevel(std::string_view name);

}  // namespace sensorium
