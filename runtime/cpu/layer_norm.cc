// y = (x - mean) / sqrt(variance + eps) * weight + bias for one row.
//
// Source      Ba et al. 2016 (arXiv:1607.06450), eq. 4, with the biased variance.
// Traffic     x three times (twice from L1), y once. Memory-bound.
// Numerics    float32, in two passes: the variance is the mean of (x - mean)^2, since E[x^2] -
// mean^2
//             cancels where the mean is large.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

// The sum over a row of term(x, sum so far).
template <DType X, typename Term>
inline float SumOverRow(const char* x, int64_t n, Term term) {
  F sums[4] = {};  // four chains hide the latency of an addition
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int c = 0; c < 4; ++c) {
      sums[c] = term(LoadAs<X>(x + (i + c * kWidth) * SizeOf(X)), sums[c]);
    }
  }
  for (; i + kWidth <= n; i += kWidth) sums[0] = term(LoadAs<X>(x + i * SizeOf(X)), sums[0]);
  float sum = Sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (i < n) {
    alignas(64) float tail[kWidth];
    Store(tail, term(LoadTail<X>(x + i * SizeOf(X), n - i), F{}));
    for (int64_t t = 0; t < n - i; ++t) sum += tail[t];  // not the missing elements' terms
  }
  return sum;
}

template <DType Y, DType X>
void LayerNorm(const NormRow& row) {
  const char* x = static_cast<const char*>(row.x);
  const float n = static_cast<float>(row.n);
  const float mean = SumOverRow<X>(x, row.n, [](F v, F sum) { return sum + v; }) / n;
  const float variance = SumOverRow<X>(x, row.n,
                                       [mean](F v, F sum) {
                                         const F d = v - mean;
                                         return MulAdd(d, d, sum);
                                       }) /
                         n;
  const float scale = 1.f / __builtin_sqrtf(variance + row.eps);
  ForEachVector(row.n, [&](auto at) {
    const F v = (at.template Get<X>(x) - mean) * scale;
    at.template Put<Y>(row.y, MulAdd(v, at.template Get<kFloat32>(row.weight),
                                     at.template Get<kFloat32>(row.bias)));
  });
}

}  // namespace

void LayerNormRow(const NormRow& row) {
  WithType(row.y_type,
           [&]<DType Y>() { WithType(row.x_type, [&]<DType X>() { LayerNorm<Y, X>(row); }); });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
