// The microkernels: a tile of rows x 32 outputs whose sums stay in registers over a run of
// steps. Twins of one loop: float32, bfloat16 pairs by vdpbf16ps, bfloat16 pairs widened.
//
// Registers   avx512: 12 rows x 2 vectors of sums, 2 of weights, 1 broadcast, of 32. avx2: 6 x 2 of
//             16, portable too (its product takes the one left).
// Traffic     per step of a 12-row tile 128 B of weights and 48 B of x for 768 multiply-adds (1536
//             in bfloat16): bound by the FMA units when both come from L2. With few rows bound by
//             DRAM: one stream of weights, prefetched. Four panels at a time were 5-10 % slower.
// Numerics    see packed_linear.h: one chain per (row, output), steps ascending.
#include "runtime/cpu/gemm_kernels.h"
#include "runtime/cpu/gemm_vector.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

constexpr int kPanelVectors = kGemmPanel / kWidth;

// Prefetch distance in bytes when weights come from DRAM; tuned on Zen 4 (see ops_bench).
constexpr int kPrefetchBytes = 2048;

// The sums of one tile: how one step of one row's x meets one vector of weights.
struct Float32Step {
  static constexpr int kInputBytes = 4;
  template <int kRows, int kVectors, typename Row, typename Weight>
  static inline __attribute__((always_inline)) void Run(F (&sum)[kRows][kVectors], Row row,
                                                        Weight weight) {
    F w[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) w[j] = Load(weight(j));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F x = Broadcast(row(r));
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sum[r][j] = MulAdd(x, w[j], sum[r][j]);
    }
  }
};

#if defined(__AVX512BF16__)
// vdpbf16ps adds both products of a pair; Intel SDM, VDPBF16PS: denormals are zeros.
struct BFloat16Step {
  static constexpr int kInputBytes = 4;
  template <int kRows, int kVectors, typename Row, typename Weight>
  static inline __attribute__((always_inline)) void Run(F (&sum)[kRows][kVectors], Row row,
                                                        Weight weight) {
    __m512bh w[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) w[j] = reinterpret_cast<__m512bh>(LoadBits(weight(j)));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512bh x = reinterpret_cast<__m512bh>(Broadcast(row(r)));
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        sum[r][j] =
            reinterpret_cast<F>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum[r][j]), x, w[j]));
      }
    }
  }
};
constexpr GemmInput kBFloat16Input = GemmInput::kBFloat16;
#else
// A pair's even input is the low half of 32 bits. First all even products, then all odd ones.
struct BFloat16Step {
  static constexpr int kInputBytes = 8;
  template <int kRows, int kVectors, typename Row, typename Weight>
  static inline __attribute__((always_inline)) void Run(F (&sum)[kRows][kVectors], Row row,
                                                        Weight weight) {
    F w[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) w[j] = reinterpret_cast<F>(LoadBits(weight(j)) << 16);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F x = Broadcast(row(r));
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sum[r][j] = MulAdd(x, w[j], sum[r][j]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      w[j] = reinterpret_cast<F>(LoadBits(weight(j)) & 0xffff0000u);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F x = Broadcast(row(r) + 4);
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sum[r][j] = MulAdd(x, w[j], sum[r][j]);
    }
  }
};
constexpr GemmInput kBFloat16Input = GemmInput::kRoundedFloat32;
#endif

// kVectors of a panel's vectors at a time: as many as the registers hold. kPrefetch: the weights
// come from DRAM.
template <typename Step, int kRows, int kVectors, bool kPrefetch>
void Tile(const GemmTile& t) {
  for (int group = 0; group < kPanelVectors; group += kVectors) {
    F sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        const float* c = t.c + r * t.c_stride + (group + j) * kWidth;
        sum[r][j] = t.accumulate ? Load(c) : F{};
      }
    }
    // A pointer for every third row: the others are reached by the address modes (+ stride,
    // + 2 stride), which keeps 12 rows within the general registers.
    const char* a[(kRows + 2) / 3];
#pragma GCC unroll 4
    for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] = t.a + 3 * i * t.a_stride;
    const char* w = t.w + group * kWidth * 4;
#pragma GCC unroll 2
    for (int64_t step = t.steps; step > 0; --step) {
      if constexpr (kPrefetch) {
        __builtin_prefetch(w + kPrefetchBytes);
        __builtin_prefetch(w + kPrefetchBytes + 64);
      }
      Step::Run(
          sum, [&](int r) { return a[r / 3] + r % 3 * t.a_stride; },
          [&](int j) { return w + j * kWidth * 4; });
#pragma GCC unroll 4
      for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] += Step::kInputBytes;
      w += kGemmStepBytes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        float* c = t.c + r * t.c_stride + (group + j) * kWidth;
        Store(c, sum[r][j]);
      }
    }
  }
}

#if defined(__AVX512F__)
template <typename Step>
constexpr GemmKernelSet Kernels(GemmInput input) {
  return {
      .input = input,
      .max_rows = 12,
      .tile = {nullptr, Tile<Step, 1, 2, false>, Tile<Step, 2, 2, false>, Tile<Step, 3, 2, false>,
               Tile<Step, 4, 2, false>, Tile<Step, 5, 2, false>, Tile<Step, 6, 2, false>,
               Tile<Step, 7, 2, false>, Tile<Step, 8, 2, false>, Tile<Step, 9, 2, false>,
               Tile<Step, 10, 2, false>, Tile<Step, 11, 2, false>, Tile<Step, 12, 2, false>},
      .stream = {nullptr, Tile<Step, 1, 2, true>, Tile<Step, 2, 2, true>, Tile<Step, 3, 2, true>,
                 Tile<Step, 4, 2, true>, Tile<Step, 5, 2, true>, Tile<Step, 6, 2, true>,
                 Tile<Step, 7, 2, true>, Tile<Step, 8, 2, true>}};
}
#elif defined(__AVX2__)
template <typename Step>
constexpr GemmKernelSet Kernels(GemmInput input) {
  return {
      .input = input,
      .max_rows = 6,
      .tile = {nullptr, Tile<Step, 1, 4, false>, Tile<Step, 2, 4, false>, Tile<Step, 3, 2, false>,
               Tile<Step, 4, 2, false>, Tile<Step, 5, 2, false>, Tile<Step, 6, 2, false>},
      .stream = {nullptr, Tile<Step, 1, 4, true>, Tile<Step, 2, 4, true>}};
}
#else
template <typename Step>
constexpr GemmKernelSet Kernels(GemmInput input) {
  return {
      .input = input,
      .max_rows = 6,
      .tile = {nullptr, Tile<Step, 1, 8, false>, Tile<Step, 2, 4, false>, Tile<Step, 3, 2, false>,
               Tile<Step, 4, 2, false>, Tile<Step, 5, 2, false>, Tile<Step, 6, 2, false>},
      .stream = {nullptr, Tile<Step, 1, 8, true>}};
}
#endif

}  // namespace

extern constinit const GemmKernelSet kGemmFloat32 = Kernels<Float32Step>(GemmInput::kFloat32);
extern constinit const GemmKernelSet kGemmBFloat16 = Kernels<BFloat16Step>(kBFloat16Input);

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
