// The half of a transcription that needs no device: which window comes next, with what prompt and
// search; what a decoded window says; the reader's events. On the publisher's thread, one question
// of the engine's at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/publisher.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/models/whisper_transcription.h"
#include "runtime/models/whisper_window_decoder.h"

namespace sensorium {

// Mel frames [begin, begin + size) and zeros up to a whole window: what the decoder listens to.
struct AudioWindow {
  int64_t begin = 0, size = 0;
  std::vector<ContentHash> chain;  // names the blocks of its cross-attention KV
};

class Transcript : public Publishable {
 public:
  struct Options {
    TranscribeOptions request;
    std::string request_id;
    int64_t content_frames = 0;  // mel frames of the recording
    int64_t audio_ms = 0;
    std::optional<int32_t> language_id;  // given by the client
    ContentHash audio_hash;
  };
  // `model` outlives it. `wake` rings the engine's bell.
  Transcript(const LoadedModel& model, Options options, std::shared_ptr<TranscribeQueue> queue,
             std::function<void()> wake);

  bool detects_language() const { return detects_language_; }
  // What the language is detected in: the recording's first window, real silence behind a short
  // one. transcribe.py pads in samples for this and in mel for the windows themselves.
  const AudioWindow& detection_window() const { return detection_window_; }
  // What is asked of the logits of <|startoftranscript|>.
  TokenChoice LanguageChoice() const;

  // What the request has come to so far, for the reader's last event. Tokens are counted here.
  struct Spent {
    Usage usage;
    Timing timing;
  };
  // ---- Engine's side: questions, which take no memory. Post it to a Publisher afterwards; the
  // answer is there once ready(). REQUIRES, of each: the last question is answered.
  //
  // The first window. `logits`: those LanguageChoice() asked for, if detects_language().
  void AskFirst(std::span<const float> logits, const Spent& spent);
  void AskNext(const Spent& spent);  // the search is done: what it says, and the next window
  void AskAgain();                   // a new search over the same window
  // The stream ends with this, whatever is asked or answered. Idempotent.
  void End(absl::Status status, const Usage& spent);
  bool ready() const { return ready_.load(std::memory_order_acquire); }

  // The answer. REQUIRES: ready()
  bool finished() const { return !search_; }  // nothing is left to decode; the reader knows
  WhisperWindowDecoder& decoder() { return search_->decoder; }
  const AudioWindow& window() const { return search_->audio; }

  void Publish() override;

 private:
  enum class Question : uint8_t { kNone, kFirst, kNext, kAgain };
  struct Search {
    WhisperWindowDecoder decoder;
    AudioWindow audio;
  };
  void Ask(Question question);
  AudioWindow MakeAudioWindow(int64_t begin, int64_t size) const;
  void SetLanguage(std::optional<int32_t> id, float probability);
  void AddTokens(Usage& usage) const;  // what was asked and said so far
  void NextWindow();
  void BeginSearch();
  void FinishWindow();

  const LoadedModel& model_;
  const Options o_;
  const std::shared_ptr<TranscribeQueue> queue_;
  const std::function<void()> wake_;
  const bool detects_language_;
  AudioWindow detection_window_;       // constant
  std::vector<int32_t> suppress_;      // constant: the client's and the model's own
  std::vector<int32_t> language_ids_;  // constant, when the language is to be detected

  std::mutex mu_;
  Question question_ = Question::kNone;  // guarded by mu_, as below
  std::optional<StreamEnd> end_;
  bool ended_ = false;

  std::atomic<bool> ready_{false};
  // The engine's while ready(), the publisher's while it is not.
  std::vector<float> language_logits_;  // of language_ids_
  Spent spent_;
  std::optional<Search> search_;

  // Publisher's thread only
  std::optional<WhisperTranscription> transcription_;
  std::optional<WhisperTranscription::Window> window_;
  std::string language_;
  int32_t prompt_tokens_ = 0, completion_tokens_ = 0;
};

}  // namespace sensorium
