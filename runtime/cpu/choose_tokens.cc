#include "runtime/cpu/choose_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/cpu/counter_rng.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/log_softmax.h"

namespace sensorium {
namespace {

using Candidate = ChoiceScratch::Candidate;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
// Tokens less than e^-87 times as likely as the best are never drawn: a draw has 24 bits.
constexpr float kLowestScaled = -87.0f;

bool Bans(const TokenChoice& c) {
  return c.timestamp_begin >= 0 || !c.banned[0].empty() || !c.banned[1].empty() ||
         std::any_of(c.banned_ranges.begin(), c.banned_ranges.end(),
                     [](const TokenChoice::Range& r) { return r.from < r.to; });
}

// Steps 1 and 2.
void Filter(const TokenChoice& c, std::span<const float> logits, std::span<float> row) {
  std::copy(logits.begin(), logits.end(), row.begin());
  for (const auto& ids : c.banned) {
    for (const int32_t id : ids) row[id] = kNegativeInfinity;
  }
  for (const auto& [from, to] : c.banned_ranges) {
    if (from < to) std::fill(row.begin() + from, row.begin() + to, kNegativeInfinity);
  }
  if (c.timestamp_begin < 0) return;
  const std::span<float> text = row.first(static_cast<size_t>(c.timestamp_begin));
  if (text.empty()) return;
  const double times = LogSumExp(row.subspan(text.size()));
  if (times > text[Argmax(text)]) std::fill(text.begin(), text.end(), kNegativeInfinity);
}

// Step 3.
void Edit(std::span<const LogitEdit> edits, std::span<float> row) {
  for (const LogitEdit& e : edits) {
    float logit = row[e.id] + e.bias;
    logit = logit > 0 ? logit / e.repetition : logit * e.repetition;
    row[e.id] = logit - e.penalty;
  }
}

// All ids with (logit - max) / temperature >= floor, in id order, at the beginning of `candidates`.
size_t Gather(std::span<const float> row, float max, float temperature, float floor,
              std::span<Candidate> candidates) {
  size_t count = 0;
  for (size_t id = 0; id < row.size(); ++id) {
    const float scaled = (row[id] - max) / temperature;
    if (scaled >= floor) candidates[count++] = {scaled, static_cast<int32_t>(id)};
  }
  return count;
}

// Steps 5 to 9. A vocabulary is never sorted: whatever asks for the likeliest tokens looks at those
// within 4 of the best scaled logit first (2 % of its probability and more), and doubles that depth
// while they do not suffice: a few passes of comparisons, and a sort of a few hundred.
int32_t Draw(const TokenChoice& c, std::span<const float> row, std::span<Candidate> candidates) {
  const int32_t best = Argmax(row);
  const float max = row[best];
  if (!std::isfinite(max)) return best;  // all masked, or a bias that leaves no choice

  // Steps 6 and 7: the lowest scaled logit that may be drawn. A masked token's, -inf, is below it.
  float floor = kLowestScaled;
  if (c.top_k > 0 && c.top_k < static_cast<int32_t>(row.size())) {
    for (float depth = 4;; depth *= 2) {
      const bool all = !(-depth > floor);
      const size_t count = Gather(row, max, c.temperature, all ? floor : -depth, candidates);
      const size_t k = static_cast<size_t>(c.top_k);
      if (count >= k) {
        const auto kth = candidates.begin() + static_cast<std::ptrdiff_t>(k - 1);
        std::nth_element(
            candidates.begin(), kth, candidates.begin() + static_cast<std::ptrdiff_t>(count),
            [](const Candidate& a, const Candidate& b) { return a.scaled > b.scaled; });
        floor = kth->scaled;
        break;
      }
      if (all) break;  // fewer than k are not masked
    }
  }
  if (c.min_p > 0) floor = std::clamp(std::log(c.min_p), floor, 0.0f);

  // The mass of what is left, in units of the likeliest token's.
  const double total = SumExp(row, max, c.temperature, floor);

  // Steps 8 and 9. Without top_p what is needed ends at the draw itself.
  const float uniform = Uniform(c.seed, c.stream, c.position);
  const bool nucleus = c.top_p < 1.0f;
  const double needed = total * (nucleus ? c.top_p : uniform);
  for (float depth = 4;; depth *= 2) {
    const bool all = !(-depth > floor);
    const auto likeliest =
        candidates.first(Gather(row, max, c.temperature, all ? floor : -depth, candidates));
    std::sort(likeliest.begin(), likeliest.end(), [](const Candidate& a, const Candidate& b) {
      return a.scaled != b.scaled ? a.scaled > b.scaled : a.id < b.id;
    });
    double mass = 0;
    size_t kept = 0;
    while (kept < likeliest.size() && (kept == 0 || (nucleus ? mass < needed : mass <= needed))) {
      mass += std::exp(static_cast<double>(likeliest[kept++].scaled));
    }
    const bool enough = nucleus ? mass >= needed : mass > needed;
    if (!enough && !all) continue;
    if (!nucleus) return likeliest[kept - 1].id;
    const double drawn = mass * uniform;
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      sum += std::exp(static_cast<double>(likeliest[i].scaled));
      if (sum > drawn) return likeliest[i].id;
    }
    return likeliest[kept - 1].id;
  }
}

}  // namespace

void ChooseToken(ChosenToken& chosen, const TokenChoice& choice, std::span<const float> logits,
                 ChoiceScratch scratch) {
  if (!choice.asked.empty()) {
    for (size_t i = 0; i < choice.asked.size(); ++i) chosen.asked[i] = logits[choice.asked[i]];
    chosen.raw_log_sum_exp = LogSumExp(logits);
  }
  std::span<const float> filtered = logits;
  if (Bans(choice)) {
    Filter(choice, logits, scratch.filtered);
    filtered = scratch.filtered;
  }
  std::span<const float> edited = filtered;
  if (!choice.edits.empty()) {
    std::copy(filtered.begin(), filtered.end(), scratch.edited.begin());
    Edit(choice.edits, scratch.edited);
    edited = scratch.edited;
  }
  chosen.token = choice.temperature > 0 ? Draw(choice, edited, scratch.candidates) : Argmax(edited);
  const double log_sum_exp = LogSumExp(filtered);
  chosen.logprob = LogProb(filtered, log_sum_exp, chosen.token);
  chosen.likeliest = chosen.likeliest.first(TopLogProbs(filtered, log_sum_exp, chosen.likeliest));
}

// Each choice is one thread's, so that its bits do not depend on how many there are.
void CpuBackend::DoChooseTokens(std::span<ChosenToken> chosen, ConstTensorView logits,
                                std::span<const TokenChoice> choices) {
  const int64_t vocab = logits.dim(1);
  const size_t bytes = ChoiceScratch::Bytes(vocab);
  for (int w = 0; w < pool_.threads(); ++w) worker_scratch_[w].Reserve(bytes);
  pool_.ParallelForWorkers(static_cast<int64_t>(choices.size()), [&](int64_t i, int worker) {
    const float* row = logits.as<const float>() + choices[i].row * logits.row_stride();
    ChooseToken(chosen[i], choices[i], {row, static_cast<size_t>(vocab)},
                {worker_scratch_[worker].data(), vocab});
  });
}

}  // namespace sensorium
