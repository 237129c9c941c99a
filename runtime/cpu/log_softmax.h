// Log-probabilities of a row of logits [vocab], float32. A token that was masked has -inf; NaN
// counts as -inf everywhere, so that one bad logit never decides and never poisons the row. Sums
// run in a fixed order in double: the same row gives the same bits wherever it is computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/backend/token_choice.h"

namespace sensorium {

// Id of the largest logit, the lowest id on ties; 0 when nothing is above -inf.
// REQUIRES: !logits.empty()
int32_t Argmax(std::span<const float> logits);

// log(sum(exp(logits))); -inf when nothing is above -inf, +inf when a logit is.
double LogSumExp(std::span<const float> logits);

// sum(exp(x)) over those x = (logit - max) / temperature with floor <= x.
// REQUIRES: max is the largest logit and finite; -87 <= floor <= 0
double SumExp(std::span<const float> logits, float max, float temperature, float floor);

// Natural log-probability of `id` given the row's LogSumExp; -inf for a masked id or an empty row.
float LogProb(std::span<const float> logits, double log_sum_exp, int32_t id);

// Fills `best` with as many of the likeliest (id, log-probability) as it holds, best first, lower
// id first on ties, and says how many: ids at -inf are left out, so there may be fewer.
size_t TopLogProbs(std::span<const float> logits, double log_sum_exp, std::span<TokenLogProb> best);

}  // namespace sensorium
