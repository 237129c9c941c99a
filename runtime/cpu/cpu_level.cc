#include "runtime/cpu/cpu_level.h"

#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sensorium {
namespace {

constexpr CpuLevel kAllLevels[] = {CpuLevel::kPortable, CpuLevel::kAvx2, CpuLevel::kAvx512,
                                   CpuLevel::kAvx512Bf16};

#if defined(__x86_64__)
// Intel SDM volume 1, 13.3 and 14: the CPU having an instruction is not enough, the operating
// system must also save its registers (XCR0), or they are lost at the next context switch.
uint64_t Xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}
#endif

std::string Join(const auto& levels) {
  std::string names;
  for (CpuLevel l : levels) {
    const std::string_view name = Name(l);
    names.append(names.empty() ? "" : ", ").append(name);
  }
  return names;
}

}  // namespace

std::string_view Name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable:
      return "portable";
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "?";
}

CpuLevel DetectCpuLevel() {
#if defined(__x86_64__)
  constexpr uint64_t kYmmState = 0x6, kZmmState = 0xe6;  // XCR0: SSE + AVX; + opmask + ZMM halves
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return CpuLevel::kPortable;
  constexpr uint32_t kFma = 1u << 12, kOsXsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr uint32_t kNeeded1 = kFma | kOsXsave | kAvx | kF16c;
  if ((c & kNeeded1) != kNeeded1 || (Xcr0() & kYmmState) != kYmmState) return CpuLevel::kPortable;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return CpuLevel::kPortable;
  constexpr uint32_t kBmi = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  constexpr uint32_t kNeeded2 = kBmi | kAvx2 | kBmi2;
  if ((b & kNeeded2) != kNeeded2) return CpuLevel::kPortable;
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  constexpr uint32_t kNeeded512 = kF | kDq | kBw | kVl;
  if ((b & kNeeded512) != kNeeded512 || (Xcr0() & kZmmState) != kZmmState) return CpuLevel::kAvx2;

  constexpr uint32_t kBf16 = 1u << 5;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kBf16)) return CpuLevel::kAvx512;
  return CpuLevel::kAvx512Bf16;
#else
  return CpuLevel::kPortable;
#endif
}

std::vector<CpuLevel> AvailableCpuLevels() {
  std::vector<CpuLevel> levels;
  for (CpuLevel l : kAllLevels)
    if (l <= DetectCpuLevel()) levels.push_back(l);
  return levels;
}

absl::StatusOr<CpuLevel> ParseCpuLevel(std::string_view name) {
  const CpuLevel detected = DetectCpuLevel();
  if (name == "auto") return detected;
  for (CpuLevel l : kAllLevels) {
    if (name != Name(l)) continue;
    if (l <= detected) return l;
    return absl::FailedPreconditionError(absl::StrCat(
        "cpu level ", std::string(name),
        " needs instructions this machine lacks; it has: ", Join(AvailableCpuLevels())));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no cpu level is named \"", std::string(name), "\"; there are: auto, ",
                   Join(kAllLevels), "; this machine has: ", Join(AvailableCpuLevels())));
}

}  // namespace sensorium
