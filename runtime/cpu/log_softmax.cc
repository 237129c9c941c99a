#include "runtime/cpu/log_softmax.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;  // independent partial sums: what the compiler turns into vectors

// exp(x) for x <= 0, within 2 ulp; at most 2e-38 for anything below -87, -inf and NaN. Cephes' expf
// (Moshier): x = n ln 2 + r with ln 2 in two parts, a polynomial in r, 2^n by its exponent bits.
// Branchless, where the C library's exp would cost 1 ms for a vocabulary of 152064.
inline float ExpOfNonPositive(float x) {
  x = x > -87.0f ? x : -87.0f;
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// Every comparison with NaN is false, so NaN never gets in.
float Max(std::span<const float> x) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, kNegativeInfinity);
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  float max = kNegativeInfinity;
  for (; i < x.size(); ++i) max = x[i] > max ? x[i] : max;
  for (const float lane : lanes) max = lane > max ? lane : max;
  return max;
}

}  // namespace

int32_t Argmax(std::span<const float> logits) {
  CHECK(!logits.empty());
  const float max = Max(logits);
  if (!(max > kNegativeInfinity)) return 0;
  const auto first = std::find(logits.begin(), logits.end(), max);
  return static_cast<int32_t>(first - logits.begin());
}

double LogSumExp(std::span<const float> logits) {
  const float max = Max(logits);
  if (std::isinf(max)) return max;
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += ExpOfNonPositive(logits[i + l] - max);
  }
  for (size_t l = 0; i < logits.size(); ++i, ++l) lanes[l] += ExpOfNonPositive(logits[i] - max);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return static_cast<double>(max) + std::log(sum);
}

double SumExp(std::span<const float> logits, float max, float temperature, float floor) {
  const auto term = [=](float logit) {
    const float x = (logit - max) / temperature;
    const float e = ExpOfNonPositive(x);
    return x >= floor ? e : 0.0f;
  };
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += term(logits[i + l]);
  }
  for (size_t l = 0; i < logits.size(); ++i, ++l) lanes[l] += term(logits[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

float LogProb(std::span<const float> logits, double log_sum_exp, int32_t id) {
  CHECK(id >= 0 && id < static_cast<int32_t>(logits.size())) << id << " of " << logits.size();
  const float logit = logits[id];
  if (!(logit > kNegativeInfinity)) return kNegativeInfinity;  // masked or NaN
  if (std::isinf(log_sum_exp)) return std::isinf(logit) ? 0.0f : kNegativeInfinity;
  return static_cast<float>(static_cast<double>(logit) - log_sum_exp);
}

size_t TopLogProbs(std::span<const float> logits, double log_sum_exp,
                   std::span<TokenLogProb> best) {
  size_t count = 0;  // best[0, count) are (id, logit), best first, until the end
  // Ids come in ascending order, so that one which only ties with the last of a full list is out.
  float worst = best.empty() ? std::numeric_limits<float>::infinity() : kNegativeInfinity;
  for (size_t id = 0; id < logits.size(); ++id) {
    const float logit = logits[id];
    if (!(logit > worst)) continue;
    size_t at = count < best.size() ? count++ : count - 1;
    for (; at > 0 && best[at - 1].second < logit; --at) best[at] = best[at - 1];
    best[at] = {static_cast<int32_t>(id), logit};
    if (count == best.size()) worst = best[count - 1].second;
  }
  for (auto& [id, value] : best.first(count)) value = LogProb(logits, log_sum_exp, id);
  return count;
}

}  // namespace sensorium
