// What the matrix products need of a CPU level: a table of kernels. One table per level, its
// sources (gemm_tiles.cc, gemm_epilogue.cc) compiled once for each with that level's flags. Plain
// pointers and sizes; no C++ library header, so that no inline function compiled for AVX-512 can
// end up as the linker's one copy.
#pragma once

#include <stdint.h>

namespace sensorium {

enum class CpuLevel : uint8_t;
enum class Activation : uint8_t;

inline constexpr int kGemmPanel = 32;       // outputs per panel
inline constexpr int kGemmStepBytes = 128;  // of a panel; see packed_linear.h
inline constexpr int kGemmMaxRows = 12;     // of any level's tile

// c[r, n] (+)= sum over steps of a[r, step] w[step, n], for a fixed number of rows of one panel.
// Each (r, n) is one chain of multiply-adds in ascending order, the same in every kernel of a
// level.
struct GemmTile {
  float* c;          // [rows, 32]
  int64_t c_stride;  // floats
  const char* a;     // [rows, steps * step_bytes of the kernel set]
  int64_t a_stride;  // bytes
  const char* w;     // [steps, 128 bytes]
  int64_t steps;
  bool accumulate;  // go on from what c holds, instead of from zero
};
using GemmTileFn = void (*)(const GemmTile& tile);

// How the kernels read x. A step of a row is 4 bytes, or 8 for kRoundedFloat32.
enum class GemmInput : uint8_t {
  kFloat32,
  kBFloat16,        // pairs, for vdpbf16ps
  kRoundedFloat32,  // rounded to bfloat16 and widened again: bfloat16 weights without vdpbf16ps
};

struct GemmKernelSet {
  GemmInput input;
  int max_rows;                         // of `tile`
  GemmTileFn tile[kGemmMaxRows + 1];    // by number of rows
  GemmTileFn stream[kGemmMaxRows + 1];  // the same for weights that come from DRAM; null for more
                                        // rows than one pass over a whole panel serves well
};

// y = act(c + bias), or y += c + bias. The same vector code for every element, wherever it lies.
struct GemmFinish {
  void* y;           // [rows, columns] float32 or bfloat16
  int64_t y_stride;  // elements
  const float* c;    // [rows, columns padded to 32]
  int64_t c_stride;
  const float* bias;  // [columns padded to 32]
  int64_t rows, columns;
  Activation activation;
  bool y_is_bfloat16;
  bool add;  // y float32
};

struct GemmKernels {
  const GemmKernelSet* float32;  // by storage type of the weights
  const GemmKernelSet* bfloat16;
  void (*finish)(const GemmFinish& f);
  // y [padded] <- x [n] as `input`, zeros behind n. x float32 or bfloat16.
  void (*convert)(void* y, GemmInput input, const void* x, bool x_is_bfloat16, int64_t n,
                  int64_t padded);
  // A panel's run of bfloat16 pairs [steps, 32, 2] as float32 [2 * steps, 32].
  void (*widen)(float* y, const void* panel, int64_t steps);
  void (*silu_mul)(float* y, const float* up, const float* gate, int64_t n);  // y may be up or gate
};

const GemmKernels& GemmKernelsFor(CpuLevel level);

}  // namespace sensorium
