// Chooses the next token of one sequence from its logits. The order of operations is the one of
// Hugging Face's generate(), with OpenAI's penalties:
//   1. logit_bias           logit += bias                                       (OpenAI)
//   2. repetition_penalty   of every id in prompt or generated: logit > 0 ? logit / p : logit * p
//                           (Keskar et al. 2019, CTRL; HF RepetitionPenaltyLogitsProcessor)
//   3. presence, frequency  of every generated id: logit -= presence + count * frequency   (OpenAI)
//   4. temperature 0: the largest logit, the lowest id on ties. Done.
//   5. logit /= temperature
//   6. top_k                the k largest, and those that tie with the k-th       (HF
//   TopKLogitsWarper)
//   7. min_p                probability >= min_p * the largest                  (Nguyen et al.
//   2024)
//   8. top_p                the smallest set of likeliest tokens that reaches p of what is left
//                           (Holtzman et al. 2020)
//   9. one draw by (seed, stream, position): the first token, likeliest first, at which the
//      cumulative probability exceeds the draw.
// What comes back as log-probability is the model's own: of the raw logits, before step 1.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "runtime/sampling/sampling_params.h"

namespace sensorium {

// What samplers of one vocabulary work in, one at a time. Holds nothing between calls, so that one,
// taken at start, serves every request of a model; a Sample takes no memory of its own.
class SamplerScratch {
 public:
  static constexpr int32_t kMaxAlternatives = 20;
  explicit SamplerScratch(int32_t vocab_size);

 private:
  friend class Sampler;
  struct Candidate {
    float scaled;  // (logit - max) / temperature: 0 for the likeliest
    int32_t id;
  };
  std::vector<float> logits_;          // [vocab]: the row after steps 1 to 3
  std::vector<int32_t> counts_;        // [vocab]: zero between calls
  std::vector<Candidate> candidates_;  // at most [vocab]
  std::vector<std::pair<int32_t, float>> alternatives_;
};

// One Sampler serves the answers of one request. Constant after construction.
class Sampler {
 public:
  Sampler(SamplingParams params, int32_t vocab_size);

  struct Choice {
    int32_t token = 0;
    float logprob = 0;  // natural log
    // (id, logprob), likeliest first; in the scratch, until its next use.
    std::span<const std::pair<int32_t, float>> alternatives;
  };

  // `logits` [vocab_size] are raw. `stream` tells a request's answers apart; the draw's position is
  // generated.size(). Ids outside the vocabulary (image placeholders in a prompt) have no logit and
  // are passed over. Same arguments, same bits; earlier calls do not matter.
  // REQUIRES: the scratch was made for this vocab_size, num_alternatives <= kMaxAlternatives
  Choice Sample(std::span<const float> logits, std::span<const int32_t> prompt,
                std::span<const int32_t> generated, int32_t num_alternatives, uint64_t stream,
                SamplerScratch& scratch) const;

 private:
  void ApplyBiasAndPenalties(std::span<const int32_t> prompt, std::span<const int32_t> generated,
                             SamplerScratch& s) const;
  // Steps 5 to 9 on a row after steps 1 to 3.
  int32_t Draw(std::span<const float> row, float uniform, SamplerScratch& s) const;
  // candidates_ = all ids with (logit - max) / temperature >= floor, in id order.
  void Gather(std::span<const float> row, float max, float floor, SamplerScratch& s) const;

  const SamplingParams params_;
  const int32_t vocab_size_;
  const bool penalises_;  // steps 1 to 3 do something
};

}  // namespace sensorium
