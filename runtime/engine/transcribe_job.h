// A Transcribe request on the engine: per window encode, detect the language (first window),
// prefill the decoder's prompt, decode its hypotheses together. Which window comes next and what it
// says is Transcript's business, on another thread; the job is parked while that thinks.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/device_media.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/job.h"
#include "runtime/engine/transcript.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/media/log_mel.h"

namespace sensorium {

struct PreparedTranscribe {
  TranscribeRequest request;
  std::string request_id;
  // Of the recording and one window of silence behind it, or what the device makes it of.
  MelSpectrogram mel;
  std::optional<DeviceRecording> recording;
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
  // `wake` rings the engine's bell.
  TranscribeJob(LoadedModel& model, PreparedTranscribe prepared,
                std::shared_ptr<TranscribeQueue> queue, std::string_view tenant_salt,
                std::function<void()> wake, std::function<bool()> also_cancelled = nullptr);
  ~TranscribeJob() override;

  const std::string& request_id() const override { return p_.request_id; }
  bool Cancelled() const override {
    return queue_->cancelled() || (also_cancelled_ && also_cancelled_());
  }
  void Attach(const JobServices& services) override;
  void Start() override;
  void Preempt() override;
  bool Poll() override;
  JobWork Pending() const override;
  void RunEncode(int32_t units, TensorView state, Workspace& workspace) override;
  void AddPrefill(int32_t tokens, StepBatch& batch) override;
  void AddDecode(StepBatch& batch) override;
  void OnForward(std::span<const ChosenToken> chosen, std::vector<BlockCopy>& copies) override;
  bool Ended() const override { return ended_; }
  int32_t BlocksHeld() const override;
  void End(absl::Status status) override;

 private:
  enum class Phase : uint8_t {
    kNew,
    kAsking,          // the transcript thinks
    kDetectLanguage,  // these three each behind the window's encode
    kPrompt,
    kDecode
  };
  Transcript::Spent Spent() const;
  void Post() { services_.publisher->Post(transcript_); }
  void BeginDetection();
  void BeginSearch();
  // Makes `window` what the decoder reads: from the cache, or to be encoded. false: it has to wait
  // for its reader (parked_), or for another request that is encoding the same one.
  bool TakeWindow(const AudioWindow& window);
  void StopWriting();
  void FillMel(TensorView y, std::byte* state) const;
  // Units of the recording to be listened to before the first stage of a window.
  JobWork Next() const;
  int64_t WindowsFrom(int64_t frame) const;
  int32_t UnitsToListen() const { return p_.recording ? p_.recording->units_left() : 0; }
  void FollowRows(std::vector<BlockCopy>& copies);
  void Release();

  PreparedTranscribe p_;
  std::shared_ptr<TranscribeQueue> queue_;
  std::function<bool()> also_cancelled_;
  std::shared_ptr<Transcript> transcript_;
  JobServices services_;
  Phase phase_ = Phase::kNew;
  bool admitted_ = false;  // its reservation holds

  // The window
  const AudioWindow* wanted_ = nullptr;  // to be taken yet; null: it is there
  int64_t heard_until_ = 0;              // mel frame: the windows so far, this one among them
  bool parked_ = false;                  // the reader's queue had no room for what wanted_ will say
  std::optional<BlockTable> cross_;
  std::vector<int64_t> cross_slots_;
  std::vector<BlockId> matched_;                // scratch of TakeWindow
  int64_t cross_begin_ = -1, cross_size_ = -1;  // what cross_ holds, once stages_left_ is 0
  int32_t stages_left_ = 0;
  const AudioWindow* writing_ = nullptr;  // what is being encoded into cross_

  // The search: [1] row in the prompt, then one per live hypothesis; the tables behind num_rows_
  // are empty and keep their memory.
  std::vector<BlockTable> rows_, next_rows_;
  size_t num_rows_ = 0;
  std::vector<int32_t> heir_;  // scratch of FollowRows
  std::array<int32_t, 1> detection_prompt_{};
  std::span<const int32_t> prompt_;
  int32_t computed_ = 0;  // tokens every row has in its cache
  int32_t prefilling_ = 0;
  bool sot_in_chunk_ = false, last_in_chunk_ = false;

  int32_t blocks_peak_ = 0;
  bool ended_ = false;
};

}  // namespace sensorium
