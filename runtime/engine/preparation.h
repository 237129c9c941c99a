// Before a request reaches the engine thread: checks against the model, decoding of media, tokenising.
// Runs on a few threads of its own. The functions are thread-safe: models are read only.
#pragma once

#include <atomic>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/generate_job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/transcribe_job.h"

namespace sensorium {

// Bytes of decoded media that all requests together may hold.
class MediaBudget {
 public:
  explicit MediaBudget(size_t limit_bytes) : limit_(limit_bytes) {}
  // RESOURCE_EXHAUSTED with both numbers when there is no room; otherwise held until the
  // reservation goes. REQUIRES: the budget outlives it.
  absl::StatusOr<MediaReservation> Take(size_t bytes);
  size_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  const size_t limit_;
  std::atomic<size_t> used_{0};
};

// Decodes and tokenises; `heard` are the transcripts of the request's audio parts, in order.
absl::StatusOr<PreparedGenerate> PrepareGenerate(const LoadedModel& model,
                                                 const EngineConfig& config, MediaBudget& budget,
                                                 GenerateRequest request,
                                                 const std::vector<std::string>& heard);

// Decodes the recording and computes its log-mel spectrogram.
absl::StatusOr<PreparedTranscribe> PrepareTranscribe(const LoadedModel& model,
                                                     const EngineConfig& config,
                                                     MediaBudget& budget,
                                                     TranscribeRequest request);

}  // namespace sensorium
