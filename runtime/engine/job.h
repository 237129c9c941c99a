// A request as the engine runs it: what it needs next, and what to do with what it got. One object
// per request, driven by the step loop. Engine thread only, except where said.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/publisher.h"
#include "runtime/engine/request.h"
#include "runtime/engine/step_batch.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/models/workspace.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

// Decoded media count against one budget from before they are decoded until their job ends.
class MediaReservation {
 public:
  MediaReservation() = default;
  explicit MediaReservation(std::function<void()> give_back) : give_back_(std::move(give_back)) {}
  MediaReservation(MediaReservation&& o) noexcept
      : give_back_(std::exchange(o.give_back_, nullptr)) {}
  MediaReservation& operator=(MediaReservation&& o) noexcept {
    if (this != &o) {
      Reset();
      give_back_ = std::exchange(o.give_back_, nullptr);
    }
    return *this;
  }
  ~MediaReservation() { Reset(); }
  void Reset() {
    if (give_back_) std::exchange(give_back_, nullptr)();
  }

 private:
  std::function<void()> give_back_;
};

// Where a request's time went. Phases are wall time of the steps the request took part in.
class JobClock {
 public:
  using Clock = std::chrono::steady_clock;
  explicit JobClock(Clock::time_point submitted) : submitted_(submitted) {}
  void Started() {
    if (!started_) started_ = Clock::now();
  }
  void Predicted(int64_t us) { timing_.predicted_us = us; }
  // What it has cost so far, as the scheduler charges it.
  void Charged(const JobCost& cost) { cost_ = cost; }
  const JobCost& cost() const { return cost_; }
  void FirstToken() {
    if (!first_token_) first_token_ = Clock::now();
  }
  void Add(WorkKind kind, int64_t us) {
    (kind == WorkKind::kEncode    ? timing_.encode_us
     : kind == WorkKind::kPrefill ? timing_.prefill_us
                                  : timing_.decode_us) += us;
  }
  Timing timing() const {
    Timing t = timing_;
    if (started_) t.queued_us = Us(*started_ - submitted_);
    if (first_token_) t.time_to_first_token_us = Us(*first_token_ - submitted_);
    return t;
  }

 private:
  static int64_t Us(Clock::duration d) {
    return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
  }
  const Clock::time_point submitted_;
  std::optional<Clock::time_point> started_, first_token_;
  Timing timing_;
  JobCost cost_;
};

// What the step loop lends its jobs; outlives them.
struct JobServices {
  BlockAllocator* blocks = nullptr;
  BlockCache* cache = nullptr;
  Publisher* publisher = nullptr;
  bool preempts = false;  // jobs may be preempted, and computed again
};

// Between Start and End nothing here but Attach takes memory from the heap.
class Job {
 public:
  virtual ~Job() = default;

  LoadedModel& model() const { return model_; }
  const JobSpec& spec() const { return spec_; }
  const std::optional<Deadline>& deadline() const { return deadline_; }
  JobClock& clock() { return clock_; }

  virtual const std::string& request_id() const = 0;  // as the client was told
  virtual bool Cancelled() const = 0;                 // nobody reads on

  // Takes all memory that its steps will need, on the submitting thread. Once, before all
  // that follows.
  virtual void Attach(const JobServices& services) = 0;
  // Takes what the caches have of it now out of what stands before its first token, as far as that
  // is known before it starts: of a recording, which windows will be heard is not.
  virtual void Foresee(JobSpec& spec) const {}
  // Admitted: its reservation holds from here on, until it ends or is preempted; then again.
  virtual void Start() = 0;
  // Gives every block back. What has been computed from them will be computed again after the next
  // Start, to the same bits; what the reader has, it has.
  virtual void Preempt() = 0;
  // Before each step: takes in what other threads have done for it. true: it has ended by that.
  virtual bool Poll() { return false; }
  // What it needs next; kNone when it has ended.
  virtual JobWork Pending() const = 0;
  // `state`: the encoder slot, which keeps its content from one call to the next.
  virtual void RunEncode(int32_t units, TensorView state, Workspace& workspace) = 0;
  virtual void AddPrefill(int32_t tokens, StepBatch& batch) = 0;
  virtual void AddDecode(StepBatch& batch) = 0;
  // After the forward pass that its AddPrefill or AddDecode went into. `chosen` is what came of the
  // choices it asked for, in order; copies that its forks need go to `copies`.
  virtual void OnForward(std::span<const ChosenToken> chosen, std::vector<BlockCopy>& copies) = 0;
  virtual bool Ended() const = 0;
  // What it owns now: KV blocks in all its tables, and holds of its model's feature slots.
  virtual int32_t BlocksHeld() const = 0;
  virtual int32_t FeaturesHeld() const { return 0; }
  // Ends it early (or confirms its end): tells the reader and gives every block back. Idempotent.
  virtual void End(absl::Status status) = 0;

 protected:
  Job(LoadedModel& model, std::optional<Deadline> deadline, JobClock::Clock::time_point submitted)
      : model_(model), deadline_(deadline), clock_(submitted) {}
  LoadedModel& model_;
  JobSpec spec_;
  std::optional<Deadline> deadline_;
  JobClock clock_;
};

// The cost half of a request's Usage.
inline void AddCost(const JobCost& cost, Usage& usage) {
  usage.encode_device_us += cost.encode_ns / 1000;
  usage.prefill_device_us += cost.prefill_ns / 1000;
  usage.decode_device_us += cost.decode_ns / 1000;
  usage.kv_block_ms += cost.block_ns / 1'000'000;
}
inline void AddCost(const Usage& cost, Usage& usage) {
  usage.encode_device_us += cost.encode_device_us;
  usage.prefill_device_us += cost.prefill_device_us;
  usage.decode_device_us += cost.decode_device_us;
  usage.kv_block_ms += cost.kv_block_ms;
}

}  // namespace sensorium
