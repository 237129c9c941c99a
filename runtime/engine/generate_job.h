// A Generate request on the engine: encode the image crop by crop, prefill the prompt in chunks, then
// decode n answers together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/engine/job.h"
#include "runtime/media/molmo_image.h"
#include "runtime/models/molmo_points.h"
#include "runtime/sampling/sampler.h"

namespace sensorium {

// What preparation made of the request.
struct PreparedGenerate {
  GenerateRequest request;
  std::string request_id;
  std::string heard;
  std::vector<int32_t> prompt;  // token ids, BOS first
  std::optional<MolmoImageInputs> image;
  int32_t image_width = 0, image_height = 0;
  int32_t max_tokens = 0;  // within the context
  int64_t audio_ms = 0;
  MediaReservation media;
  JobClock::Clock::time_point submitted;
};

class GenerateJob : public Job {
 public:
  GenerateJob(LoadedModel& model, Backend& backend, PreparedGenerate prepared,
              std::shared_ptr<GenerateQueue> queue);

  bool Cancelled() const override { return queue_->cancelled(); }
  void Start(BlockAllocator& blocks) override;
  Work Pending() const override;
  void RunEncode(int32_t units, Workspace& workspace) override;
  void AddPrefill(int32_t tokens, StepBatch& batch) override;
  void AddDecode(StepBatch& batch) override;
  void OnForward(std::span<const float> logits, std::vector<BlockCopy>& copies) override;
  bool Ended() const override { return ended_; }
  void End(const absl::Status& status) override;

 private:
  struct Answer {
    Answer(const Tokenizer& tokenizer, BlockTable table)
        : table(std::move(table)), decoder(tokenizer, /*skip_special=*/true) {}
    int32_t index = 0;  // of n
    BlockTable table;
    std::vector<int32_t> tokens;
    StreamDecoder decoder;
    std::string text;          // so far, the leading space stripped
    size_t emitted = 0;        // bytes of text the reader has
    std::optional<MolmoPointParser> points;
    bool started = false;      // text has begun
    bool done = false;
  };
  void Sample(Answer& answer, std::span<const float> logits);
  // Takes new text in, sends what can no longer become part of a stop string; true: a stop string
  // came.
  bool TakeText(Answer& answer, std::string piece, bool last, std::string& delta);
  void SendPoints(Answer& answer, const std::vector<MolmoPoint>& points);
  void Finish(Answer& answer, FinishReason reason);
  int32_t CountBlocks() const;
  Usage MakeUsage(const Answer& answer) const;

  Backend& be_;
  PreparedGenerate p_;
  std::shared_ptr<GenerateQueue> queue_;
  Sampler sampler_;
  BlockAllocator* blocks_ = nullptr;

  std::unique_ptr<DeviceBuffer> feature_buffer_;
  TensorView features_;                 // float32 [kept, hidden], crop order
  std::vector<std::pair<int32_t, int32_t>> feature_at_;  // (position, row), by position
  std::vector<int32_t> kept_before_;    // features of crops [0, c)
  int32_t crops_done_ = 0;
  int32_t computed_ = 0;                // prompt tokens
  int32_t prefilling_ = 0;              // tokens of the chunk in flight
  std::vector<Answer> answers_;         // [1] until the prompt is computed, then [n]
  std::vector<int32_t> feature_rows_, feature_offsets_;  // scratch
  int32_t blocks_peak_ = 0;
  bool ended_ = false;
};

}  // namespace sensorium
