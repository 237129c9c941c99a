// A plan as arrays: what the ops of one forward pass read. Plain spans; the engine owns the storage.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/block_id.h"

namespace sensorium {

// Which cached tokens each sequence's new tokens attend to. `seqs` sequences lie one behind the
// other on the tokens axis (ragged): sequence s owns query rows [query_start[s], query_start[s+1]).
// Its query row i of n is at position context_len[s] - n + i when the attention is causal.
struct AttentionBatch {
  std::span<const int32_t> query_start;  // [seqs + 1], non-decreasing, starts at 0
  std::span<const int32_t> context_len;  // [seqs] cached plus new tokens, >= 1 where rows exist
  std::span<const BlockId> block_tables;  // [seqs, max_blocks], row s holds the blocks of s in order
  int32_t max_blocks = 0;                // the row stride of block_tables

  int32_t seqs() const { return static_cast<int32_t>(context_len.size()); }
};

// One forward pass of a decoder over prefill chunks and decodes of many sequences.
struct DecoderBatch {
  std::span<const int32_t> token_ids;     // [tokens]
  std::span<const int32_t> positions;     // [tokens]
  std::span<const int64_t> slot_mapping;  // [tokens] block_id * block_size + offset of its own K, V
  AttentionBatch self;                    // the sequences' own tokens, causal
  std::span<const int32_t> logit_rows;    // [rows] which tokens' logits are wanted, ascending

  int64_t tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

}  // namespace sensorium
