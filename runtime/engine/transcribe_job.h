// A Transcribe request on the engine: per window encode, detect the language (first window), prefill
// the decoder's prompt, decode its hypotheses together; windows follow openai/whisper's sequential
// algorithm (transcribe.py), which is WhisperTranscription's business.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/engine/job.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/media/log_mel.h"
#include "runtime/models/whisper_transcription.h"
#include "runtime/models/whisper_window_decoder.h"

namespace sensorium {

struct PreparedTranscribe {
  TranscribeRequest request;
  std::string request_id;
  MelSpectrogram mel;          // of the recording and one window of silence behind it
  int64_t content_frames = 0;  // of the recording alone
  int64_t audio_ms = 0;
  std::optional<int32_t> language_id;  // given by the client
  MediaReservation media;
  JobClock::Clock::time_point submitted;
};

class TranscribeJob : public Job {
 public:
  // Hashes the spectrogram: not for the engine's thread. `tenant_salt` keeps tenants apart in the
  // cache. `also_cancelled`: a further reason to stop, e.g. the request whose spoken part this is.
  TranscribeJob(LoadedModel& model, PreparedTranscribe prepared,
                std::shared_ptr<TranscribeQueue> queue, std::string_view tenant_salt,
                std::function<bool()> also_cancelled = nullptr);

  const std::string& request_id() const override { return p_.request_id; }
  bool Cancelled() const override {
    return queue_->cancelled() || (also_cancelled_ && also_cancelled_());
  }
  void Start(BlockAllocator& blocks, BlockCache& cache) override;
  void Preempt() override;
  JobWork Pending() const override;
  void RunEncode(int32_t units, TensorView state, Workspace& workspace) override;
  void AddPrefill(int32_t tokens, StepBatch& batch) override;
  void AddDecode(StepBatch& batch) override;
  void OnForward(std::span<const float> logits, std::vector<BlockCopy>& copies) override;
  bool Ended() const override { return ended_; }
  void End(const absl::Status& status) override;

 private:
  enum class Phase : uint8_t { kDetectLanguage, kPrompt, kDecode };  // each behind its encode
  // Makes mel frames [begin, begin + size), zeros behind them up to a whole window, the window that
  // the decoder reads: from the cache, or to be encoded.
  void TakeWindow(int64_t begin, int64_t size);
  void BeginSearch();
  void SetLanguage(std::optional<int32_t> id, float probability);
  void NextWindow();
  void FollowRows(std::vector<BlockCopy>& copies);
  void FinishWindow();

  PreparedTranscribe p_;
  std::shared_ptr<TranscribeQueue> queue_;
  std::function<bool()> also_cancelled_;
  BlockAllocator* blocks_ = nullptr;
  Phase phase_ = Phase::kPrompt;
  bool announced_ = false;

  BlockCache* cache_ = nullptr;
  ContentHash audio_hash_;
  std::optional<BlockTable> cross_;
  std::vector<int64_t> cross_slots_;
  std::vector<BlockId> matched_;                // scratch of TakeWindow
  std::vector<ContentHash> window_chain_;       // of the window in cross_
  int64_t cross_begin_ = -1, cross_size_ = -1;  // what cross_ holds, once stages_left_ is 0
  int32_t stages_left_ = 0;
  std::vector<float> window_mel_;  // [window_frames, mels]

  std::optional<WhisperTranscription> transcription_;  // once the language is known
  std::optional<WhisperTranscription::Window> window_;
  std::optional<WhisperWindowDecoder> decoder_;
  std::vector<BlockTable> rows_;     // [1] in the prompt, then one per live hypothesis
  std::vector<int32_t> prompt_;      // [sot] while detecting
  int32_t computed_ = 0;             // tokens every row has in its cache
  int32_t prefilling_ = 0;
  std::vector<float> sot_logits_;    // [vocab]
  bool sot_in_chunk_ = false, last_in_chunk_ = false;

  std::string language_;
  Usage usage_;
  bool ended_ = false;
};

}  // namespace sensorium
