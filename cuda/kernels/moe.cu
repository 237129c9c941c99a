// moe.cu: a mixture's router, the order of its rows, and the sum over a token's experts.
//
// Source    Shazeer et al. 2017 (arXiv:1701.06538); softmax before top-k without renormalising as
//           in OLMoE (Muennighoff et al. 2024, arXiv:2409.02060).
// Shapes    logits [tokens, experts] float; ids int32 and weights float [tokens, k], any row
//           stride; rows [tokens * k, columns] float; y [tokens, columns] float.
// Launch    moe_route: grid tokens, one warp each. sort_pairs: one CTA of 256 threads, one thread
//           per expert in turns. add_experts: grid (tokens, columns / 1024), 128 threads.
// Traffic   add_experts k rows and y twice for each token: memory-bound. The others: a few KiB.
// Numerics  the softmax's sum runs lane by lane, then over the lanes in a fixed tree; a token's
//           experts are added in ascending id. Bits depend on the token's row alone.
#include "cuda/kernels/moe.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

// A NaN is never chosen before a number, so ids are always distinct and valid.
__device__ __forceinline__ float Rank(float logit) { return logit == logit ? logit : -INFINITY; }

__global__ void moe_route_kernel(Routing r, const float* logits, int64_t logits_stride) {
  const int lane = static_cast<int>(threadIdx.x);
  logits += blockIdx.x * logits_stride;
  int32_t* ids = r.ids + blockIdx.x * r.ids_stride;
  float* weights = r.weights + blockIdx.x * r.weights_stride;
  float last = INFINITY, max = 0.f, sum = 0.f;
  int last_id = -1;
  for (int i = 0; i < r.k; ++i) {
    // The best that comes behind the last choice in the order (highest logit, lowest id).
    float best = -INFINITY;
    int best_id = r.experts;
    for (int e = lane; e < r.experts; e += 32) {
      const float v = Rank(logits[e]);
      const bool behind = v < last || (v == last && e > last_id);
      if (behind && (v > best || (v == best && e < best_id))) best = v, best_id = e;
    }
    for (int step = 16; step > 0; step /= 2) {
      const float v = __shfl_xor_sync(kWholeWarpMask, best, step);
      const int e = __shfl_xor_sync(kWholeWarpMask, best_id, step);
      if (v > best || (v == best && e < best_id)) best = v, best_id = e;
    }
    if (i == 0) {
      max = logits[best_id];
      for (int e = lane; e < r.experts; e += 32) sum += expf(logits[e] - max);
      sum = WarpSum(sum);
    }
    if (lane == 0) {
      ids[i] = best_id;
      weights[i] = expf(logits[best_id] - max) / sum;
    }
    last = best, last_id = best_id;
  }
}

constexpr unsigned kSortThreads = 256;

__global__ void sort_pairs_kernel(PairOrder order, Routing r) {
  const int64_t pairs = r.tokens * r.k;
  const auto id = [&](int64_t pair) { return r.ids[pair / r.k * r.ids_stride + pair % r.k]; };
  for (int e = static_cast<int>(threadIdx.x); e < r.experts; e += kSortThreads) {
    int32_t count = 0;
    for (int64_t pair = 0; pair < pairs; ++pair) count += id(pair) == e;
    order.first_row[e + 1] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    order.first_row[0] = 0;
    for (int e = 0; e < r.experts; ++e) order.first_row[e + 1] += order.first_row[e];
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < r.experts; e += kSortThreads) {
    int32_t place = order.first_row[e];
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (id(pair) != e) continue;
      order.token_of[place] = static_cast<int32_t>(pair / r.k);
      order.place_of[pair] = place++;
    }
  }
}

constexpr int64_t kColumns = 1024;
constexpr unsigned kAddThreads = 128;

__global__ void add_experts_kernel(float* y, int64_t y_stride, const float* rows,
                                   const int32_t* place_of, Routing r, int64_t columns) {
  const int64_t token = blockIdx.x;
  place_of += token * r.k;
  const float* weights = r.weights + token * r.weights_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  // Places ascend with the expert, so the next expert is the least place behind the last.
  int32_t last = -1;
  for (int i = 0; i < r.k; ++i) {
    int next = -1;
    for (int c = 0; c < r.k; ++c) {
      if (place_of[c] > last && (next < 0 || place_of[c] < place_of[next])) next = c;
    }
    last = place_of[next];
    for (int64_t c = begin + threadIdx.x; c < end; c += kAddThreads) {
      y[token * y_stride + c] += weights[next] * rows[last * columns + c];
    }
  }
}

}  // namespace

void MoeRoute(const Routing& routing, const float* logits, int64_t logits_stride, Queue& queue) {
  if (routing.tokens == 0) return;
  launch(moe_route_kernel, static_cast<unsigned>(routing.tokens), 32, 0, queue, routing, logits,
         logits_stride);
}

void SortPairs(const PairOrder& order, const Routing& routing, Queue& queue) {
  if (routing.tokens == 0) return;
  launch(sort_pairs_kernel, 1, kSortThreads, 0, queue, order, routing);
}

void AddExperts(float* y, int64_t y_stride, const float* rows, const int32_t* place_of,
                const Routing& routing, int64_t columns, Queue& queue) {
  if (routing.tokens == 0 || columns == 0) return;
  const dim3 grid(static_cast<unsigned>(routing.tokens),
                  static_cast<unsigned>(CeilDiv(columns, kColumns)));
  launch(add_experts_kernel, grid, kAddThreads, 0, queue, y, y_stride, rows, place_of, routing,
         columns);
}

}  // namespace sensorium::cuda
