// The microkernels: a tile of rows x panels of outputs whose sums stay in registers over a run of
// steps. Twins of one loop: float32, bfloat16 pairs by vdpbf16ps, bfloat16 pairs widened.
//
// Registers   avx512: 12 rows x 2 vectors of sums, 2 of weights, 1 broadcast, of 32. avx2: 6 x 2 of
//             16. portable: 3 x 4 of 16, weights from memory.
// Traffic     per step of a 12-row tile 128 B of weights and 48 B of x for 768 multiply-adds (1536
//             in bfloat16): bound by the FMA units when both come from L2. With 1-2 rows bound by
//             DRAM: several panels at once keep as many streams open as the prefetchers like.
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

// kGroup vectors of each panel at a time: as many as the registers hold.
template <typename Step, int kRows, int kPanels, int kGroup, bool kPrefetch>
void Tile(const GemmTile& t) {
  constexpr int kVectors = kPanels * kGroup;
  for (int group = 0; group < kPanelVectors; group += kGroup) {
    F sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        const float* c =
            t.c + r * t.c_stride + j / kGroup * kGemmPanel + (group + j % kGroup) * kWidth;
        sum[r][j] = t.accumulate ? Load(c) : F{};
      }
    }
    // A pointer for every third row: the others are reached by the address modes (+ stride,
    // + 2 stride), which keeps 12 rows within the general registers.
    const char* a[(kRows + 2) / 3];
#pragma GCC unroll 4
    for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] = t.a + 3 * i * t.a_stride;
    const char* w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = t.w + p * t.w_stride + group * kWidth * 4;
#pragma GCC unroll 2
    for (int64_t step = t.steps; step > 0; --step) {
      if constexpr (kPrefetch) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          __builtin_prefetch(w[p] + kPrefetchBytes);
          __builtin_prefetch(w[p] + kPrefetchBytes + 64);
        }
      }
      Step::Run(
          sum, [&](int r) { return a[r / 3] + r % 3 * t.a_stride; },
          [&](int j) { return w[j / kGroup] + j % kGroup * kWidth * 4; });
#pragma GCC unroll 4
      for (int i = 0; i < (kRows + 2) / 3; ++i) a[i] += Step::kInputBytes;
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) w[p] += kGemmStepBytes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        float* c = t.c + r * t.c_stride + j / kGroup * kGemmPanel + (group + j % kGroup) * kWidth;
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
      .tile = {nullptr, Tile<Step, 1, 1, 2, false>, Tile<Step, 2, 1, 2, false>,
               Tile<Step, 3, 1, 2, false>, Tile<Step, 4, 1, 2, false>, Tile<Step, 5, 1, 2, false>,
               Tile<Step, 6, 1, 2, false>, Tile<Step, 7, 1, 2, false>, Tile<Step, 8, 1, 2, false>,
               Tile<Step, 9, 1, 2, false>, Tile<Step, 10, 1, 2, false>, Tile<Step, 11, 1, 2, false>,
               Tile<Step, 12, 1, 2, false>},
      .stream = {nullptr, Tile<Step, 1, 4, 2, true>, Tile<Step, 2, 4, 2, true>,
                 Tile<Step, 3, 2, 2, true>, Tile<Step, 4, 2, 2, true>, Tile<Step, 5, 2, 2, true>,
                 Tile<Step, 6, 2, 2, true>, Tile<Step, 7, 1, 2, true>, Tile<Step, 8, 1, 2, true>},
      .stream_panels = {0, 4, 4, 2, 2, 2, 2, 1, 1}};
}
#elif defined(__AVX2__)
template <typename Step>
constexpr GemmKernelSet Kernels(GemmInput input) {
  return {.input = input,
          .max_rows = 6,
          .tile = {nullptr, Tile<Step, 1, 1, 4, false>, Tile<Step, 2, 1, 4, false>,
                   Tile<Step, 3, 1, 2, false>, Tile<Step, 4, 1, 2, false>,
                   Tile<Step, 5, 1, 2, false>, Tile<Step, 6, 1, 2, false>},
          .stream = {nullptr, Tile<Step, 1, 2, 4, true>, Tile<Step, 2, 1, 4, true>},
          .stream_panels = {0, 2, 1}};
}
#else
template <typename Step>
constexpr GemmKernelSet Kernels(GemmInput input) {
  return {.input = input,
          .max_rows = 6,
          .tile = {nullptr, Tile<Step, 1, 1, 8, false>, Tile<Step, 2, 1, 4, false>,
                   Tile<Step, 3, 1, 2, false>, Tile<Step, 4, 1, 2, false>,
                   Tile<Step, 5, 1, 2, false>, Tile<Step, 6, 1, 2, false>},
          .stream = {nullptr, Tile<Step, 1, 1, 8, true>},
          .stream_panels = {0, 1}};
}
#endif

}  // namespace

extern constinit const GemmKernelSet kGemmFloat32 = Kernels<Float32Step>(GemmInput::kFloat32);
extern constinit const GemmKernelSet kGemmBFloat16 = Kernels<BFloat16Step>(kBFloat16Input);

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
