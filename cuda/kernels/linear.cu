// linear.cu: y = act(x W^T + b), y += x W^T + b, or the same with one W per group of rows.
//
// Source    GELU: Hendrycks & Gimpel 2016 (arXiv:1606.08415), exact form; QuickGELU: OpenAI CLIP.
//           Tiles through shared memory by cp.async and ldmatrix into mma.sync, as in the CUDA
//           programming guide's and PTX ISA's descriptions of them.
// Shapes    x [rows, in], y [rows, out], any row stride, float or bfloat16; W [out, in] row-major,
//           padded with zeros to multiples of 64 and 32; b [out] float. finish_linear: sums
//           [rows, out] float or bfloat16 instead of x and W, any row stride.
// Launch    linear_bf16: a CTA of 128 threads makes 64 x 64 outputs (each warp 32 x 32), or 16 x 64
//           (each warp 16 x 16) when there are at most 16 rows. Three stages of 32 inputs in shared
//           memory: 30720 B, or 19200 B. linear_float32: 256 threads make 64 x 64 outputs, 4 x 4
//           each, or 16 x 64; a stage of 16 inputs, 8704 B or 5632 B. Grid (out / 64, rows / tile,
//           groups). finish_linear: grid (rows, out / 1024), 128 threads, no shared memory: each
//           takes every 128th output of 1024.
// Traffic   W once for each tile of rows (so once for a decode batch), x once for each 64 outputs
//           (in L2), y once. Up to some 100 rows bound by W's bytes. finish_linear: sums and b
//           once, y once (twice when added to). Memory-bound.
// Numerics  fp32 accumulators, one chain over the inputs in ascending order for each output: steps
//           of 16 by mma.m16n8k16 (x rounded to bfloat16), single ones in float32. Both heights of
//           tile run the same chain, so a row's bits depend on that row and W alone.
#include "cuda/kernels/linear.h"

#include "cuda/kernels/launch.h"
#include "cuda/kernels/ptx.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

__device__ __forceinline__ float Activate(float v, Activation a) {
  // 1 + erf(z) = erfc(-z), which does not cancel on the negative side.
  if (a == Activation::kGelu) return 0.5f * v * erfcf(v * -0.70710678118f);
  if (a == Activation::kQuickGelu) return v / (1.f + expf(-1.702f * v));
  return v;
}

// The rows and the matrix of this CTA's group, and its tile of them.
struct Tile {
  LinearMatrix matrix;
  int64_t first_row, rows;  // of y, of this CTA's tile; rows <= 0: nothing to do
  int64_t first_out;
};

__device__ __forceinline__ Tile FindTile(const LinearProblem& p, int tile_rows) {
  Tile t = {p.matrix, 0, p.rows, int64_t{blockIdx.x} * kOutMultiple};
  if (p.groups > 0) {
    t.matrix = p.matrices[blockIdx.z];
    t.first_row = p.first_row[blockIdx.z];
    t.rows = p.first_row[blockIdx.z + 1] - t.first_row;
  }
  const int64_t skip = int64_t{blockIdx.y} * tile_rows;
  t.first_row += skip;
  t.rows -= skip;
  if (t.rows > tile_rows) t.rows = tile_rows;
  return t;
}

__device__ __forceinline__ int64_t XRow(const LinearProblem& p, int64_t y_row) {
  return p.x_rows == nullptr ? y_row : p.x_rows[y_row];
}

__device__ __forceinline__ void Finish(const LinearProblem& p, const LinearMatrix& m, int64_t row,
                                       int64_t out, float sum) {
  const float v = Activate(sum + m.bias[out], p.activation);
  const int64_t at = row * p.y.stride + out;
  Store(p.y.data, p.y.type, at, p.add ? Load(p.y.data, p.y.type, at) + v : v);
}

// ---- bfloat16 ----------------------------------------------------------------------------------

constexpr int kStages = 3, kStep = 32;
constexpr int kPitch = kStep + 8;  // elements: rows of 80 bytes fall into all banks of ldmatrix
constexpr unsigned kMmaThreads = 128;

template <int kRows>
struct MmaShared {
  __nv_bfloat16 x[kStages][kRows][kPitch];
  __nv_bfloat16 w[kStages][kOutMultiple][kPitch];
};

// One stage: kRows rows of x and 64 of W, inputs [k, k + 32).
template <typename X, int kRows>
__device__ __forceinline__ void LoadStage(MmaShared<kRows>& s, int stage, const LinearProblem& p,
                                          const Tile& t, bool aligned, int64_t k) {
  for (int i = threadIdx.x; i < kOutMultiple * kStep / 8; i += kMmaThreads) {
    const int n = i / (kStep / 8), c = i % (kStep / 8) * 8;
    const auto* w = static_cast<const __nv_bfloat16*>(t.matrix.weight);
    cp_async_16(&s.w[stage][n][c], w + (t.first_out + n) * p.in_padded + k + c, 16);
  }
  const X* x = static_cast<const X*>(p.x.data);
  for (int i = threadIdx.x; i < kRows * kStep / 8; i += kMmaThreads) {
    const int r = i / (kStep / 8), c = i % (kStep / 8) * 8;
    __nv_bfloat16* to = &s.x[stage][r][c];
    const int64_t left = r < t.rows ? p.in - k - c : 0;  // elements there are
    const X* from = left > 0 ? x + XRow(p, t.first_row + r) * p.x.stride + k + c : x;
    if constexpr (sizeof(X) == 2) {
      if (aligned) {
        cp_async_16(to, from, left >= 8 ? 16 : left > 0 ? static_cast<int>(left) * 2 : 0);
        continue;
      }
    }
    for (int e = 0; e < 8; ++e) to[e] = FromFloat<__nv_bfloat16>(e < left ? ToFloat(from[e]) : 0.f);
  }
}

template <typename X, int kRows>
__global__ __launch_bounds__(kMmaThreads,
                             kRows == 64 ? 4 : 8) void linear_bf16_kernel(LinearProblem p,
                                                                          bool aligned) {
  auto& s = shared_memory<MmaShared<kRows>>();
  const Tile t = FindTile(p, kRows);
  if (t.rows <= 0) return;  // all of the CTA
  // 64 rows: 2 x 2 warps of 32 x 32 outputs. 16 rows: 1 x 4 warps of 16 x 16.
  constexpr int kWarpsDown = kRows == 64 ? 2 : 1, kWarpsAcross = 4 / kWarpsDown;
  constexpr int kTilesDown = kRows / kWarpsDown / 16;
  constexpr int kTilesAcross = static_cast<int>(kOutMultiple) / kWarpsAcross / 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / kWarpsAcross * kTilesDown * 16;
  const int warp_out = warp % kWarpsAcross * kTilesAcross * 8;
  float sum[kTilesDown][kTilesAcross][4] = {};

  const int64_t steps = p.in_padded / kStep;
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) LoadStage<X, kRows>(s, i, p, t, aligned, int64_t{i} * kStep);
    cp_async_commit();
  }
  for (int64_t step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this stage has landed for all, and all are done with the one filled next
    const int64_t ahead = step + kStages - 1;
    if (ahead < steps) {
      LoadStage<X, kRows>(s, static_cast<int>(ahead % kStages), p, t, aligned, ahead * kStep);
    }
    cp_async_commit();
    const int stage = static_cast<int>(step % kStages);
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      uint32_t a[kTilesDown][4];
      for (int i = 0; i < kTilesDown; ++i) {
        ldmatrix_x4(a[i], &s.x[stage][warp_row + i * 16 + lane % 16][k + lane / 16 * 8]);
      }
      for (int j = 0; j < kTilesAcross; j += 2) {
        uint32_t b[4];  // two tiles of 8 outputs
        ldmatrix_x4(b,
                    &s.w[stage][warp_out + j * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        for (int i = 0; i < kTilesDown; ++i) {
          mma_bf16_16816(sum[i][j], a[i], b[0], b[1]);
          mma_bf16_16816(sum[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll  // or the sums would have to lie in memory to be indexed
  for (int i = 0; i < kTilesDown; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row + i * 16 + lane / 4 + e / 2 * 8;
        const int64_t out = t.first_out + warp_out + j * 8 + lane % 4 * 2 + e % 2;
        if (row >= t.rows || out >= p.out) continue;
        Finish(p, t.matrix, t.first_row + row, out, sum[i][j][e]);
      }
    }
  }
}

// ---- float32 -----------------------------------------------------------------------------------

constexpr int kPlainStep = 16;
constexpr unsigned kPlainThreads = 256;

template <int kRows>
struct PlainShared {  // inputs outermost; 4 floats of padding spread the stores over the banks
  float x[kPlainStep][kRows + 4];
  float w[kPlainStep][kOutMultiple + 4];
};

template <int kRows>
__global__ __launch_bounds__(kPlainThreads) void linear_float32_kernel(LinearProblem p) {
  auto& s = shared_memory<PlainShared<kRows>>();
  const Tile t = FindTile(p, kRows);
  if (t.rows <= 0) return;           // all of the CTA
  constexpr int kEach = kRows / 16;  // rows a thread makes, 4 outputs of each
  const int row = threadIdx.x / 16 * kEach, out = threadIdx.x % 16 * 4;
  const auto* x = static_cast<const float*>(p.x.data);
  const auto* w = static_cast<const float*>(t.matrix.weight);
  float sum[kEach][4] = {};
  for (int64_t k = 0; k < p.in_padded; k += kPlainStep) {
    __syncthreads();  // all are done with the last stage
    for (int i = threadIdx.x; i < kRows * kPlainStep; i += kPlainThreads) {
      const int r = i / kPlainStep, c = i % kPlainStep;
      const bool there = r < t.rows && k + c < p.in;
      s.x[c][r] = there ? x[XRow(p, t.first_row + r) * p.x.stride + k + c] : 0.f;
    }
    {
      const int n = threadIdx.x / 4, c = threadIdx.x % 4 * 4;
      const auto v = *reinterpret_cast<const float4*>(w + (t.first_out + n) * p.in_padded + k + c);
      s.w[c][n] = v.x, s.w[c + 1][n] = v.y, s.w[c + 2][n] = v.z, s.w[c + 3][n] = v.w;
    }
    __syncthreads();
    for (int c = 0; c < kPlainStep; ++c) {
      const auto b = *reinterpret_cast<const float4*>(&s.w[c][out]);
      for (int r = 0; r < kEach; ++r) {
        const float a = s.x[c][row + r];
        sum[r][0] += a * b.x, sum[r][1] += a * b.y, sum[r][2] += a * b.z, sum[r][3] += a * b.w;
      }
    }
  }
#pragma unroll  // or the sums would have to lie in memory to be indexed
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (row + r >= t.rows || t.first_out + out + e >= p.out) continue;
      Finish(p, t.matrix, t.first_row + row + r, t.first_out + out + e, sum[r][e]);
    }
  }
}

// ---- The end alone -----------------------------------------------------------------------------

constexpr int64_t kFinishColumns = 1024;
constexpr unsigned kFinishThreads = 128;

template <typename Sum>
__global__ void finish_linear_kernel(LinearProblem p, const Sum* sums, int64_t stride) {
  const int64_t row = blockIdx.x, begin = blockIdx.y * kFinishColumns;
  const int64_t end = begin + kFinishColumns < p.out ? begin + kFinishColumns : p.out;
  for (int64_t out = begin + threadIdx.x; out < end; out += kFinishThreads) {
    Finish(p, p.matrix, row, out, ToFloat(sums[row * stride + out]));
  }
}

// ---- Launch ------------------------------------------------------------------------------------

constexpr int kTall = 64, kSkinny = 16;

template <int kRows>
void Run(const LinearProblem& p, Queue& queue) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.out, kOutMultiple)),
                  static_cast<unsigned>(CeilDiv<int64_t>(p.rows, kRows)),
                  p.groups > 0 ? static_cast<unsigned>(p.groups) : 1);
  if (p.type == Type::kFloat32) {
    launch(linear_float32_kernel<kRows>, grid, kPlainThreads, sizeof(PlainShared<kRows>), queue, p);
    return;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && p.x.stride % 8 == 0;
  WithType(p.x.type, [&]<typename X>() {
    launch(linear_bf16_kernel<X, kRows>, grid, kMmaThreads, sizeof(MmaShared<kRows>), queue, p,
           aligned);
  });
}

}  // namespace

void Linear(const LinearProblem& problem, Queue& queue) {
  if (problem.rows == 0 || problem.out == 0) return;
  // A group of a mixture has few rows: experts share a step's tokens among them.
  if (problem.rows <= kSkinny || (problem.groups > 0 && problem.rows <= 4 * kSkinny)) {
    Run<kSkinny>(problem, queue);
  } else {
    Run<kTall>(problem, queue);
  }
}

void FinishLinear(const LinearProblem& problem, ConstRows sums, Queue& queue) {
  if (problem.rows == 0 || problem.out == 0) return;
  const dim3 grid(static_cast<unsigned>(problem.rows),
                  static_cast<unsigned>(CeilDiv(problem.out, kFinishColumns)));
  WithType(sums.type, [&]<typename Sum>() {
    launch(finish_linear_kernel<Sum>, grid, kFinishThreads, 0, queue, problem,
           static_cast<const Sum*>(sums.data), sums.stride);
  });
}

}  // namespace sensorium::cuda
