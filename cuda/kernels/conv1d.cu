// conv1d.cu: gathers the windows of a convolution over frames, for linear.cu to multiply.
//
// Source    Chellapilla et al. 2006, "High performance convolutional neural networks": im2col.
// Shapes    x [seqs * frames, in], y [rows, kernel * in]: float or bfloat16, any row stride.
// Launch    conv1d_windows: grid (rows, kernel), 128 threads: a CTA copies one frame, or writes
//           zeros.
// Traffic   x `kernel / stride` times (in L2), y once. Against the product's own bytes: Whisper's
//           stem is two of some hundred products, so it has no kernel of its own yet.
// Numerics  one rounding to y's type. The product sums taps in ascending order, inputs within
//           a tap.
#include "cuda/kernels/conv1d.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

constexpr unsigned kThreads = 128;

template <typename Y, typename X>
__global__ void conv1d_windows_kernel(Y* y, int64_t y_stride, const X* x, int64_t x_stride,
                                      Conv1dShape s, int64_t first) {
  const int64_t row = first + blockIdx.x, tap = blockIdx.y;
  const int64_t sequence = row / s.frames_out;
  const int64_t frame = row % s.frames_out * s.stride + tap - (s.kernel - 1) / 2;
  const bool there = frame >= 0 && frame < s.frames;
  x += (sequence * s.frames + frame) * x_stride;
  y += blockIdx.x * y_stride + tap * s.in;
  for (int64_t i = threadIdx.x; i < s.in; i += kThreads) {
    y[i] = FromFloat<Y>(there ? ToFloat(x[i]) : 0.f);
  }
}

}  // namespace

void Conv1dWindows(Rows y, ConstRows x, const Conv1dShape& shape, int64_t first, int64_t rows,
                   Queue& queue) {
  if (rows == 0 || shape.in == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(shape.kernel));
  WithType(y.type, [&]<typename Y>() {
    WithType(x.type, [&]<typename X>() {
      launch(conv1d_windows_kernel<Y, X>, grid, kThreads, 0, queue, static_cast<Y*>(y.data),
             y.stride, static_cast<const X*>(x.data), x.stride, shape, first);
    });
  });
}

}  // namespace sensorium::cuda
