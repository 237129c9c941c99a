#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/sampling/counter_rng.h"
#include "runtime/sampling/log_softmax.h"

namespace sensorium {

namespace {

// Tokens less than e^-87 times as likely as the best are never drawn: a draw has 24 bits.
constexpr float kLowestScaled = -87.0f;

}  // namespace

SamplerScratch::SamplerScratch(int32_t vocab_size) : logits_(vocab_size), counts_(vocab_size) {
  candidates_.reserve(vocab_size);
  alternatives_.reserve(kMaxAlternatives + 1);
}

Sampler::Sampler(SamplingParams params, int32_t vocab_size)
    : params_(std::move(params)),
      vocab_size_(vocab_size),
      penalises_(!params_.logit_bias.empty() || params_.repetition_penalty != 1.0f ||
                 params_.presence_penalty != 0.0f || params_.frequency_penalty != 0.0f) {
  CHECK_GT(vocab_size, 0);
}

Sampler::Choice Sampler::Sample(std::span<const float> logits, std::span<const int32_t> prompt,
                                std::span<const int32_t> generated, int32_t num_alternatives,
                                uint64_t stream, SamplerScratch& scratch) const {
  CHECK_EQ(static_cast<int64_t>(logits.size()), int64_t{vocab_size_});
  CHECK_EQ(logits.size(), scratch.logits_.size());
  CHECK_LE(num_alternatives, SamplerScratch::kMaxAlternatives);
  std::span<const float> row = logits;
  if (penalises_) {
    std::copy(logits.begin(), logits.end(), scratch.logits_.begin());
    ApplyBiasAndPenalties(prompt, generated, scratch);
    row = scratch.logits_;
  }
  Choice choice;
  choice.token = params_.temperature > 0
                     ? Draw(row, Uniform(params_.seed, stream, generated.size()), scratch)
                     : Argmax(row);
  const double log_sum_exp = LogSumExp(logits);
  choice.logprob = LogProb(logits, log_sum_exp, choice.token);
  TopLogProbs(logits, log_sum_exp, num_alternatives, scratch.alternatives_);
  choice.alternatives = scratch.alternatives_;
  return choice;
}

void Sampler::ApplyBiasAndPenalties(std::span<const int32_t> prompt,
                                    std::span<const int32_t> generated, SamplerScratch& s) const {
  std::vector<float>& row = s.logits_;
  std::vector<int32_t>& counts = s.counts_;
  const auto in_vocab = [this](int32_t id) { return id >= 0 && id < vocab_size_; };
  for (const auto& [id, bias] : params_.logit_bias) {
    if (in_vocab(id)) row[id] += bias;
  }
  // counts says what has been done: -1 for an id that was penalised as a repetition, so that one
  // that occurs twice pays once.
  if (params_.repetition_penalty != 1.0f) {
    for (const std::span<const int32_t> ids : {prompt, generated}) {
      for (const int32_t id : ids) {
        if (!in_vocab(id) || counts[id] != 0) continue;
        counts[id] = -1;
        float& logit = row[id];
        logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
      }
    }
    for (const std::span<const int32_t> ids : {prompt, generated}) {
      for (const int32_t id : ids) {
        if (in_vocab(id)) counts[id] = 0;
      }
    }
  }
  if (params_.presence_penalty != 0.0f || params_.frequency_penalty != 0.0f) {
    for (const int32_t id : generated) {
      if (in_vocab(id)) ++counts[id];
    }
    for (const int32_t id : generated) {
      if (!in_vocab(id) || counts[id] == 0) continue;
      row[id] -=
          params_.presence_penalty + params_.frequency_penalty * static_cast<float>(counts[id]);
      counts[id] = 0;
    }
  }
}

void Sampler::Gather(std::span<const float> row, float max, float floor, SamplerScratch& s) const {
  s.candidates_.clear();
  for (int32_t id = 0; id < vocab_size_; ++id) {
    const float scaled = (row[id] - max) / params_.temperature;
    if (scaled >= floor) s.candidates_.push_back({scaled, id});
  }
}

// A vocabulary is never sorted. Whatever asks for the likeliest tokens looks at those within 4 of
// the best scaled logit first (2 % of its probability and more), and doubles that depth while they
// do not suffice: a few passes of comparisons, and a sort of a few hundred.
int32_t Sampler::Draw(std::span<const float> row, float uniform, SamplerScratch& s) const {
  using Candidate = SamplerScratch::Candidate;
  std::vector<Candidate>& candidates = s.candidates_;
  const int32_t best = Argmax(row);
  const float max = row[best];
  if (!std::isfinite(max)) return best;  // all masked, or a bias that leaves no choice

  // Steps 6 and 7: the lowest scaled logit that may be drawn. A masked token's, -inf, is below it.
  float floor = kLowestScaled;
  if (params_.top_k > 0 && params_.top_k < vocab_size_) {
    for (float depth = 4;; depth *= 2) {
      const bool all = !(-depth > floor);
      Gather(row, max, all ? floor : -depth, s);
      const size_t k = static_cast<size_t>(params_.top_k);
      if (candidates.size() >= k) {
        std::nth_element(
            candidates.begin(), candidates.begin() + (k - 1), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.scaled > b.scaled; });
        floor = candidates[k - 1].scaled;
        break;
      }
      if (all) break;  // fewer than k are not masked
    }
  }
  if (params_.min_p > 0) floor = std::clamp(std::log(params_.min_p), floor, 0.0f);

  // The mass of what is left, in units of the likeliest token's.
  const double total = SumExp(row, max, params_.temperature, floor);

  // Steps 8 and 9. Without top_p what is needed ends at the draw itself.
  const bool nucleus = params_.top_p < 1.0f;
  const double needed = total * (nucleus ? params_.top_p : uniform);
  for (float depth = 4;; depth *= 2) {
    const bool all = !(-depth > floor);
    Gather(row, max, all ? floor : -depth, s);
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      return a.scaled != b.scaled ? a.scaled > b.scaled : a.id < b.id;
    });
    double mass = 0;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || (nucleus ? mass < needed : mass <= needed))) {
      mass += std::exp(static_cast<double>(candidates[kept++].scaled));
    }
    const bool enough = nucleus ? mass >= needed : mass > needed;
    if (!enough && !all) continue;
    if (!nucleus) return candidates[kept - 1].id;
    const double drawn = mass * uniform;
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      sum += std::exp(static_cast<double>(candidates[i].scaled));
      if (sum > drawn) return candidates[i].id;
    }
    return candidates[kept - 1].id;
  }
}

}  // namespace sensorium
