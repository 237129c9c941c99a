// Rows from one type to another, table rows, means of rows.
//
// Traffic     each element read and written once. Memory-bound.
// Numerics    bfloat16 by nearest, ties to even; sums in float32.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {

void ConvertRow(void* y, DType y_type, const void* x, DType x_type, int64_t n) {
  if (x_type == kFloat16) {
    WithType(y_type, [&]<DType Y>() {
      ForEachVector(n, [&](auto at) { at.template Put<Y>(y, at.template Get<kFloat16>(x)); });
    });
    return;
  }
  if (x_type == y_type) {
    __builtin_memcpy(y, x, n * SizeOf(x_type));
    return;
  }
  WithType(y_type, [&]<DType Y>() {
    WithType(x_type, [&]<DType X>() {
      ForEachVector(n, [&](auto at) { at.template Put<Y>(y, at.template Get<X>(x)); });
    });
  });
}

namespace {

template <DType X>
void Embed(float* y, const void* x, bool round, bool add, int64_t n) {
  ForEachVector(n, [&](auto at) {
    F v = at.template Get<X>(x);
    if (round) v = RoundThroughBFloat16(v);
    at.template Put<kFloat32>(y, add ? at.template Get<kFloat32>(y) + v : v);
  });
}

}  // namespace

void EmbedRow(float* y, const void* x, DType x_type, bool round, bool add, int64_t n) {
  if (x_type == kFloat32) return Embed<kFloat32>(y, x, round, add, n);
  if (x_type == kBFloat16) return Embed<kBFloat16>(y, x, /*round=*/false, add, n);
  Embed<kFloat16>(y, x, round, add, n);
}

void MeanOfRows(void* y, const void* x, int64_t x_stride, int64_t rows, DType type, int64_t n) {
  WithType(type, [&]<DType T>() {
    ForEachVector(n, [&](auto at) {
      F sum = at.template Get<T>(x);
      for (int64_t r = 1; r < rows; ++r) {
        sum += at.template Get<T>(static_cast<const char*>(x) + r * x_stride * SizeOf(T));
      }
      at.template Put<T>(y, sum / static_cast<float>(rows));
    });
  });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
