#include "runtime/engine/transcript.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/kv_cache/block_table.h"

namespace sensorium {

Transcript::Transcript(const LoadedModel& model, Options options,
                       std::shared_ptr<TranscribeQueue> queue, std::function<void()> wake)
    : model_(model),
      o_(std::move(options)),
      queue_(std::move(queue)),
      wake_(std::move(wake)),
      detects_language_(model.vocabulary->multilingual && !o_.language_id),
      suppress_(o_.request.suppress_tokens) {
  if (o_.request.suppress_default) {
    const std::vector<int32_t>& own = model.vocabulary->suppress_tokens;
    suppress_.insert(suppress_.end(), own.begin(), own.end());
  }
  if (detects_language_) {
    detection_window_ = MakeAudioWindow(0, model.whisper->config().window_frames());
    for (const auto& [code, id] : model.vocabulary->languages) language_ids_.push_back(id);
    language_logits_.reserve(language_ids_.size());
  }
}

AudioWindow Transcript::MakeAudioWindow(int64_t begin, int64_t size) const {
  const ContentHash root = ContentHasher()
                               .Update(std::span<const uint8_t>(o_.audio_hash.bytes))
                               .Update(begin)
                               .Update(size)
                               .Finish();
  const int32_t blocks = BlockTable::BlocksFor(model_.whisper->config().audio_positions,
                                               model_.cross_kv.layout.block_size);
  return {.begin = begin, .size = size, .chain = BlockChain(root, blocks)};
}

TokenChoice Transcript::LanguageChoice() const {
  TokenChoice choice;
  choice.asked = language_ids_;
  return choice;
}

// ---- Engine's side -----------------------------------------------------------------------------

void Transcript::Ask(Question question) {
  ready_.store(false, std::memory_order_relaxed);
  std::lock_guard lock(mu_);
  CHECK(question_ == Question::kNone);
  question_ = question;
}

void Transcript::AskFirst(std::span<const float> logits, const Spent& spent) {
  CHECK_EQ(logits.empty(), !detects_language_);
  language_logits_.assign(logits.begin(), logits.end());
  spent_ = spent;
  Ask(Question::kFirst);
}

void Transcript::AskNext(const Spent& spent) {
  spent_ = spent;
  Ask(Question::kNext);
}

void Transcript::AskAgain() { Ask(Question::kAgain); }

void Transcript::End(absl::Status status, const Usage& spent) {
  std::lock_guard lock(mu_);
  if (!end_) end_ = StreamEnd{.status = std::move(status), .usage = spent};
}

// ---- Publisher's side --------------------------------------------------------------------------

void Transcript::Publish() {
  Question question;
  std::optional<StreamEnd> end;
  {
    std::lock_guard lock(mu_);
    question = std::exchange(question_, Question::kNone);
    if (ended_) return;
    end.swap(end_);
    ended_ = end.has_value();
  }
  if (end) {
    AddTokens(*end->usage);
    return queue_->Push(*std::move(end));
  }
  switch (question) {
    case Question::kNone:
      return;
    case Question::kFirst:
      if (detects_language_) {
        const auto detected = DetectLanguage(language_logits_, *model_.vocabulary);
        SetLanguage(detected.id, detected.probability);
      } else {
        SetLanguage(o_.language_id, 1.0f);
      }
      NextWindow();
      break;
    case Question::kNext:
      FinishWindow();
      NextWindow();
      break;
    case Question::kAgain:
      BeginSearch();
      break;
  }
  ready_.store(true, std::memory_order_release);
  wake_();
}

void Transcript::SetLanguage(std::optional<int32_t> id, float probability) {
  const WhisperVocabulary& vocabulary = *model_.vocabulary;
  language_ = "en";  // what an English-only model speaks
  for (const auto& [code, language_id] : vocabulary.languages) {
    if (id == language_id) language_ = code;
  }
  const TranscribeOptions& o = o_.request;
  const WhisperConfig& c = model_.whisper->config();
  const double frames_per_ms =
      static_cast<double>(c.window_frames()) / static_cast<double>(model_.info.window_ms);
  WhisperTranscriptionOptions options;
  options.language_id = id;
  options.translate = o.task == Task::kTranslate;
  options.timestamps = o.timestamps != Timestamps::kNone;
  options.prompt = o.prompt;
  options.prefix = o.prefix;
  options.condition_on_previous_text = o.condition_on_previous_text;
  options.no_speech_threshold = o.no_speech_threshold.value_or(0.6f);
  options.logprob_threshold = o.logprob_threshold.value_or(-1.0f);
  options.content_frames = o_.content_frames;
  options.clip_start_frame = std::llround(static_cast<double>(o.clip_start_ms) * frames_per_ms);
  if (o.clip_end_ms > 0) {
    options.clip_end_frame = std::llround(static_cast<double>(o.clip_end_ms) * frames_per_ms);
  }
  options.window_frames = c.window_frames();
  options.window_seconds = static_cast<double>(model_.info.window_ms) / 1000.0;
  options.text_context = c.text_positions;
  options.sample_len = o.max_tokens_per_window ? o.max_tokens_per_window : c.text_positions / 2;
  transcription_.emplace(vocabulary, *model_.tokenizer, options);
  queue_->Push(TranscribeStarted{.request_id = o_.request_id,
                                 .model = model_.name,
                                 .duration_ms = o_.audio_ms,
                                 .language = language_,
                                 .language_probability = probability});
}

void Transcript::AddTokens(Usage& usage) const {
  usage.audio_ms = o_.audio_ms;
  usage.prompt_tokens = prompt_tokens_;
  usage.completion_tokens = completion_tokens_;
}

void Transcript::NextWindow() {
  window_ = transcription_->NextWindow();
  if (window_) return BeginSearch();
  search_.reset();
  Usage usage = spent_.usage;
  AddTokens(usage);
  queue_->Push(TranscribeFinished{.text = transcription_->Text(),
                                  .language = language_,
                                  .usage = usage,
                                  .timing = spent_.timing});
  queue_->Push(StreamEnd{absl::OkStatus()});
  std::lock_guard lock(mu_);
  ended_ = true;
}

// A new search over window_, from its prompt.
void Transcript::BeginSearch() {
  const TranscribeOptions& o = o_.request;
  const WhisperConfig& c = model_.whisper->config();
  WhisperWindowOptions options;
  options.beam_size = o.beam_size;
  options.best_of = o.best_of;
  options.patience = o.patience;
  options.length_penalty = o.length_penalty;
  options.temperature = o.temperatures.empty() ? 0.0f : o.temperatures.front();
  options.seed = o.seed;
  options.sample_len = o.max_tokens_per_window ? o.max_tokens_per_window : c.text_positions / 2;
  options.without_timestamps = o.timestamps == Timestamps::kNone;
  options.suppress = suppress_;
  if (o.max_initial_timestamp) {
    if (*o.max_initial_timestamp > 0) {
      const double precision = static_cast<double>(model_.info.window_ms) / 1000.0 /
                               static_cast<double>(c.audio_positions);
      options.max_initial_timestamp_index =
          static_cast<int32_t>(std::lround(*o.max_initial_timestamp / precision));
    }
  } else {
    options.max_initial_timestamp_index = model_.vocabulary->max_initial_timestamp_index;
  }
  // Windows draw from streams of their own; a seek never repeats.
  options.stream_base = static_cast<uint64_t>(window_->seek) << 16;
  search_.emplace(Search{.decoder = {*model_.vocabulary, *model_.tokenizer, options,
                                     window_->prompt, window_->sot_index, c.text_positions},
                         .audio = MakeAudioWindow(window_->seek, window_->size)});
}

void Transcript::FinishWindow() {
  const WhisperWindowResult result = search_->decoder.Result();
  prompt_tokens_ += static_cast<int32_t>(search_->decoder.prompt().size());
  completion_tokens_ += static_cast<int32_t>(result.tokens.size());
  const auto to_ms = [](double seconds) { return std::llround(seconds * 1000.0); };
  for (const WhisperSegment& s : transcription_->FinishWindow(result)) {
    queue_->Push(TranscribeSegment{.id = s.id,
                                   .start_ms = to_ms(s.start),
                                   .end_ms = to_ms(s.end),
                                   .text = s.text,
                                   .tokens = s.tokens,
                                   .avg_logprob = s.avg_logprob,
                                   .compression_ratio = s.compression_ratio,
                                   .no_speech_probability = s.no_speech_prob,
                                   .temperature = s.temperature});
  }
  const int64_t done = std::min(transcription_->seek(), o_.content_frames);
  queue_->Push(TranscribeProgress{
      .done_ms = o_.content_frames ? o_.audio_ms * done / o_.content_frames : o_.audio_ms,
      .total_ms = o_.audio_ms});
}

}  // namespace sensorium
