// A Generate request on the engine: encode the image crop by crop, prefill the prompt in chunks,
// then decode n answers together.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/answer_stream.h"
#include "runtime/engine/device_media.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/job.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/kv_cache/encoder_cache.h"
#include "runtime/media/molmo_image.h"
#include "runtime/sampling/sampler.h"

namespace sensorium {

// What preparation made of the request.
struct PreparedGenerate {
  GenerateRequest request;
  std::string request_id;
  std::string heard;
  std::vector<int32_t> prompt;  // token ids, BOS first
  std::optional<MolmoImageInputs> image;
  std::optional<DevicePicture> picture;  // where the device makes the image's patches
  int32_t image_width = 0, image_height = 0;
  int32_t max_tokens = 0;  // within the context
  Usage hearing;           // what its spoken parts have come to
  MediaReservation media;
  JobClock::Clock::time_point submitted;
};

class GenerateJob : public Job {
 public:
  // Hashes the picture and the prompt: not for the engine's thread. `tenant_salt` keeps tenants
  // from finding each other's prompts in the cache.
  // `max_unsaid`: tokens that may wait for the publisher. `wake` rings the engine's bell.
  GenerateJob(LoadedModel& model, PreparedGenerate prepared, std::shared_ptr<GenerateQueue> queue,
              std::string_view tenant_salt, size_t max_unsaid, std::function<void()> wake);
  ~GenerateJob() override;

  const std::string& request_id() const override { return p_.request_id; }
  bool Cancelled() const override { return stream_->cancelled(); }
  void Attach(const JobServices& services) override;
  void Start() override;
  void Preempt() override;
  JobWork Pending() const override;
  void Foresee(JobSpec& spec) const override;
  void RunEncode(int32_t units, TensorView state, Workspace& workspace) override;
  void AddPrefill(int32_t tokens, StepBatch& batch) override;
  void AddDecode(StepBatch& batch) override;
  void OnForward(std::span<const ChosenToken> chosen, std::vector<BlockCopy>& copies) override;
  bool Ended() const override { return ended_; }
  int32_t BlocksHeld() const override;
  int32_t FeaturesHeld() const override { return features_ ? 1 : 0; }
  void End(absl::Status status) override;

 private:
  struct Answer {
    Answer(const Tokenizer& tokenizer, BlockTable table, Sampler sampler)
        : table(std::move(table)),
          sampler(std::move(sampler)),
          decoder(tokenizer, /*skip_special=*/true) {}
    int32_t index = 0;  // of n
    BlockTable table;
    int32_t computed = 0;  // tokens in its cache: the prompt and all answer tokens but the newest
    std::vector<int32_t> tokens;
    Sampler sampler;                 // has heard of all of them
    std::vector<ContentHash> chain;  // of its full blocks, the prompt's first
    StreamDecoder decoder;
    std::string held;      // text the reader has not: it may become a stop string
    bool started = false;  // text has begun
    bool done = false;
  };
  // In the image slots' books.
  EncoderCache::HolderId holder() const { return reinterpret_cast<intptr_t>(this); }
  int32_t ImageTokens() const;
  int32_t PromptTokens() const { return static_cast<int32_t>(p_.prompt.size()); }
  // The picture's vectors are needed from here on: in a slot of its own, or another's that has
  // them.
  bool WaitsForFeatures() const;
  void DropFeatures();
  std::span<const ContentHash> UsableChain() const;
  int32_t UnitsToResize() const { return p_.picture ? p_.picture->units() - resized_ : 0; }
  // The answer, of those alive, that lacks cache for tokens it had before a preemption.
  const Answer* Behind() const;
  void KeepPrompt();
  // A block of the answer that has become full is kept like the prompt's.
  void KeepAnswer(Answer& answer);
  void Post() { services_.publisher->Post(stream_); }
  void Fork(std::vector<BlockCopy>& copies);
  void Choose(const Answer& answer, int32_t row, StepBatch& batch) const;
  void Take(Answer& answer, const ChosenToken& chosen);
  // How much of answer.held the reader may have: all that can no longer become part of a stop
  // string. `stopped`: one came, and is cut off.
  size_t Sayable(Answer& answer, bool last, bool& stopped) const;
  void Finish(Answer& answer, FinishReason reason);
  Usage MakeUsage(size_t completion_tokens) const;

  PreparedGenerate p_;
  std::shared_ptr<AnswerStream> stream_;
  GenerateStarted started_;  // until it is sent
  JobServices services_;
  ContentHasher hasher_;

  ContentHash image_hash_;
  ContentHash root_;                   // of the chains
  std::vector<ContentHash> chain_;     // of the prompt's full blocks
  std::vector<int32_t> block_tokens_;  // scratch of KeepAnswer
  std::vector<BlockId> matched_;       // scratch of Start
  std::optional<EncoderCache::Lease> features_;
  std::vector<std::pair<int32_t, int32_t>> feature_at_;  // (position, row), by position
  std::vector<int32_t> kept_before_;                     // features of crops [0, c)
  int32_t resized_ = 0;  // units of p_.picture, onto this encode's state
  int32_t crops_done_ = 0;
  int32_t prefilling_ = 0;       // tokens of the chunk in flight
  Answer* chunk_of_ = nullptr;   // whose
  bool forked_ = false;          // all n answers have a table
  bool announced_ = false;       // the reader has its Started
  std::vector<Answer> answers_;  // [n]; only the first is alive until forked_
  std::vector<int32_t> feature_rows_, feature_offsets_;  // scratch
  int32_t cached_tokens_ = 0;                            // of the prompt, at the first start
  int32_t blocks_peak_ = 0;
  bool ended_ = false;
};

}  // namespace sensorium
