// The truth of ChooseTokens, in double precision, with a full sort: runtime/backend/token_choice.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/token_choice.h"

namespace sensorium::reference {

struct Choice {
  std::vector<double> logprobs;  // [vocab], of the row that is left by steps 1 and 2
  double raw_log_sum_exp = 0;
  std::vector<int32_t> likeliest;  // all ids above -inf, in order

  // Who may be drawn, likeliest first: a draw in [begin, end) takes it. One with [0, 1) when
  // greedy.
  struct Share {
    int32_t id;
    double begin, end;
  };
  std::vector<Share> shares;

  // How near a decision came to falling the other way, as a share of the mass or a difference of
  // logarithms: whether times are likelier than text, where min_p and top_p cut.
  double rule_margin = 1, cut_margin = 1;
};
Choice Choose(std::span<const float> logits, const TokenChoice& choice);

}  // namespace sensorium::reference
