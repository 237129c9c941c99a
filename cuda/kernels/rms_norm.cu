// rms_norm.cu: y = x / sqrt(mean(x^2) + eps) * weight per row, or y += that.
//
// Source    Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4; eps inside the root, as in Llama.
// Shapes    x, y [rows, columns], any row stride, float or bfloat16; weight [columns] float. y may
//           be x.
// Launch    grid rows, up to 256 threads: one CTA per row. Shared memory 128 B, for warps' sums.
// Traffic   rows * columns of x and of y (y twice when added to); the second read of x hits cache.
//           Memory-bound.
// Numerics  sums in fp32, a true root and division. The quotient is rounded to x's type before the
//           weight, as in Hugging Face's LlamaRMSNorm.forward. Bits depend on the row alone.
#include "cuda/kernels/rms_norm.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

template <typename Y, typename X>
__global__ void rms_norm_kernel(Y* y, int64_t y_stride, const X* x, int64_t x_stride,
                                const float* weight, float eps, bool add, int64_t columns) {
  float* scratch = &shared_memory<float>();  // [32]
  x += blockIdx.x * x_stride;
  y += blockIdx.x * y_stride;
  float sum = 0.f;
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    const float v = ToFloat(x[c]);
    sum += v * v;
  }
  // BlockSum's barrier is what makes y == x safe: nobody writes before everybody has read.
  const float mean = BlockSum(sum, scratch) / static_cast<float>(columns);
  const float scale = 1.f / sqrtf(mean + eps);
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    const float v = ToFloat(FromFloat<X>(ToFloat(x[c]) * scale)) * weight[c];
    y[c] = FromFloat<Y>(add ? ToFloat(y[c]) + v : v);
  }
}

}  // namespace

void RmsNorm(Rows y, ConstRows x, const float* weight, float eps, bool add, int64_t rows,
             int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(y.type, [&]<typename Y>() {
    WithType(x.type, [&]<typename X>() {
      launch(rms_norm_kernel<Y, X>, static_cast<unsigned>(rows), ThreadsFor(columns, 256),
             32 * sizeof(float), queue, static_cast<Y*>(y.data), y.stride,
             static_cast<const X*>(x.data), x.stride, weight, eps, add, columns);
    });
  });
}

}  // namespace sensorium::cuda
