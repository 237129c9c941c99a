// One matrix product over packed weights: how the work is cut into blocks and handed to threads.
// RunLinear and RunConv1d prepare its operands.
#pragma once

#include <cstdint>

#include "runtime/cpu/gemm_kernels.h"
#include "runtime/cpu/packed_linear.h"

namespace sensorium {

// x as the kernels read it: row r of tap t starts at data + r * row_stride + t * tap_stride (bytes)
// and holds the weight's steps_per_tap() steps.
struct GemmActivations {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t row_stride = 0;
  int64_t tap_stride = 0;
};

// The kernels that read this weight.
const GemmKernelSet& KernelSet(const PackedLinear& w);

// Bytes of one row of x as these kernels read it.
int64_t InputRowBytes(const PackedLinear& w);

// A row stride that spreads rows over all sets of the caches: an odd number of cache lines, at
// least one of them padding. With a stride of 4096 bytes the 12 rows of a tile would share one set
// of L1.
int64_t SpreadStride(int64_t row_bytes);

// y[r, :] = act(sum over taps + bias), or y += ...; y [a.rows, w.out_features()].
void RunGemm(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
             const GemmActivations& a, Activation activation, bool add);

}  // namespace sensorium
