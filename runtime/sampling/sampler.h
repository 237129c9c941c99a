// What one answer asks of the logits of its next token: its request's parameters, the prompt and
// the answer so far as a TokenChoice. The order of operations is the one of Hugging Face's
// generate(), with OpenAI's penalties:
//   1. logit_bias           logit += bias                                       (OpenAI)
//   2. repetition_penalty   of every id in prompt or answer, once: logit > 0 ? logit / p : logit *
//   p
//                           (Keskar et al. 2019, CTRL; HF RepetitionPenaltyLogitsProcessor)
//   3. presence, frequency  of every id in the answer: logit -= presence + count * frequency
//                                                                               (OpenAI)
// Then temperature, top_k, min_p, top_p and the draw, as runtime/backend/token_choice.h tells. What
// comes back as log-probability is the model's own: of the raw logits, before step 1.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/token_choice.h"
#include "runtime/sampling/sampling_params.h"

namespace sensorium {

class Sampler {
 public:
  // `stream` tells a request's answers apart. Ids outside the vocabulary (image placeholders in a
  // prompt) have no logit and are passed over. Takes all memory that max_tokens tokens will need.
  Sampler(const SamplingParams& params, int32_t vocab_size, std::span<const int32_t> prompt,
          int32_t max_tokens, uint64_t stream);
  Sampler(Sampler&&) = default;  // choice_ looks into edits_

  // The answer's next token is this.
  void Push(int32_t token);
  // What is to be chosen now; its edits are good until the next Push.
  const TokenChoice& choice() const { return choice_; }

 private:
  // The edit of an id, made if there is none.
  size_t At(int32_t id);

  const int32_t vocab_size_;
  const float repetition_, presence_, frequency_;
  std::vector<LogitEdit> edits_;  // ascending ids
  std::vector<int32_t> counts_;   // of each edit: how often it is in the answer
  TokenChoice choice_;
};

}  // namespace sensorium
