#include "runtime/sampling/sampler.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/check.h"

namespace sensorium {

Sampler::Sampler(const SamplingParams& params, int32_t vocab_size, std::span<const int32_t> prompt,
                 int32_t max_tokens, uint64_t stream)
    : vocab_size_(vocab_size),
      repetition_(params.repetition_penalty),
      presence_(params.presence_penalty),
      frequency_(params.frequency_penalty) {
  CHECK_GT(vocab_size, 0);
  choice_.temperature = params.temperature;
  choice_.top_k = params.top_k;
  choice_.top_p = params.top_p;
  choice_.min_p = params.min_p;
  choice_.seed = params.seed;
  choice_.stream = stream;

  const auto in_vocab = [this](int32_t id) { return id >= 0 && id < vocab_size_; };
  std::vector<int32_t> repeated;
  if (repetition_ != 1.0f) {
    std::copy_if(prompt.begin(), prompt.end(), std::back_inserter(repeated), in_vocab);
    std::sort(repeated.begin(), repeated.end());
    repeated.erase(std::unique(repeated.begin(), repeated.end()), repeated.end());
  }
  const bool by_token = repetition_ != 1.0f || presence_ != 0.0f || frequency_ != 0.0f;
  const size_t most =
      std::min(static_cast<size_t>(vocab_size), params.logit_bias.size() + repeated.size() +
                                                    static_cast<size_t>(by_token ? max_tokens : 0));
  edits_.reserve(most);
  counts_.reserve(most);
  for (const int32_t id : repeated) edits_.push_back({.id = id, .repetition = repetition_});
  counts_.resize(edits_.size());
  for (const auto& [id, bias] : params.logit_bias) {
    if (in_vocab(id)) edits_[At(id)].bias = bias;
  }
  choice_.edits = edits_;
}

size_t Sampler::At(int32_t id) {
  const auto at = std::lower_bound(edits_.begin(), edits_.end(), id,
                                   [](const LogitEdit& e, int32_t x) { return e.id < x; });
  const std::ptrdiff_t i = at - edits_.begin();
  if (at == edits_.end() || at->id != id) {
    edits_.insert(at, {.id = id});
    counts_.insert(counts_.begin() + i, 0);
  }
  return static_cast<size_t>(i);
}

void Sampler::Push(int32_t token) {
  ++choice_.position;
  if (repetition_ == 1.0f && presence_ == 0.0f && frequency_ == 0.0f) return;
  if (token < 0 || token >= vocab_size_) return;
  const size_t i = At(token);
  edits_[i].repetition = repetition_;
  edits_[i].penalty = presence_ + frequency_ * static_cast<float>(++counts_[i]);
  choice_.edits = edits_;
}

}  // namespace sensorium
