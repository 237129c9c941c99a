// What every op but the matrix products needs of a CPU level: a table of row kernels. One table per
// level; the sources (rms_norm.cc, softmax.cc, ...) are compiled once for each with that level's
// flags, into its namespace. Raw pointers and sizes only and no C++ library header, so that no
// inline function compiled for AVX-512 can end up as the linker's one copy.
//
// Rows are contiguous; a type is float32 or bfloat16 unless said otherwise. A result depends on its
// row alone and not on where it lies: reductions over a row run over fixed lanes, then a fixed
// tree.
#pragma once

#include <stdint.h>

namespace sensorium {

enum class CpuLevel : uint8_t;
enum class DType : uint8_t;
enum class GemmInput : uint8_t;  // how the matrix kernels read their left operand (gemm_kernels.h)

struct NormRow {
  void* y;        // [n]; may be x
  const void* x;  // [n]
  const float* weight;
  const float* bias;  // LayerNorm only
  int64_t n;
  float eps;
  DType y_type, x_type;
  bool add;  // y += ..., y float32; RmsNorm only
};

struct Kernels {
  // ---- Rows (convert_rows.cc) ----
  // y = x; x of any floating type.
  void (*convert)(void* y, DType y_type, const void* x, DType x_type, int64_t n);
  // y += x, or y = x when not `add`; x of any floating type, rounded to bfloat16 first if asked.
  void (*embed)(float* y, const void* x, DType x_type, bool round, bool add, int64_t n);
  // y = mean of `rows` rows of x, added in ascending order; x_stride in elements. One type.
  void (*mean_rows)(void* y, const void* x, int64_t x_stride, int64_t rows, DType type, int64_t n);

  void (*rms_norm)(const NormRow& row);
  void (*layer_norm)(const NormRow& row);
  // y = silu(gate) * up. y may be either.
  void (*silu_mul)(void* y, DType y_type, const void* up, DType up_type, const void* gate,
                   DType gate_type, int64_t n);
  // x [heads, 2 * half], in place; cosines and sines [half].
  void (*rope)(void* x, DType type, int64_t heads, int64_t half, const float* cosines,
               const float* sines);

  // ---- Attention (softmax.cc, pack_kv.cc) ----
  // s [n rounded up to 16] scores -> e^(scale s - max) for the matrix kernels, in place, zeros
  // behind n; returns their sum (as rounded). Elements of s at and behind n may hold anything.
  // REQUIRES: scale > 0, n >= 1.
  float (*softmax)(float* s, int64_t n, float scale, GemmInput output);
  // y = acc / sum.
  void (*normalize)(void* y, DType y_type, const float* acc, float sum, int64_t n);
  // Keys k [n <= 32, dims] (k_stride in elements) -> lanes [first_lane, first_lane + n) of a panel
  // of steps x 32 lanes x 4 bytes: one dim a step in float32, a pair (the second zero behind an odd
  // end) in bfloat16. The other lanes keep what they hold.
  void (*pack_keys)(void* panel, DType panel_type, int64_t first_lane, const void* k, DType k_type,
                    int64_t k_stride, int64_t n, int64_t dims);
  // Values v [n, dims] -> keys [first_key, first_key + n) of ceil(dims / 32) panels, panel_stride
  // bytes apart, of keys x 32 dims (float32) or pairs of keys x 32 dims x 2 (bfloat16).
  void (*pack_values)(void* panels, int64_t panel_stride, DType panel_type, int64_t first_key,
                      const void* v, DType v_type, int64_t v_stride, int64_t n, int64_t dims);
};

const Kernels& KernelsFor(CpuLevel level);

}  // namespace sensorium
