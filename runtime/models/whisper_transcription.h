// A recording longer than a window: openai/whisper's sequential algorithm (transcribe.py) with one
// temperature and without word times. Which frames come next, what prompt they get, and which
// segments a decoded window makes; encoding and decoding are the caller's.
//
//   while (auto window = transcription.NextWindow()) {
//     decode mel frames [window->seek, window->seek + window->size), zeros behind them;
//     segments = transcription.FinishWindow(result);
//   }
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/models/whisper_vocabulary.h"
#include "runtime/models/whisper_window_decoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace sensorium {

struct WhisperTranscriptionOptions {
  std::optional<int32_t> language_id;  // set exactly when the model is multilingual
  bool translate = false;
  bool timestamps = true;
  std::string prompt;  // comes before the recording: names, spelling. "": none
  std::string prefix;  // what every window is said to begin with. "": none
  bool condition_on_previous_text = true;
  std::optional<float> no_speech_threshold = 0.6f;  // unset: nothing is skipped
  std::optional<float> logprob_threshold = -1.0f;   // above it a window is speech after all
  int64_t content_frames = 0;  // mel frames of the recording, padding not counted
  int64_t clip_start_frame = 0;
  std::optional<int64_t> clip_end_frame;  // unset: content_frames
  int32_t window_frames = 3000;
  double window_seconds = 30.0;
  int32_t text_context = 448;
  int32_t sample_len = 0;  // as the window's; 0: half the text context
};

struct WhisperSegment {
  int32_t id = 0;             // ascending; segments that are left out have had theirs
  int64_t seek = 0;           // mel frame at which its window began
  double start = 0, end = 0;  // seconds of the recording
  std::string text;
  std::vector<int32_t> tokens;  // with timestamps
  float temperature = 0, avg_logprob = 0, compression_ratio = 0,
        no_speech_prob = 0;  // the window's
};

class WhisperTranscription {
 public:
  // The vocabulary and the tokenizer must outlive this.
  WhisperTranscription(const WhisperVocabulary& vocabulary, const Tokenizer& tokenizer,
                       const WhisperTranscriptionOptions& options);

  struct Window {
    int64_t seek = 0;  // first mel frame
    int64_t size = 0;  // real mel frames, at most window_frames
    std::vector<int32_t> prompt;
    int32_t sot_index = 0;
  };
  std::optional<Window> NextWindow();  // nullopt: the recording is done
  // Segments of the window that NextWindow gave last; those without text or length are left out.
  std::vector<WhisperSegment> FinishWindow(const WhisperWindowResult& result);

  int64_t seek() const { return seek_; }  // mel frames before it are done
  // Everything said so far, as transcribe() returns it: the tokens of all windows, decoded at once.
  std::string Text() const;

 private:
  std::vector<int32_t> Prompt(int32_t* sot_index) const;
  WhisperSegment MakeSegment(double start, double end, std::span<const int32_t> tokens,
                             const WhisperWindowResult& result) const;

  const WhisperVocabulary& vocabulary_;
  const Tokenizer& tokenizer_;
  const WhisperTranscriptionOptions options_;
  const int64_t clip_end_;
  std::vector<int32_t> prefix_;
  int64_t seek_ = 0;
  int64_t window_size_ = 0;          // of the window being decoded; 0: none is
  std::vector<int32_t> all_tokens_;  // the prompt's, then every segment's
  size_t initial_prompt_tokens_ = 0;
  size_t prompt_reset_since_ = 0;  // all_tokens_ before it are forgotten
  int32_t num_segments_ = 0;
};

}  // namespace sensorium
