// y = x / sqrt(mean(x^2) + eps) * weight for one row, or y += that.
//
// Source      Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4; eps inside the root, as in Llama.
// Traffic     x twice (the second time from L1), y once. Memory-bound.
// Numerics    sums in float32; a true square root and division. The quotient is rounded to x's type
//             before the weight, as in Hugging Face's LlamaRMSNorm.forward; in float32 that is no
//             rounding at all.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

template <DType Y, DType X>
void RmsNorm(const NormRow& row) {
  // Four chains hide the latency of an addition; vector v goes to chain v mod 4.
  F sums[4] = {};
  const char* x = static_cast<const char*>(row.x);
  int64_t i = 0;
  for (; i + 4 * kWidth <= row.n; i += 4 * kWidth) {
    for (int c = 0; c < 4; ++c) {
      const F v = LoadAs<X>(x + (i + c * kWidth) * SizeOf(X));
      sums[c] = MulAdd(v, v, sums[c]);
    }
  }
  ForEachVector(row.n - i, [&](auto at) {
    const F v = at.template Get<X>(x + i * SizeOf(X));
    sums[0] = MulAdd(v, v, sums[0]);
  });
  const float sum = Sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const float scale = 1.f / __builtin_sqrtf(sum / static_cast<float>(row.n) + row.eps);
  ForEachVector(row.n, [&](auto at) {
    F v = at.template Get<X>(x) * scale;
    if constexpr (X == kBFloat16) v = RoundThroughBFloat16(v);
    v = v * at.template Get<kFloat32>(row.weight);
    if (row.add) v = at.template Get<kFloat32>(row.y) + v;
    at.template Put<Y>(row.y, v);
  });
}

}  // namespace

void RmsNormRow(const NormRow& row) {
  WithType(row.y_type,
           [&]<DType Y>() { WithType(row.x_type, [&]<DType X>() { RmsNorm<Y, X>(row); }); });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
