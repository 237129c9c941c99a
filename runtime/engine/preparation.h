// Before a request reaches the engine thread: checks against the model, decoding of media, tokenising.
// Runs on a few threads of its own. The functions are thread-safe: models are read only.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/stop.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/generate_job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/transcribe_job.h"
#include "runtime/media/molmo_image.h"

namespace sensorium {

// Bytes of media, as files and decoded, that all requests together may hold.
class MediaBudget {
 public:
  explicit MediaBudget(size_t limit_bytes) : limit_(limit_bytes) {}
  // RESOURCE_EXHAUSTED with both numbers when there is no room; otherwise held until the
  // reservation goes. REQUIRES: the budget outlives it.
  // A size that no waiting would make room for has the payload of NeverFits.
  absl::StatusOr<MediaReservation> Take(size_t bytes);
  size_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  friend class MediaHold;
  // `more` bytes on top of the `held` that the caller has already.
  absl::Status Add(size_t more, size_t held);

  const size_t limit_;
  std::atomic<size_t> used_{0};
};

// A part of the budget whose size follows what is there. Not thread-safe.
class MediaHold {
 public:
  explicit MediaHold(MediaBudget& budget) : budget_(&budget) {}
  MediaHold(MediaHold&& o) noexcept : budget_(o.budget_), bytes_(std::exchange(o.bytes_, 0)) {}
  MediaHold& operator=(MediaHold&&) = delete;
  ~MediaHold() { budget_->used_.fetch_sub(bytes_); }
  // As Take for what is missing; what is too much is given back.
  absl::Status Resize(size_t bytes);
  // `bytes` of it go their own way. REQUIRES: it has them.
  MediaReservation Split(size_t bytes);
  MediaReservation SplitAll() { return Split(bytes_); }

 private:
  MediaBudget* budget_;
  size_t bytes_ = 0;
};

// Why a request should not be prepared any further: its reader is gone, its deadline has passed, the
// server ends, or its media take more CPU time to decode than any honest file. Made on the thread
// that prepares it, whose CPU time counts from then on.
class StopReason {
 public:
  // `cancelled` may be empty; `ending` outlives it.
  StopReason(std::function<bool()> cancelled, std::optional<Deadline> deadline,
             const std::atomic<bool>& ending, double decode_seconds);
  absl::Status Check() const;  // OK: go on
  // For long loops; outlived by this.
  Stop stop() const {
    return [this] { return Why() != Reason::kNone; };
  }

 private:
  enum class Reason : uint8_t { kNone, kEnding, kCancelled, kDeadline, kDecodeTime };
  Reason Why() const;

  const std::function<bool()> cancelled_;
  const std::optional<Deadline> deadline_;
  const std::atomic<bool>& ending_;
  const double decode_seconds_;
  const double began_;  // CPU seconds of this thread
};

// What every preparation needs.
struct Preparation {
  const EngineConfig& config;
  MediaBudget& budget;
  const StopReason& stop;
};

// DecodeAudio within the budget: `hold` follows the samples. Errors are about the field "audio".
absl::StatusOr<std::vector<float>> DecodeWithin(const Preparation& preparation,
                                                const std::string& audio, MediaHold& hold);

// Names the field that an INVALID_ARGUMENT is about, unless it names one already.
absl::Status AboutField(absl::Status status, std::string_view field);

// A request's picture before it is decoded: how it will be cut, and the place of its pixels and
// patches in the budget.
struct PictureRoom {
  MolmoImageLayout layout;
  MediaReservation decoded;
};
// By the header of the first message's picture; nullopt: it has none. RESOURCE_EXHAUSTED as
// MediaBudget::Take.
absl::StatusOr<std::optional<PictureRoom>> MakeRoomForPicture(const LoadedModel& model,
                                                              const Preparation& preparation,
                                                              const GenerateRequest& request);

// Decodes and tokenises; `picture` is what MakeRoomForPicture found for the request, `heard` are the transcripts of the request's audio parts, in order.
absl::StatusOr<PreparedGenerate> PrepareGenerate(const LoadedModel& model,
                                                 const Preparation& preparation,
                                                 GenerateRequest request,
                                                 std::optional<PictureRoom> picture,
                                                 const std::vector<std::string>& heard);

// Decodes the recording and, unless the device does, computes its log-mel spectrogram. `undecoded`
// is the file's place in the budget, given back with the file.
absl::StatusOr<PreparedTranscribe> PrepareTranscribe(const LoadedModel& model,
                                                     const Preparation& preparation,
                                                     TranscribeRequest request,
                                                     MediaReservation undecoded);

}  // namespace sensorium
