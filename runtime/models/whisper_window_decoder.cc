#include "runtime/models/whisper_window_decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/models/compression_ratio.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {

namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Of an id with this logit in a row of this log(sum(exp)); 0 of a masked one, a NaN among them.
float Probability(float logit, double log_sum_exp) {
  if (!(logit > kNegativeInfinity)) return 0;
  if (std::isinf(log_sum_exp)) return std::isinf(logit) ? 1.0f : 0.0f;
  return std::exp(static_cast<float>(static_cast<double>(logit) - log_sum_exp));
}

}  // namespace

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
      text_context_(text_context) {
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
  const size_t rows = static_cast<size_t>(max_rows());
  rows_ = MakeHypotheses(rows);
  num_rows_ = rows;
  live_.resize(rows);
  std::iota(live_.begin(), live_.end(), 0);
  next_.reserve(rows);
  choices_.reserve(rows);
  if (beam()) {
    const size_t continuations = static_cast<size_t>(options_.beam_size) + 1;
    next_rows_ = MakeHypotheses(rows);
    finished_ = MakeHypotheses(wanted_finished());
    candidates_.reserve(rows * continuations);
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

TokenChoice WhisperWindowDecoder::StartChoice() const {
  TokenChoice choice;
  choice.asked = {&vocabulary_.no_speech, 1};
  return choice;
}

void WhisperWindowDecoder::ReadStart(const ChosenToken& chosen) {
  no_speech_prob_ = Probability(chosen.asked[0], chosen.raw_log_sum_exp);
}

std::span<const TokenChoice> WhisperWindowDecoder::Choices() {
  CHECK(!done_);
  choices_.clear();
  const bool first = steps_ == 0;  // all hypotheses share the prompt's row
  // Beams that are the same have the same continuations.
  const size_t count = beam() ? (first ? 1 : num_rows_) : live_.size();
  for (size_t i = 0; i < count; ++i) {
    const Hypothesis& row = rows_[beam() ? i : live_[i]];
    TokenChoice choice;
    choice.row = first ? 0 : static_cast<int32_t>(i);
    Ban(choice, row.tokens);
    if (beam()) {
      choice.num_likeliest = options_.beam_size + 1;
    } else {
      choice.temperature = options_.temperature;
      choice.seed = options_.seed;
      choice.stream = options_.stream_base + live_[i];
      choice.position = row.tokens.size();
    }
    choices_.push_back(choice);
  }
  return choices_;
}

void WhisperWindowDecoder::Advance(std::span<const ChosenToken> chosen) {
  CHECK(!done_);
  next_.clear();
  if (beam()) {
    StepBeam(chosen);
  } else {
    StepSampled(chosen);
  }
  if (steps_++ == 0) {
    for (Next& next : next_) next.parent = 0;
  }
  if (steps_ == options_.sample_len ||
      static_cast<int32_t>(prompt_.size()) + steps_ > text_context_) {
    done_ = true;
  }
  if (done_) next_.clear();
}

void WhisperWindowDecoder::StepSampled(std::span<const ChosenToken> chosen) {
  CHECK_EQ(chosen.size(), live_.size());
  size_t still_live = 0;
  for (size_t i = 0; i < live_.size(); ++i) {
    Hypothesis& row = rows_[live_[i]];
    const int32_t token = chosen[i].token;
    const float logprob = chosen[i].logprob;
    // A client's list may ban all there is to choose from: what there is so far is the result.
    if (logprob == kNegativeInfinity) continue;
    row.sum_logprob += logprob;
    if (token == vocabulary_.eot) continue;
    row.tokens.push_back(token);
    next_.push_back({static_cast<int32_t>(i), token});
    live_[still_live++] = live_[i];
  }
  live_.resize(still_live);
  done_ = live_.empty();
}

// BeamSearchDecoder.update: of each beam the beam_size + 1 likeliest continuations, all of them by
// their sums; those that end are set aside until enough have ended, the best others live on.
void WhisperWindowDecoder::StepBeam(std::span<const ChosenToken> chosen) {
  CHECK_EQ(chosen.size(), steps_ == 0 ? 1 : num_rows_);
  candidates_.clear();
  for (size_t b = 0; b < chosen.size(); ++b) {
    for (const auto& [token, logprob] : chosen[b].likeliest) {
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

void WhisperWindowDecoder::Ban(TokenChoice& choice, std::span<const int32_t> tokens) const {
  const WhisperVocabulary& v = vocabulary_;
  // Rows that pad the vocabulary stand for nothing.
  choice.banned_ranges[0] = {v.timestamp_begin + v.num_timestamps, v.vocab_size};
  choice.banned[0] = options_.suppress;
  if (options_.suppress_blank && tokens.empty()) choice.banned[1] = v.begin_suppress_tokens;
  if (!options_.without_timestamps) AddTimestampRules(choice, tokens);
}

// decoding.py, ApplyTimestampRules.
void WhisperWindowDecoder::AddTimestampRules(TokenChoice& choice,
                                             std::span<const int32_t> tokens) const {
  const WhisperVocabulary& v = vocabulary_;
  const int32_t begin = v.timestamp_begin;
  const auto is_time = [&](int32_t id) { return id >= begin; };
  choice.banned_ranges[1] = {v.no_timestamps, v.no_timestamps + 1};
  if (tokens.empty()) {
    choice.banned_ranges[2] = {0, begin};
    if (options_.max_initial_timestamp_index) {
      // A cap behind the last timestamp is none.
      const int32_t cap =
          std::clamp(*options_.max_initial_timestamp_index, 0, v.num_timestamps - 1);
      choice.banned_ranges[3] = {begin + cap + 1, v.vocab_size};
    }
  } else {
    // Timestamps come in pairs, except directly before EOT.
    const bool last = is_time(tokens.back());
    const bool before_last = tokens.size() < 2 || is_time(tokens[tokens.size() - 2]);
    if (last && before_last) choice.banned_ranges[2] = {begin, v.vocab_size};
    if (last && !before_last) choice.banned_ranges[2] = {0, v.eot};
    // They never go back, and a segment has a length.
    const auto latest = std::find_if(tokens.rbegin(), tokens.rend(), is_time);
    if (latest != tokens.rend()) {
      choice.banned_ranges[3] = {begin, last && !before_last ? *latest : *latest + 1};
    }
  }
  // When all times together are likelier than any text, it is a time.
  choice.timestamp_begin = begin;
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
  CHECK_EQ(logits.size(), vocabulary.languages.size());
  size_t best = 0;
  float max = kNegativeInfinity;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > max) best = i, max = logits[i];
  }
  const auto weight = [&](float logit) {
    return logit > kNegativeInfinity ? std::exp(static_cast<double>(logit) - max) : 0.0;
  };
  double sum = 0;
  for (const float logit : logits) sum += weight(logit);
  WhisperLanguage out;
  for (size_t i = 0; i < logits.size(); ++i) {
    out.probabilities.emplace_back(vocabulary.languages[i].first,
                                   sum > 0 ? static_cast<float>(weight(logits[i]) / sum) : 0.0f);
  }
  std::tie(out.code, out.id) = vocabulary.languages[best];
  out.probability = out.probabilities[best].second;
  return out;
}

}  // namespace sensorium
