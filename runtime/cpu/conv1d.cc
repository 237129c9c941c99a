#include "runtime/cpu/conv1d.h"

#include <cstring>

#include "runtime/base/check.h"
#include "runtime/cpu/gemm.h"

namespace sensorium {

void RunConv1d(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
               ConstTensorView x, int64_t seqs, int64_t stride, Activation activation) {
  CHECK(x.rank() == 2 && x.dim(1) == w.in_features() && stride >= 1);
  CHECK(x.dtype() == DType::kFloat32 || x.dtype() == DType::kBFloat16);
  CHECK(seqs >= 0 && (seqs == 0 ? x.rows() == 0 : x.rows() % seqs == 0));
  if (x.empty()) return;
  const int64_t frames = x.rows() / seqs;
  const int64_t frames_out = (frames - 1) / stride + 1;
  const int64_t kernel = w.taps(), pad = (kernel - 1) / 2;
  CHECK(y.rank() == 2 && y.rows() == seqs * frames_out);

  const GemmKernels& kernels = GemmKernelsFor(w.level());
  const GemmInput input = KernelSet(w).input;
  const int64_t row_bytes = InputRowBytes(w), pitch = SpreadStride(row_bytes);
  const int64_t padded = row_bytes / (input == GemmInput::kBFloat16 ? 2 : 4);
  // One sequence of x [pad + frames + pad', in]: as many zero rows as the last window reaches.
  const int64_t rows = (frames_out - 1) * stride + kernel;
  std::byte* copy = scratch.activations.Reserve(rows * pitch);
  const int64_t x_stride = x.row_stride() * static_cast<int64_t>(SizeOf(x.dtype()));
  for (int64_t s = 0; s < seqs; ++s) {
    const std::byte* from = x.bytes() + s * frames * x_stride;
    pool.ParallelFor(rows, [&](int64_t r) {
      const int64_t frame = r - pad;
      if (frame < 0 || frame >= frames) {
        std::memset(copy + r * pitch, 0, row_bytes);
      } else {
        kernels.convert(copy + r * pitch, input, from + frame * x_stride,
                        x.dtype() == DType::kBFloat16, w.in_features(), padded);
      }
    });
    // Tap t of output frame f reads row f * stride + t of the copy.
    RunGemm(w, pool, scratch, y.Rows(s * frames_out, (s + 1) * frames_out),
            {copy, frames_out, stride * pitch, pitch}, activation, /*add=*/false);
  }
}

}  // namespace sensorium
