// Log-probabilities of a row of logits [vocab], float32. A token that was masked has -inf; NaN
// counts as -inf everywhere, so that one bad logit never decides and never poisons the row. Sums
// run in a fixed order in double: the same row gives the same bits wherever it is computed.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

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

// best = the `count` likeliest (id, log-probability), best first, lower id first on ties; ids at
// -inf are left out, so there may be fewer. Takes no memory when `best` has room for count + 1.
void TopLogProbs(std::span<const float> logits, double log_sum_exp, int32_t count,
                 std::vector<std::pair<int32_t, float>>& best);

}  // namespace sensorium
