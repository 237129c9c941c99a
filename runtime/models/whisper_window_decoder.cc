#include "runtime/models/whisper_window_decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/models/compression_ratio.h"
#include "runtime/sampling/log_softmax.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {

namespace {
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
}

WhisperWindowDecoder::WhisperWindowDecoder(const WhisperVocabulary& vocabulary,
                                           const Tokenizer& tokenizer,
                                           const WhisperWindowOptions& options,
                                           std::vector<int32_t> prompt, int32_t sot_index,
                                           int32_t text_context)
    : vocabulary_(vocabulary),
      tokenizer_(tokenizer),
      options_(options),
      prompt_(std::move(prompt)),
      sot_index_(sot_index),
      text_context_(text_context),
      sampler_({.temperature = options.temperature, .seed = options.seed}, vocabulary.vocab_size) {
  CHECK(sot_index >= 0 && sot_index < static_cast<int32_t>(prompt_.size()));
  CHECK_LT(static_cast<int32_t>(prompt_.size()), text_context);
  if (options_.sample_len <= 0) options_.sample_len = text_context / 2;
  if (options_.temperature > 0) {
    options_.beam_size = 0;
    options_.patience = 0;
  } else {
    options_.best_of = 0;
  }
  if (options_.patience <= 0) options_.patience = 1;
  if (!options_.suppress.empty()) {
    const WhisperVocabulary& v = vocabulary_;
    options_.suppress.insert(options_.suppress.end(),
                             {v.transcribe, v.translate, v.sot, v.sot_prev, v.sot_lm, v.no_speech});
    std::sort(options_.suppress.begin(), options_.suppress.end());
    options_.suppress.erase(std::unique(options_.suppress.begin(), options_.suppress.end()),
                            options_.suppress.end());
  }
  filtered_.resize(vocabulary_.vocab_size);
}

bool WhisperWindowDecoder::beam() const { return options_.beam_size > 0; }

int32_t WhisperWindowDecoder::max_rows() const {
  return std::max({1, options_.beam_size, options_.best_of});
}

void WhisperWindowDecoder::Start(std::span<const float> sot_logits,
                                 std::span<const float> last_logits) {
  CHECK(!started_);
  CHECK_EQ(static_cast<int64_t>(sot_logits.size()), int64_t{vocabulary_.vocab_size});
  started_ = true;
  no_speech_prob_ = std::exp(LogProb(sot_logits, LogSumExp(sot_logits), vocabulary_.no_speech));
  rows_.resize(max_rows());
  // All hypotheses share the prompt's row of logits.
  live_.resize(rows_.size());
  std::iota(live_.begin(), live_.end(), 0);
  const std::vector<std::span<const float>> logits(rows_.size(), last_logits);
  Step(logits);
  for (Next& next : next_) next.parent = 0;
}

void WhisperWindowDecoder::Advance(std::span<const std::span<const float>> logits) {
  CHECK(started_ && !done_);
  CHECK_EQ(logits.size(), next_.size());
  Step(logits);
}

void WhisperWindowDecoder::Step(std::span<const std::span<const float>> logits) {
  next_.clear();
  if (beam()) {
    StepBeam(logits);
  } else {
    StepSampled(logits);
  }
  ++steps_;
  if (steps_ == options_.sample_len ||
      static_cast<int32_t>(prompt_.size()) + steps_ > text_context_) {
    done_ = true;
  }
  if (done_) next_.clear();
}

void WhisperWindowDecoder::StepSampled(std::span<const std::span<const float>> logits) {
  std::vector<int32_t> still_live;
  for (size_t i = 0; i < live_.size(); ++i) {
    Hypothesis& row = rows_[live_[i]];
    Filter(logits[i], row.tokens);
    const Sampler::Choice choice =
        sampler_.Sample(filtered_, {}, row.tokens, 0, options_.stream_base + live_[i]);
    // A client's list may ban all there is to choose from: what there is so far is the result.
    if (choice.logprob == kNegativeInfinity) continue;
    row.sum_logprob += choice.logprob;
    if (choice.token == vocabulary_.eot) continue;
    row.tokens.push_back(choice.token);
    next_.push_back({static_cast<int32_t>(i), choice.token});
    still_live.push_back(live_[i]);
  }
  live_ = std::move(still_live);
  done_ = live_.empty();
}

// BeamSearchDecoder.update: of each beam the beam_size + 1 likeliest continuations, all of them by
// their sums; those that end are set aside until enough have ended, the best others live on.
void WhisperWindowDecoder::StepBeam(std::span<const std::span<const float>> logits) {
  struct Candidate {
    float sum_logprob;
    int32_t parent, token;
  };
  std::vector<Candidate> candidates;
  // At the first step all beams are the same, and so are their continuations.
  const size_t beams = steps_ == 0 ? 1 : rows_.size();
  for (size_t b = 0; b < beams; ++b) {
    Filter(logits[b], rows_[b].tokens);
    const double norm = LogSumExp(filtered_);
    for (const auto& [token, logprob] : TopLogProbs(filtered_, norm, options_.beam_size + 1)) {
      candidates.push_back({rows_[b].sum_logprob + logprob, static_cast<int32_t>(b), token});
    }
  }
  std::stable_sort(
      candidates.begin(), candidates.end(),
      [](const Candidate& a, const Candidate& b) { return a.sum_logprob > b.sum_logprob; });

  std::vector<Hypothesis> live;
  // Python's round() and nearbyint() both give the even one of two equally near integers.
  const auto wanted = static_cast<size_t>(
      std::max(1.0f, std::nearbyint(static_cast<float>(options_.beam_size) * options_.patience)));
  for (const Candidate& c : candidates) {
    if (c.token == vocabulary_.eot) {
      if (finished_.size() < wanted) {
        finished_.push_back({rows_[c.parent].tokens, c.sum_logprob});
      }
      continue;
    }
    Hypothesis next{rows_[c.parent].tokens, c.sum_logprob};
    next.tokens.push_back(c.token);
    live.push_back(std::move(next));
    next_.push_back({c.parent, c.token});
    if (live.size() == static_cast<size_t>(options_.beam_size)) break;
  }
  rows_ = std::move(live);
  done_ = finished_.size() >= wanted || rows_.empty();
}

void WhisperWindowDecoder::Filter(std::span<const float> logits, std::span<const int32_t> tokens) {
  const WhisperVocabulary& v = vocabulary_;
  CHECK_EQ(static_cast<int64_t>(logits.size()), int64_t{v.vocab_size});
  std::copy(logits.begin(), logits.end(), filtered_.begin());
  // Rows that pad the vocabulary stand for nothing.
  std::fill(filtered_.begin() + v.timestamp_begin + v.num_timestamps, filtered_.end(),
            kNegativeInfinity);
  if (options_.suppress_blank && tokens.empty()) {
    for (const int32_t id : v.begin_suppress_tokens) filtered_[id] = kNegativeInfinity;
  }
  for (const int32_t id : options_.suppress) filtered_[id] = kNegativeInfinity;
  if (!options_.without_timestamps) ApplyTimestampRules(tokens);
}

// decoding.py, ApplyTimestampRules.
void WhisperWindowDecoder::ApplyTimestampRules(std::span<const int32_t> tokens) {
  const WhisperVocabulary& v = vocabulary_;
  const int32_t begin = v.timestamp_begin;
  const auto ban = [&](int32_t from, int32_t to) {  // ids [from, to)
    std::fill(filtered_.begin() + from, filtered_.begin() + std::max(from, to), kNegativeInfinity);
  };
  const auto is_time = [&](int32_t id) { return id >= begin; };
  filtered_[v.no_timestamps] = kNegativeInfinity;

  // Timestamps come in pairs, except directly before EOT.
  const bool last = !tokens.empty() && is_time(tokens.back());
  const bool before_last = tokens.size() < 2 || is_time(tokens[tokens.size() - 2]);
  if (last && before_last) ban(begin, v.vocab_size);
  if (last && !before_last) ban(0, v.eot);
  // They never go back, and a segment has a length.
  const auto latest = std::find_if(tokens.rbegin(), tokens.rend(), is_time);
  if (latest != tokens.rend()) ban(begin, last && !before_last ? *latest : *latest + 1);
  if (tokens.empty()) {
    ban(0, begin);
    if (options_.max_initial_timestamp_index) {
      // A cap behind the last timestamp is none.
      const int32_t cap =
          std::clamp(*options_.max_initial_timestamp_index, 0, v.num_timestamps - 1);
      ban(begin + cap + 1, v.vocab_size);
    }
  }
  // When all times together are likelier than any text, it is a time.
  const std::span<const float> row = filtered_;
  const double times = LogSumExp(row.subspan(begin));
  const std::span<const float> text = row.first(begin);
  if (times > text[Argmax(text)]) ban(0, begin);
}

std::vector<WhisperWindowDecoder::Hypothesis> WhisperWindowDecoder::Finalists() const {
  if (!beam()) return rows_;
  std::vector<Hypothesis> finalists = finished_;
  std::vector<Hypothesis> live = rows_;
  std::stable_sort(live.begin(), live.end(), [](const Hypothesis& a, const Hypothesis& b) {
    return a.sum_logprob > b.sum_logprob;
  });
  for (Hypothesis& row : live) {
    if (finalists.size() >= static_cast<size_t>(options_.beam_size)) break;
    finalists.push_back(std::move(row));
  }
  return finalists;
}

WhisperWindowResult WhisperWindowDecoder::Result() const {
  CHECK(done_);
  // MaximumLikelihoodRanker; the first of equal ones. Without a length_penalty the reference
  // divides by zero for a hypothesis that is nothing but EOT; here that counts as one token.
  const auto score = [&](const Hypothesis& h) {
    const double length = static_cast<double>(h.tokens.size());
    return h.sum_logprob / (options_.length_penalty
                                ? std::pow((5 + length) / 6, *options_.length_penalty)
                                : std::max(length, 1.0));
  };
  const std::vector<Hypothesis> finalists = Finalists();
  Hypothesis best;  // empty when a client's list banned every beginning of every beam
  if (!finalists.empty()) {
    best = *std::max_element(
        finalists.begin(), finalists.end(),
        [&](const Hypothesis& a, const Hypothesis& b) { return score(a) < score(b); });
  }
  WhisperWindowResult result;
  result.tokens = best.tokens;
  result.sum_logprob = best.sum_logprob;
  result.avg_logprob =
      static_cast<float>(result.sum_logprob / static_cast<double>(best.tokens.size() + 1));
  result.no_speech_prob = no_speech_prob_;
  result.temperature = options_.temperature;
  result.text = StripSpace(DecodeBelow(tokenizer_, result.tokens, vocabulary_.timestamp_begin));
  result.compression_ratio = CompressionRatio(result.text);
  return result;
}

WhisperLanguage DetectLanguage(std::span<const float> logits, const WhisperVocabulary& vocabulary) {
  CHECK(vocabulary.multilingual && !vocabulary.languages.empty());
  std::vector<float> of_languages;
  for (const auto& [code, id] : vocabulary.languages) of_languages.push_back(logits[id]);
  const double norm = LogSumExp(of_languages);
  WhisperLanguage out;
  for (size_t i = 0; i < of_languages.size(); ++i) {
    out.probabilities.emplace_back(vocabulary.languages[i].first,
                                   std::exp(LogProb(of_languages, norm, static_cast<int32_t>(i))));
  }
  const int32_t best = Argmax(of_languages);
  std::tie(out.code, out.id) = vocabulary.languages[best];
  out.probability = out.probabilities[best].second;
  return out;
}

}  // namespace sensorium
