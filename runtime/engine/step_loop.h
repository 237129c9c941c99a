// The engine's thread: owns every job, KV block, cache and byte of the device, and runs
// plan -> batch -> forward and choose -> wait -> publish. Between its last queued op and the wait
// it does what needs no result: takes submissions, ends who was cancelled and is not in the step.
// All device memory is taken before it starts, and a turn of the loop takes none from the heap
// either: what its requests need of it was taken as they came, on their threads, down to their
// place in the books. What still takes some here is the text of a refusal, and of a device that
// broke.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_memory.h"
#include "runtime/engine/job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/publisher.h"
#include "runtime/engine/step_batch.h"
#include "runtime/kv_cache/block_allocator.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/models/workspace.h"
#include "runtime/scheduler/cost_model.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/scheduler/trace.h"

namespace sensorium {

class StepLoop {
 public:
  using Clock = std::chrono::steady_clock;
  // Kept while its job lives; what it is, is its maker's business.
  using Ticket = std::shared_ptr<const void>;

  // Takes the arena, the workspaces and the slots, measures the models. INVALID_ARGUMENT names the
  // config key, RESOURCE_EXHAUSTED both numbers. The models' KV views and caches are set up;
  // `models` and `backend` outlive the loop.
  static absl::StatusOr<std::unique_ptr<StepLoop>> Create(
      const EngineConfig& config, std::vector<TenantOptions> tenants, Backend& backend,
      std::span<const std::unique_ptr<LoadedModel>> models);
  ~StepLoop();  // ends what is left and joins

  void Start();  // the thread
  // Thread-safe, all below. A job's refusal reaches its reader as its end.
  void Submit(std::unique_ptr<Job> job, int32_t tenant, Ticket ticket);
  void Wake() { waker_->Wake(); }
  void CancelAll();  // jobs that run or come later end with UNAVAILABLE
  EngineStats Stats() const;
  // Rings the loop's bell; may outlive the loop.
  std::function<void()> WakeFunction() const;

 private:
  // What rings the engine's bell. Shared with the requests' queues, whose readers may outlive it.
  class Waker {
   public:
    void Wake();
    // Waits for a Wake since the last return, at most until `until`.
    void Wait(const std::optional<Deadline>& until);

   private:
    std::mutex mu_;
    std::condition_variable bell_;
    bool rung_ = false;  // guarded by mu_
  };
  struct Running {
    std::unique_ptr<Job> job;
    Ticket ticket;
    bool admitted = false;
    std::optional<Clock::time_point> parked_since;  // as of the last step
    bool in_step = false;                           // from its plan to its end
  };
  using Jobs = std::map<JobId, Running>;
  struct Submitted {
    Jobs::node_type place;  // in jobs_, once it has an id
    int32_t tenant;
  };
  // What jobs that end early are told; made once, since a status with a text is on the heap.
  struct Farewells {
    absl::Status shutdown, cancelled, deadline, unread;
  };
  // One model's part of a step.
  struct ModelStep {
    StepBatch batch;
    struct Entry {
      JobId id;
      Job* job;
      WorkKind kind;
      size_t first_choice;
    };
    std::vector<Entry> entries;
    Work work;  // of the forward pass
    ChosenTokens chosen;
    int32_t mark = 0;  // before it; the next one is behind it
  };
  struct EncodeStep {
    Job* job;
    int32_t units;
    int32_t mark;  // as a ModelStep's
  };

  StepLoop(const EngineConfig& config, Backend& backend,
           std::span<const std::unique_ptr<LoadedModel>> models);
  absl::Status TakeMemory(std::vector<TenantOptions> tenants);
  void TakeStepMemory();
  void Calibrate();

  void Run();
  int64_t Now() const;  // microseconds since the loop was made: the scheduler's clock
  void TakeSubmissions();
  void TakeIn(Submitted submitted);
  void EndCancelled();
  void End(JobId id, Job& job, const absl::Status& status);
  bool Step();  // false: nothing to do
  enum class Planned : uint8_t { kNothing, kOnlyEnds, kQueued };
  void AdmitWaiting();
  Planned PlanAndQueue();
  void Finish();  // of what was queued
  void Encode(const PlanItem& item, Job& job);
  void AddToBatch(const PlanItem& item, Job& job);
  void Forward(int32_t model);
  void Measure();  // what the device took for each part of the step
  void Publish(int32_t model);
  int32_t TakeMarks();  // two of them, the first of which is put
  void Observe(int32_t model, const Work& work, int64_t ns);
  void TellWork(JobId id, Running& running);
  // When a job has to end whatever it does: at its own deadline, or its reader's.
  std::optional<Deadline> LastMoment(const Running& running) const;
  void Reap();
  void CheckInvariants() const;  // of who owns what, after each turn; O(jobs)
  void FailAll(const absl::Status& status);
  void PublishStats();

  const EngineConfig config_;
  Backend& be_;
  const std::span<const std::unique_ptr<LoadedModel>> models_;
  const Clock::time_point start_ = Clock::now();
  const Farewells farewells_;

  // Taken by TakeMemory; engine thread only from Start on
  EngineMemory memory_;
  std::vector<CostModel> costs_;  // by model
  std::unique_ptr<TraceWriter> trace_;
  std::unique_ptr<Scheduler> scheduler_;
  Jobs jobs_;
  std::vector<ModelStep> steps_;     // by model
  std::vector<EncodeStep> encodes_;  // of this step
  int32_t marks_taken_ = 0;          // of this step
  Clock::time_point step_start_;
  std::vector<BlockCopy> copies_;
  int64_t num_steps_ = 0;
  Publisher publisher_;

  const std::shared_ptr<Waker> waker_ = std::make_shared<Waker>();
  mutable std::mutex mu_;
  bool stopping_ = false;  // guarded by mu_, as all below
  bool cancel_all_ = false;
  std::vector<Submitted> submitted_;
  EngineStats stats_;

  std::thread thread_;
};

}  // namespace sensorium
