#include "runtime/models/whisper_transcription.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {

namespace {

std::vector<int32_t> EncodeText(const Tokenizer& tokenizer, const std::string& text) {
  const std::string_view stripped = StripSpace(text);
  if (stripped.empty()) return {};
  return tokenizer.Encode(std::string(" ").append(stripped), /*parse_special=*/false);
}

void KeepLast(std::vector<int32_t>& ids, int64_t count) {
  count = std::max<int64_t>(count, 0);
  if (static_cast<int64_t>(ids.size()) > count) ids.erase(ids.begin(), ids.end() - count);
}

}  // namespace

WhisperTranscription::WhisperTranscription(const WhisperVocabulary& vocabulary,
                                           const Tokenizer& tokenizer,
                                           const WhisperTranscriptionOptions& options)
    : vocabulary_(vocabulary),
      tokenizer_(tokenizer),
      options_(options),
      clip_end_(std::min(options.clip_end_frame.value_or(options.content_frames),
                         options.content_frames)),
      prefix_(EncodeText(tokenizer, options.prefix)),
      seek_(std::max<int64_t>(options.clip_start_frame, 0)),
      all_tokens_(EncodeText(tokenizer, options.prompt)),
      initial_prompt_tokens_(all_tokens_.size()) {
  CHECK_EQ(options.language_id.has_value(), vocabulary.multilingual);
  // The reference keeps text_context / 2 - sample_len tokens, and all of them when that is 0. A
  // prefix of any length must not fill the context, so half of it is the limit then.
  const int32_t half = options_.text_context / 2;
  const bool default_len = options_.sample_len <= 0 || options_.sample_len >= half;
  KeepLast(prefix_, default_len ? half - 1 : half - options_.sample_len);
}

std::vector<int32_t> WhisperTranscription::Prompt(int32_t* sot_index) const {
  std::vector<int32_t> end = vocabulary_.SotSequence(options_.language_id, options_.translate);
  if (!options_.timestamps) end.push_back(vocabulary_.no_timestamps);
  end.insert(end.end(), prefix_.begin(), prefix_.end());

  std::vector<int32_t> previous(
      all_tokens_.begin() + static_cast<std::ptrdiff_t>(prompt_reset_since_), all_tokens_.end());
  // The reference keeps text_context / 2 - 1; a long prefix must leave room for one token behind
  // it.
  KeepLast(previous,
           std::min<int64_t>(options_.text_context / 2 - 1,
                             options_.text_context - 2 - static_cast<int64_t>(end.size())));
  std::vector<int32_t> prompt;
  if (!previous.empty()) {
    prompt.push_back(vocabulary_.sot_prev);
    prompt.insert(prompt.end(), previous.begin(), previous.end());
  }
  *sot_index = static_cast<int32_t>(prompt.size());
  prompt.insert(prompt.end(), end.begin(), end.end());
  return prompt;
}

std::optional<WhisperTranscription::Window> WhisperTranscription::NextWindow() {
  CHECK_EQ(window_size_, 0);
  if (seek_ >= clip_end_) return std::nullopt;
  Window window;
  window.seek = seek_;
  window.size = std::min<int64_t>(options_.window_frames, clip_end_ - seek_);
  window.prompt = Prompt(&window.sot_index);
  window_size_ = window.size;
  return window;
}

WhisperSegment WhisperTranscription::MakeSegment(double start, double end,
                                                 std::span<const int32_t> tokens,
                                                 const WhisperWindowResult& result) const {
  return {.id = 0,
          .seek = seek_,
          .start = start,
          .end = end,
          .text = DecodeBelow(tokenizer_, tokens, vocabulary_.eot),
          .tokens = {tokens.begin(), tokens.end()},
          .temperature = result.temperature,
          .avg_logprob = result.avg_logprob,
          .compression_ratio = result.compression_ratio,
          .no_speech_prob = result.no_speech_prob};
}

std::vector<WhisperSegment> WhisperTranscription::FinishWindow(const WhisperWindowResult& result) {
  CHECK_GT(window_size_, 0);
  const int64_t size = std::exchange(window_size_, 0);
  if (options_.no_speech_threshold && result.no_speech_prob > *options_.no_speech_threshold &&
      !(options_.logprob_threshold && result.avg_logprob > *options_.logprob_threshold)) {
    seek_ += size;
    return {};
  }
  const std::span<const int32_t> tokens = result.tokens;
  const int32_t begin = vocabulary_.timestamp_begin;
  const int64_t positions = vocabulary_.num_timestamps - 1;  // of the encoder, one time each
  const double frame_seconds = options_.window_seconds / options_.window_frames;
  const double precision = options_.window_seconds / static_cast<double>(positions);
  const double offset = static_cast<double>(seek_) * frame_seconds;
  const auto is_time = [&](size_t i) { return tokens[i] >= begin; };
  // Without timestamp rules a slice may begin with text: it begins where the window does.
  const auto seconds = [&](int32_t id) { return std::max(id - begin, 0) * precision; };
  const size_t n = tokens.size();
  const bool single_ending = n >= 2 && !is_time(n - 2) && is_time(n - 1);

  std::vector<size_t> cuts;  // where one segment's end meets the next one's start
  for (size_t i = 1; i < n; ++i) {
    if (is_time(i - 1) && is_time(i)) cuts.push_back(i);
  }
  std::vector<WhisperSegment> segments;
  int64_t advance = size;
  if (!cuts.empty()) {
    if (single_ending) cuts.push_back(n);
    size_t from = 0;
    for (const size_t to : cuts) {
      const auto slice = tokens.subspan(from, to - from);
      segments.push_back(MakeSegment(offset + seconds(slice.front()),
                                     offset + seconds(slice.back()), slice, result));
      from = to;
    }
    // What follows the last pair is cut off in mid-sentence: the next window begins there.
    if (!single_ending) {
      advance = (tokens[from - 1] - begin) * (options_.window_frames / positions);
    }
  } else {
    double duration = static_cast<double>(size) * frame_seconds;
    for (size_t i = n; i-- > 0;) {
      if (!is_time(i)) continue;
      if (tokens[i] != begin) duration = seconds(tokens[i]);
      break;
    }
    segments.push_back(MakeSegment(offset, offset + duration, tokens, result));
  }
  // The timestamp rules make every pair lie behind 0; whatever else comes, the walk goes on.
  seek_ += advance > 0 ? advance : size;

  std::vector<WhisperSegment> kept;
  for (WhisperSegment& segment : segments) {
    segment.id = num_segments_++;
    if (segment.start == segment.end || StripSpace(segment.text).empty()) continue;
    all_tokens_.insert(all_tokens_.end(), segment.tokens.begin(), segment.tokens.end());
    kept.push_back(std::move(segment));
  }
  if (!options_.condition_on_previous_text || result.temperature > 0.5f) {
    prompt_reset_since_ = all_tokens_.size();
  }
  return kept;
}

std::string WhisperTranscription::Text() const {
  return DecodeBelow(tokenizer_, std::span(all_tokens_).subspan(initial_prompt_tokens_),
                     vocabulary_.timestamp_begin);
}

}  // namespace sensorium
