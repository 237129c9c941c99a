// Requests in: everything between a client's call and the engine thread. Looks the model up, counts
// who is accepted, and has media decoded and text tokenised on a few preparation threads; what comes
// out is a Job. All that a stranger can make us hold is counted before it is held: requests by
// tickets, the bytes of media, decoded or not, by one budget. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/preparation.h"
#include "runtime/engine/task_pool.h"
#include "runtime/engine/tenant_directory.h"

namespace sensorium {

class Intake;

// A request's place in the count of accepted requests; gives it back when it goes.
struct Ticket {
  Ticket(Intake& i, int32_t t) : intake(i), tenant(t) {}
  ~Ticket();
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  Intake& intake;
  const int32_t tenant;  // index, see TenantDirectory
};
using TicketPtr = std::shared_ptr<Ticket>;

class Intake {
 public:
  // The step loop, as seen from here. Callable from any thread.
  struct StepLoop {
    // Takes a prepared job over; its refusal reaches its reader as its end.
    std::function<void(std::unique_ptr<Job> job, TicketPtr ticket)> submit;
    std::function<void()> wake;   // a queue has room again; may be called after the engine is gone
    std::function<bool()> broken;  // the device failed: nothing will be served any more
  };

  // `models` outlive it and stay as they are. NOT_FOUND: config.speech_model;
  // INVALID_ARGUMENT: config.max_tenants.
  static absl::StatusOr<std::unique_ptr<Intake>> Create(
      const EngineConfig& config,
      std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop);
  // REQUIRES: no ticket is left.
  ~Intake() = default;

  std::shared_ptr<GenerateQueue> Generate(GenerateRequest request);
  std::shared_ptr<TranscribeQueue> Transcribe(TranscribeRequest request);
  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request);

  void StopAccepting();  // UNAVAILABLE from here on
  // Preparations end within a few rows or blocks of media from here on, with UNAVAILABLE.
  void StopPreparing() { ending_ = true; }
  // Returns whether all tickets were given back by `deadline`; nullopt waits for it.
  bool WaitUntilEmpty(std::optional<Deadline> deadline);
  size_t media_bytes() const { return media_budget_.used(); }

 private:
  friend struct Ticket;
  using Clock = std::chrono::steady_clock;

  Intake(const EngineConfig& config,
         std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop);

  absl::StatusOr<TicketPtr> Enter(const std::string& tenant);
  void Leave(int32_t tenant);
  absl::StatusOr<LoadedModel*> FindModel(const std::string& name, bool whisper) const;
  std::string NextRequestId(const char* kind);

  // On a preparation thread: `work`, whose failure, an exception included, is the end of `queue`.
  void Post(std::shared_ptr<TranscribeQueue> queue, std::function<absl::Status()> work);

  // Spoken parts first, one behind the other; then the prompt. Runs on the preparation threads.
  struct PendingGenerate;
  // As Post; the end says what was spent on the spoken parts.
  void PostFor(std::shared_ptr<PendingGenerate> pending, std::function<absl::Status()> work);
  absl::Status TranscribeNextPart(std::shared_ptr<PendingGenerate> pending);
  absl::Status TakeHeard(std::shared_ptr<PendingGenerate> pending,
                         const std::shared_ptr<TranscribeQueue>& hearing);
  absl::Status FinishGenerate(std::shared_ptr<PendingGenerate> pending);
  absl::Status SubmitTranscribe(LoadedModel& model, TranscribeRequest request,
                                MediaReservation undecoded, std::shared_ptr<TranscribeQueue> queue,
                                TicketPtr ticket, const std::string& request_id,
                                Clock::time_point submitted, std::function<bool()> also_cancelled);
  absl::StatusOr<TokenizeResult> TokenizeNow(const TokenizeRequest& request);

  const EngineConfig config_;
  const std::span<const std::unique_ptr<LoadedModel>> models_;
  const StepLoop loop_;
  LoadedModel* speech_model_ = nullptr;  // constant after Create
  MediaBudget media_budget_;
  TenantDirectory tenants_;
  std::atomic<bool> ending_{false};
  std::atomic<int64_t> next_request_{1};

  std::mutex mu_;
  std::condition_variable empty_;
  bool accepting_ = true;  // guarded by mu_, as below
  int32_t accepted_ = 0;   // requests that hold a ticket

  TaskPool preparation_;  // last: its threads use all of the above
};

}  // namespace sensorium
