// One choice of Backend::ChooseTokens, on one row of logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/backend/token_choice.h"

namespace sensorium {

// What a choice works in, one at a time: of each worker of the pool.
class ChoiceScratch {
 public:
  struct Candidate {
    float scaled;  // (logit - largest) / temperature: 0 for the likeliest
    int32_t id;
  };
  static size_t Bytes(int64_t vocab) {
    return static_cast<size_t>(vocab) * (2 * sizeof(float) + sizeof(Candidate));
  }
  // REQUIRES: Bytes(vocab) at `memory`, aligned to 8
  ChoiceScratch(std::byte* memory, int64_t vocab)
      : candidates(reinterpret_cast<Candidate*>(memory), static_cast<size_t>(vocab)),
        filtered(reinterpret_cast<float*>(memory + candidates.size_bytes()),
                 static_cast<size_t>(vocab)),
        edited(filtered.data() + vocab, static_cast<size_t>(vocab)) {}

  std::span<Candidate> candidates;  // [vocab], as all
  std::span<float> filtered;        // the row after steps 1 and 2 of token_choice.h
  std::span<float> edited;          // and after step 3
};

// Fills in `chosen`, made for this choice, from the choice's row of logits [vocab]. Takes no
// memory.
void ChooseToken(ChosenToken& chosen, const TokenChoice& choice, std::span<const float> logits,
                 ChoiceScratch scratch);

}  // namespace sensorium
