// Tokens out of rows of logits.  CPU twin: runtime/cpu/choose_tokens.cc. What a choice is and does,
// in which order: runtime/backend/token_choice.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

inline constexpr int64_t kMostVocab = int64_t{1} << 18;  // ids; two sets of bits in shared memory
inline constexpr int kMostLikeliest = 128;

struct TokenEdit {
  int32_t id;
  float bias, repetition, penalty;
};

// What one choice is asked, with offsets in bytes into the arrays it was sent with.
struct Choice {
  const float* logits;  // [vocab]
  uint64_t seed, stream, position;
  uint32_t banned[2], edits, asked;  // int32 ids; TokenEdits, ascending ids; int32 ids
  int32_t num_banned[2], num_edits, num_asked;
  int32_t range_from[4], range_to[4];  // banned ids [from, to)
  int32_t timestamp_begin;             // -1: no rule for times
  int32_t num_likeliest;               // at most kMostLikeliest
  int32_t top_k;                       // 0: off
  float temperature, top_p;            // 0: greedy; 1: off
  float log_min_p;                     // -inf: off
  uint32_t answer;                     // where its ChoiceAnswer goes, an offset into the answers
  uint32_t padding;
};

// Followed by num_likeliest LikelyTokens, num_asked floats, and zeros up to a multiple of 8 bytes.
struct ChoiceAnswer {
  double raw_log_sum_exp;  // only where something was asked
  int32_t token;
  float logprob;
  int32_t num_likeliest;  // there are
  int32_t padding;
};
struct LikelyToken {
  int32_t id;
  float logprob;
};
inline size_t AnswerBytes(int64_t num_likeliest, int64_t num_asked) {
  return sizeof(ChoiceAnswer) + static_cast<size_t>(num_likeliest) * sizeof(LikelyToken) +
         static_cast<size_t>(CeilDiv<int64_t>(num_asked, 2)) * 8;
}

// `choices` [count], `arrays` and `answers` lie on the device, 8-byte aligned; vocab is at most
// kMostVocab. `edits`: some choice has edits.
void ChooseTokens(const Choice* choices, int64_t count, const std::byte* arrays, std::byte* answers,
                  int64_t vocab, bool edits, Queue& queue);

}  // namespace sensorium::cuda
