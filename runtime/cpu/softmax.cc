// The middle of attention: a row of scores becomes the left operand of P V, and a row of sums y.
//
// Source      Vaswani et al. 2017 (arXiv:1706.03762), eq. 1. The row's exact maximum is subtracted
//             and the division by the sum comes last, after P V.
// Traffic     scores twice, from L1 or L2. Bound by the arithmetic of e^x.
// Numerics    float32. Where P is rounded to bfloat16 the sum is of the rounded values, so that the
//             weights add up to 1. Lane i sums the keys congruent to i, whatever the batch.
#include "runtime/cpu/gemm_kernels.h"
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

template <GemmInput kOutput>
float Softmax(float* s, int64_t n, float scale) {
  constexpr float kLowest = -__builtin_inff();
  const int64_t whole = n / kWidth * kWidth;
  const auto present = Iota() < static_cast<int32_t>(n - whole);  // lanes of the last vector

  F max = Set(kLowest), max2 = max;
  int64_t i = 0;
  for (; i + 2 * kWidth <= whole; i += 2 * kWidth) {
    const F a = Load(s + i), b = Load(s + i + kWidth);
    max = a > max ? a : max;
    max2 = b > max2 ? b : max2;
  }
  max = max2 > max ? max2 : max;
  for (; i < n; i += kWidth) {
    F v = Load(s + i);
    if (i == whole) v = present ? v : Set(kLowest);
    max = v > max ? v : max;
  }
  // scale > 0 and rounding is monotonic: the maximum of the products is the product of the maximum.
  const F top = Set(Max(max) * scale);

  F sum = {};
  const auto take = [&](int64_t at, bool tail) __attribute__((always_inline)) {
    F p = Exp(Load(s + at) * scale - top);
    if (tail) p = present ? p : F{};
    if constexpr (kOutput != GemmInput::kFloat32) p = RoundThroughBFloat16(p);
    sum += p;
    if constexpr (kOutput == GemmInput::kBFloat16) {
      // Over the place of scores already read: element i's 2 bytes at 2 i, its score's at 4 i.
      *reinterpret_cast<HAny*>(reinterpret_cast<char*>(s) + at * 2) =
          __builtin_convertvector(reinterpret_cast<U>(p) >> 16, H);
    } else {
      Store(s + at, p);
    }
  };
  for (i = 0; i < whole; i += kWidth) take(i, false);
  if (i < n) {
    take(i, true);
    i += kWidth;
  }
  constexpr int64_t kMultiple = 16;  // a narrow level's row ends with zeros up to here too
  for (; i % kMultiple != 0; i += kWidth) {
    if constexpr (kOutput == GemmInput::kBFloat16) {
      *reinterpret_cast<HAny*>(reinterpret_cast<char*>(s) + i * 2) = H{};
    } else {
      Store(s + i, F{});
    }
  }
  return Sum(sum);
}

}  // namespace

float SoftmaxRow(float* s, int64_t n, float scale, GemmInput output) {
  if (output == GemmInput::kFloat32) return Softmax<GemmInput::kFloat32>(s, n, scale);
  if (output == GemmInput::kBFloat16) return Softmax<GemmInput::kBFloat16>(s, n, scale);
  return Softmax<GemmInput::kRoundedFloat32>(s, n, scale);
}

void NormalizeRow(void* y, DType y_type, const float* acc, float sum, int64_t n) {
  WithType(y_type, [&]<DType Y>() {
    ForEachVector(n, [&](auto at) { at.template Put<Y>(y, at.template Get<kFloat32>(acc) / sum); });
  });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
