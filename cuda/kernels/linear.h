// y = act(x W^T + b), dense or one weight per group of rows.  CPU twins: runtime/cpu/gemm.cc,
// runtime/cpu/packed_linear.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

enum class Activation : uint8_t { kNone, kGelu, kQuickGelu };

// A weight on the device: zeros behind `in` and `out`, so that no tile of it needs a bound.
struct LinearMatrix {
  const void* weight;  // [out padded to kOutMultiple, in padded to kInMultiple], 16-byte aligned
  const float* bias;   // [out padded]
  bool operator==(const LinearMatrix&) const = default;
};
inline constexpr int64_t kOutMultiple = 64, kInMultiple = 32;

struct LinearProblem {
  Rows y;
  ConstRows x;
  int64_t rows;  // of x; with groups: the most a group can have
  int64_t in, in_padded, out;
  Type type;  // of the weights, and what x is rounded to
  Activation activation = Activation::kNone;
  bool add = false;  // y += instead of y =; y float32, no activation

  LinearMatrix matrix = {};  // when there are no groups
  // Groups (experts): rows [first_row[g], first_row[g + 1]) of y are rows x_rows[..] of x times the
  // g-th matrix. Device arrays.
  int groups = 0;
  const LinearMatrix* matrices = nullptr;  // [groups]
  const int32_t* first_row = nullptr;      // [groups + 1]
  const int32_t* x_rows = nullptr;         // null: row r of x is row r
  bool operator==(const LinearProblem&) const = default;
};

void Linear(const LinearProblem& problem, Queue& queue);

// The end of a product that was made elsewhere: y = act(sums + b), or y += when `add`. sums
// [problem.rows, out]. REQUIRES: no groups.
void FinishLinear(const LinearProblem& problem, ConstRows sums, Queue& queue);

}  // namespace sensorium::cuda
