// A mixture of experts: the router, the order of its rows, the sum of what the experts say.  CPU
// twin: runtime/cpu/moe.cc. The experts' products are linear.h's, one group of rows per expert.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// [tokens, k] arrays of a routing; strides in elements.
struct Routing {
  int32_t* ids;
  int64_t ids_stride;
  float* weights;
  int64_t weights_stride;
  int64_t tokens;
  int k, experts;
  bool operator==(const Routing&) const = default;
};

// softmax over logits [tokens, experts], then the k highest, lowest id on ties.
void MoeRoute(const Routing& routing, const float* logits, int64_t logits_stride, Queue& queue);

// (token, choice) pairs by ascending expert, tokens ascending within one. All device arrays:
// first_row [experts + 1], token_of [tokens * k], place_of [tokens * k]: where a pair's row is.
struct PairOrder {
  int32_t* first_row;
  int32_t* token_of;
  int32_t* place_of;
  bool operator==(const PairOrder&) const = default;
};
void SortPairs(const PairOrder& order, const Routing& routing, Queue& queue);

// y[t] += weight * rows[place] over a token's experts in ascending id. rows [tokens * k, columns].
void AddExperts(float* y, int64_t y_stride, const float* rows, const int32_t* place_of,
                const Routing& routing, int64_t columns, Queue& queue);

}  // namespace sensorium::cuda
