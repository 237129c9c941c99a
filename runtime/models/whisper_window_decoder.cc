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
  const size_t rows = static_cast<size_t>(max_rows());
  rows_ = MakeHypotheses(rows);
  live_.reserve(rows);
  next_.reserve(rows);
  if (beam()) {
    const size_t continuations = static_cast<size_t>(options_.beam_size) + 1;
    next_rows_ = MakeHypotheses(rows);
    finished_ = MakeHypotheses(wanted_finished());
    candidates_.reserve(rows * continuations);
    best_.reserve(continuations + 1);
  }
}

std::vector<WhisperWindowDecoder::Hypothesis> WhisperWindowDecoder::MakeHypotheses(
    size_t count) const {
  std::vector<Hypothesis> hypotheses(count);
  const int32_t longest = std::min(options_.sample_len, text_context_);
  for (Hypothesis& h : hypotheses) h.tokens.reserve(longest);
  return hypotheses;
}

// Python's round() and nearbyint() both give the even one of two equally near integers.
size_t WhisperWindowDecoder::wanted_finished() const {
  return static_cast<size_t>(
      std::max(1.0f, std::nearbyint(static_cast<float>(options_.beam_size) * options_.patience)));
}

bool WhisperWindowDecoder::beam() const { return options_.beam_size > 0; }

int32_t WhisperWindowDecoder::max_rows() const {
  return std::max({1, options_.beam_size, options_.best_of});
}

void WhisperWindowDecoder::ReadStart(std::span<const float> sot_logits) {
  CHECK_EQ(static_cast<int64_t>(sot_logits.size()), int64_t{vocabulary_.vocab_size});
  no_speech_prob_ = std::exp(LogProb(sot_logits, LogSumExp(sot_logits), vocabulary_.no_speech));
}

void WhisperWindowDecoder::Start(std::span<const float> last_logits, SamplerScratch& scratch) {
  CHECK(!started_);
  started_ = true;
  num_rows_ = rows_.size();
  live_.resize(num_rows_);
  std::iota(live_.begin(), live_.end(), 0);
  Step(last_logits, /*stride=*/0, scratch);  // all hypotheses share the prompt's row
  for (Next& next : next_) next.parent = 0;
}

void WhisperWindowDecoder::Advance(std::span<const float> logits, SamplerScratch& scratch) {
  CHECK(started_ && !done_);
  const size_t vocab = static_cast<size_t>(vocabulary_.vocab_size);
  CHECK_EQ(logits.size(), next_.size() * vocab);
  Step(logits, vocab, scratch);
}

void WhisperWindowDecoder::Step(std::span<const float> logits, size_t stride,
                                SamplerScratch& scratch) {
  next_.clear();
  if (beam()) {
    StepBeam(logits, stride);
  } else {
    StepSampled(logits, stride, scratch);
  }
  ++steps_;
  if (steps_ == options_.sample_len ||
      static_cast<int32_t>(prompt_.size()) + steps_ > text_context_) {
    done_ = true;
  }
  if (done_) next_.clear();
}

void WhisperWindowDecoder::StepSampled(std::span<const float> logits, size_t stride,
                                       SamplerScratch& scratch) {
  const size_t vocab = static_cast<size_t>(vocabulary_.vocab_size);
  size_t still_live = 0;
  for (size_t i = 0; i < live_.size(); ++i) {
    Hypothesis& row = rows_[live_[i]];
    Filter(logits.subspan(i * stride, vocab), row.tokens);
    const Sampler::Choice choice =
        sampler_.Sample(filtered_, {}, row.tokens, 0, options_.stream_base + live_[i], scratch);
    // A client's list may ban all there is to choose from: what there is so far is the result.
    if (choice.logprob == kNegativeInfinity) continue;
    row.sum_logprob += choice.logprob;
    if (choice.token == vocabulary_.eot) continue;
    row.tokens.push_back(choice.token);
    next_.push_back({static_cast<int32_t>(i), choice.token});
    live_[still_live++] = live_[i];
  }
  live_.resize(still_live);
  done_ = live_.empty();
}

// BeamSearchDecoder.update: of each beam the beam_size + 1 likeliest continuations, all of them by
// their sums; those that end are set aside until enough have ended, the best others live on.
void WhisperWindowDecoder::StepBeam(std::span<const float> logits, size_t stride) {
  const size_t vocab = static_cast<size_t>(vocabulary_.vocab_size);
  candidates_.clear();
  // At the first step all beams are the same, and so are their continuations.
  const size_t beams = steps_ == 0 ? 1 : num_rows_;
  for (size_t b = 0; b < beams; ++b) {
    Filter(logits.subspan(b * stride, vocab), rows_[b].tokens);
    TopLogProbs(filtered_, LogSumExp(filtered_), options_.beam_size + 1, best_);
    for (const auto& [token, logprob] : best_) {
      candidates_.push_back({rows_[b].sum_logprob + logprob,
                             static_cast<int32_t>(candidates_.size()), static_cast<int32_t>(b),
                             token});
    }
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.sum_logprob != b.sum_logprob ? a.sum_logprob > b.sum_logprob : a.order < b.order;
  });

  const auto take = [this](Hypothesis& to, const Candidate& c) {
    to.tokens.assign(rows_[c.parent].tokens.begin(), rows_[c.parent].tokens.end());
    to.sum_logprob = c.sum_logprob;
  };
  size_t live = 0;
  for (const Candidate& c : candidates_) {
    if (c.token == vocabulary_.eot) {
      if (num_finished_ < finished_.size()) take(finished_[num_finished_++], c);
      continue;
    }
    take(next_rows_[live], c);
    next_rows_[live++].tokens.push_back(c.token);
    next_.push_back({c.parent, c.token});
    if (live == static_cast<size_t>(options_.beam_size)) break;
  }
  rows_.swap(next_rows_);
  num_rows_ = live;
  done_ = num_finished_ == finished_.size() || live == 0;
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
  const auto first = [](const std::vector<Hypothesis>& hypotheses, size_t count) {
    return std::vector<Hypothesis>(hypotheses.begin(),
                                   hypotheses.begin() + static_cast<std::ptrdiff_t>(count));
  };
  std::vector<Hypothesis> live = first(rows_, num_rows_);
  if (!beam()) return live;
  std::vector<Hypothesis> finalists = first(finished_, num_finished_);
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
