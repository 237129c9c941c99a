// Attention of query rows over keys that lie in KV blocks or in rows of a matrix.  CPU twins:
// runtime/cpu/paged_attention.cc, runtime/cpu/encoder_attention.cc
//
// A row's keys are cut at multiples of kSplitKeys and its pieces merged in ascending order: the cut
// depends on the key's position alone, so a row has the same bits in a decode step, in a prefill
// chunk of any length and beside any neighbours.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/store_kv.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

inline constexpr int kTileRows = 64;    // query rows of a task at most
inline constexpr int kSplitKeys = 512;  // keys of a task at most; a multiple of every tile of keys
inline constexpr int kMaxHeadDim = 256;

// One CTA's work for one kv head: some rows of a sequence's (new token, query head of the kv head)
// pairs, tokens outermost, over keys [first_key, end_key).
struct AttentionTask {
  int32_t query_begin;          // the sequence's first row of q
  int32_t first_row, num_rows;  // of its pairs; num_rows <= kTileRows; 0: nothing to do
  int32_t first_limit;          // keys that its first new token sees
  int32_t limit_step;           // and how many more each further one: 1 causal, 0 otherwise
  int32_t first_key, end_key;   // at most kSplitKeys; 0 < end_key - first_key where there are rows
  int32_t sequence;             // whose keys
  int32_t partial;              // first row of its partial results, or -1: writes y itself
};
// A tile of rows whose keys were cut: its pieces' partial results lie num_rows apart from
// `partial`.
// num_rows 0: nothing to do.
struct MergeTask {
  int32_t query_begin, first_row, num_rows, first_limit, limit_step, partial;
};

// Where key `i` of a sequence lies: in a block of the cache, or in row sequence * kv_len + i.
struct AttentionKeys {
  ConstRows k, v;                         // dense: rows of [kv_heads, head_dim]
  int64_t kv_len = 0;                     // dense: keys of a sequence
  KvLayer blocks = {};                    // paged when block_tables is set
  const int32_t* block_tables = nullptr;  // device [sequences, max_blocks]
  int64_t max_blocks = 0;
  bool operator==(const AttentionKeys&) const = default;
};

struct AttentionProblem {
  Rows y;
  ConstRows q;  // [tokens, heads, head_dim]
  AttentionKeys keys;
  int heads, kv_heads, head_dim;
  float scale;
  Type type;  // what q, k, v and the weights are rounded to
  float* partials =
      nullptr;  // [partial rows, kv_heads, head_dim + 2]: sums, maximum, sum of weights
  bool operator==(const AttentionProblem&) const = default;
};
inline size_t PartialBytes(int64_t rows, int64_t kv_heads, int64_t head_dim) {
  return static_cast<size_t>(rows * kv_heads * (head_dim + 2)) * sizeof(float);
}

// tasks and merges are device arrays. REQUIRES: head_dim <= kMaxHeadDim.
void Attention(const AttentionProblem& problem, const AttentionTask* tasks, int64_t num_tasks,
               const MergeTask* merges, int64_t num_merges, Queue& queue);

}  // namespace sensorium::cuda
