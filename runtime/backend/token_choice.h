// Tokens out of logits: what Backend::ChooseTokens is asked, and what it answers. One choice does,
// in this order, on one row of logits [vocab] float32:
//
//   1. A NaN counts as -inf here and below. The banned ids become -inf.
//   2. timestamp_begin >= 0: when the ids from it on are together likelier than the likeliest one
//      below it, all ids below it are banned too (openai/whisper, decoding.py,
//      ApplyTimestampRules). Log-probabilities are those of this row: of what is left, before
//      anything below.
//   3. Each edit: logit += bias, then logit > 0 ? logit / repetition : logit * repetition, then
//      logit -= penalty.
//   4. temperature 0: the largest logit, the lowest id on ties. Done.
//   5. scaled = (logit - largest) / temperature, in float32. What is below -87 is never drawn:
//      a draw has 24 bits.
//   6. top_k     the k largest, and those that tie with the k-th        (HF TopKLogitsWarper)
//   7. min_p     exp(scaled) >= min_p                                   (Nguyen et al. 2024)
//   8. top_p     the smallest set of likeliest tokens that reaches p of the mass of what is left
//                                                                       (Holtzman et al. 2020)
//   9. One draw by (seed, stream, position), from Philox 4x32-10 (runtime/cpu/counter_rng.h): the
//      first token, likeliest first and lowest id first on ties, at which the cumulative mass
//      exceeds the draw.
//
// A row in which nothing is above -inf gives token 0 with log-probability -inf.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sensorium {

using TokenLogProb = std::pair<int32_t, float>;  // id, natural logarithm of its probability

// Step 3 for one id.
struct LogitEdit {
  int32_t id = 0;
  float bias = 0;
  float repetition = 1;  // > 0
  float penalty = 0;
};

// Its spans are read before ChooseTokens returns.
struct TokenChoice {
  struct Range {
    int32_t from = 0, to = 0;  // ids [from, to); none when from >= to
  };
  static constexpr int32_t kMostLikeliest = 128;

  int32_t row = 0;  // of the logits; several choices may read the same one
  // What is banned: ids, in any order, and ranges. The same span in many choices is sent once.
  std::array<std::span<const int32_t>, 2> banned = {};
  std::array<Range, 4> banned_ranges = {};
  int32_t timestamp_begin = -1;      // -1: no such rule
  std::span<const LogitEdit> edits;  // ascending ids

  float temperature = 0;  // >= 0
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // (0, 1]; 1: off
  float min_p = 0;        // [0, 1); 0: off
  uint64_t seed = 0, stream = 0, position = 0;

  int32_t num_likeliest = 0;       // how many of the likeliest are wanted, at most kMostLikeliest
  std::span<const int32_t> asked;  // ids whose logits are wanted, before step 1
};

struct ChosenToken {
  int32_t token = 0;
  float logprob = 0;
  double raw_log_sum_exp = 0;         // of the row before the bans; only where something was asked
  std::span<TokenLogProb> likeliest;  // likeliest first, lower id first on ties; none at -inf
  std::span<float> asked;             // the logits, in the order of the ids
};

// The answers of one call. They are there when Backend::Wait has returned; until then its owner
// keeps it and gives it to no other call.
class ChosenTokens {
 public:
  // Prepare takes no memory for as much as this.
  void Reserve(size_t choices, size_t likeliest, size_t asked) {
    chosen_.reserve(choices);
    likeliest_.reserve(likeliest);
    asked_.reserve(asked);
  }
  // Room for these answers, which the backend fills in: `likeliest` as long as was wanted.
  std::span<ChosenToken> Prepare(std::span<const TokenChoice> choices) {
    size_t likeliest = 0, asked = 0;
    for (const TokenChoice& c : choices) {
      likeliest += static_cast<size_t>(c.num_likeliest);
      asked += c.asked.size();
    }
    chosen_.assign(choices.size(), {});
    likeliest_.resize(likeliest);
    asked_.resize(asked);
    std::span<TokenLogProb> free_likeliest = likeliest_;
    std::span<float> free_asked = asked_;
    for (size_t i = 0; i < choices.size(); ++i) {
      const size_t n = static_cast<size_t>(choices[i].num_likeliest);
      chosen_[i].likeliest = free_likeliest.first(n);
      chosen_[i].asked = free_asked.first(choices[i].asked.size());
      free_likeliest = free_likeliest.subspan(n);
      free_asked = free_asked.subspan(choices[i].asked.size());
    }
    return chosen_;
  }

  std::span<const ChosenToken> all() const { return chosen_; }
  const ChosenToken& operator[](size_t i) const { return chosen_[i]; }

 private:
  std::vector<ChosenToken> chosen_;  // one for each choice, in order
  std::vector<TokenLogProb> likeliest_;
  std::vector<float> asked_;
};

}  // namespace sensorium
