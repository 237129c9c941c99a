// layer_norm.cu: y = (x - mean) / sqrt(variance + eps) * weight + bias per row.
//
// Source    Ba et al. 2016 (arXiv:1607.06450), eq. 4, with the biased variance.
// Shapes    x, y [rows, columns], any row stride, float or bfloat16; weight, bias [columns] float.
//           y may be x.
//           No residual is added here: the models with LayerNorms (Whisper, the vision encoder)
//           add a sublayer's result in its last product, which is Linear's `add` (linear.cu).
// Launch    grid rows, up to 256 threads: one CTA per row. Shared memory 128 B, for warps' sums.
// Traffic   rows * columns of x and of y; the further reads of x hit cache. Memory-bound.
// Numerics  fp32, in two passes: the variance is the mean of (x - mean)^2, since E[x^2] - mean^2
//           cancels where the mean is large. Bits depend on the row alone.
#include "cuda/kernels/layer_norm.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

template <typename Y, typename X>
__global__ void layer_norm_kernel(Y* y, int64_t y_stride, const X* x, int64_t x_stride,
                                  const float* weight, const float* bias, float eps,
                                  int64_t columns) {
  float* scratch = &shared_memory<float>();  // [32]
  x += blockIdx.x * x_stride;
  y += blockIdx.x * y_stride;
  const float n = static_cast<float>(columns);
  float sum = 0.f;
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) sum += ToFloat(x[c]);
  const float mean = BlockSum(sum, scratch) / n;
  float squares = 0.f;
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    const float d = ToFloat(x[c]) - mean;
    squares += d * d;
  }
  const float scale = 1.f / sqrtf(BlockSum(squares, scratch) / n + eps);
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    y[c] = FromFloat<Y>((ToFloat(x[c]) - mean) * scale * weight[c] + bias[c]);
  }
}

}  // namespace

void LayerNorm(Rows y, ConstRows x, const float* weight, const float* bias, float eps, int64_t rows,
               int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(y.type, [&]<typename Y>() {
    WithType(x.type, [&]<typename X>() {
      launch(layer_norm_kernel<Y, X>, static_cast<unsigned>(rows), ThreadsFor(columns, 256),
             32 * sizeof(float), queue, static_cast<Y*>(y.data), y.stride,
             static_cast<const X*>(x.data), x.stride, weight, bias, eps, columns);
    });
  });
}

}  // namespace sensorium::cuda
