// An engine without a device: submits requests to a Scheduler, carries its plans out on real block
// tables, and lets the clock go on by what each plan is predicted to take. It holds every plan
// against the rules of scheduler.h; a broken one aborts with the values (CHECK).
//
// Made for millions of steps a minute: a few live jobs, found by walking them, whose tables are
// used again.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/kv_cache/block_table.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

// SplitMix64 (Steele et al. 2014): a good deal cheaper than <random>.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t Roll() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int32_t Uniform(int32_t low, int32_t high) {  // both inclusive
    const uint64_t span = static_cast<uint64_t>(int64_t{high} - low + 1);
    return low + static_cast<int32_t>(((Roll() >> 32) * span) >> 32);
  }
  bool OneIn(int32_t n) { return Uniform(1, n) == 1; }

 private:
  uint64_t state_;
};

// `rounds` times: encode, prefill, fork into spec.rows, decode. A recording goes round per window.
struct FakeRequest {
  JobSpec spec;  // max_context >= prompt_tokens + decode_tokens
  int32_t encode_units = 0;
  int32_t prompt_tokens = 1;
  int32_t decode_tokens = 1;
  int32_t rounds = 1;
};

class FakeEngine {
 public:
  struct Job {
    JobId id = 0;  // 0: free
    FakeRequest request;
    bool admitted = false;
    bool parked = false;
    bool starved = false;  // it had waited so long when it was admitted
    int64_t arrival_us = 0;
    bool encoded = false;  // this round: its features are kept if it is preempted
    JobWork work;
    int32_t encoder_slot = -1;
    int32_t rounds_left = 0;
    int32_t decoded = 0;  // of this round
    int32_t preemptions = 0;
    bool planned = false;            // scratch of a step
    std::vector<BlockTable> tables;  // work.amount of those of a decode are alive
    BlockTable fixed;                // of spec.fixed_blocks; its block size is 1
  };

  FakeEngine(const SchedulerOptions& options, int32_t num_blocks, uint64_t seed = 1);

  absl::StatusOr<JobId> Submit(const FakeRequest& request);
  void Cancel(JobId id);
  void Park(JobId id, bool parked);
  void ParkAnybody(bool parked);  // an admitted one at random, if there is one
  void CancelAnybody();
  void CancelAnybodyWhoWaits();
  void UnparkAll();
  void SetPrices(int32_t model, const Prices& prices);

  // Admit, Schedule, carry out, Commit; then all invariants. False: nobody had anything to do.
  // `while_it_works`, between Schedule and Commit, may Submit, AdmitWaiting and
  // CancelAnybodyWhoWaits.
  bool Step(absl::FunctionRef<void()> while_it_works = [] {});
  void AdmitWaiting();
  // As many steps as it takes; CHECKs that it takes no more than `most`.
  void Finish(int64_t most);

  Scheduler& scheduler() { return scheduler_; }
  BlockAllocator& blocks() { return blocks_; }
  const StepPlan& plan() const { return plan_; }                      // the last step's
  const std::vector<JobId>& preempted() const { return preempted_; }  // in the last step
  const Job* Find(JobId id) const;                                    // null: it has ended
  int32_t live() const { return static_cast<int32_t>(live_.size()); }
  int64_t now_us() const { return now_us_; }
  void Sleep(int64_t us) { now_us_ += us; }
  void set_rows_end(bool rows_end) { rows_end_ = rows_end; }  // rows of a decode end at random

  int64_t finished() const { return finished_; }
  int64_t tenant_ns(int32_t tenant) const { return tenant_ns_[tenant]; }  // of who has ended
  // All plans' predicted time, all jobs' cost, and the plan items, each worth 2 ns of rounding.
  int64_t predicted_ns() const { return predicted_ns_; }
  int64_t cost_ns() const;
  int64_t items() const { return items_; }

 private:
  Job& Get(JobId id);
  int32_t MostWaiting(int32_t tenant);  // now that one of its requests comes
  void End(Job& job);
  void StartRound(Job& job);
  void Tell(Job& job);
  void OnPreempt(JobId id);
  void CheckPlan(int64_t preemptions_before);
  void CheckBound(bool preempted);
  void CheckOwnership() const;
  int64_t DearestUnitNs() const;
  void Perform(const PlanItem& item);
  static bool IsBehind(const Job& a, const Job& b);

  const SchedulerOptions options_;
  Dice dice_;
  BlockAllocator blocks_;  // outlives the tables of the jobs
  Scheduler scheduler_;
  std::vector<Job> jobs_;      // never grows
  std::vector<int32_t> live_;  // into jobs_
  std::vector<BlockCopy> copies_;
  std::vector<int32_t> tokens_;  // by model, scratch of CheckPlan
  StepPlan plan_;
  std::vector<JobId> preempted_;
  std::vector<char> came_;  // by tenant
  bool rows_end_ = false;
  int64_t now_us_ = 1'000'000;
  int64_t finished_ = 0;
  std::vector<int64_t> tenant_ns_;
  int64_t predicted_ns_ = 0, ended_cost_ns_ = 0, items_ = 0;
  int64_t dearest_before_ns_ = 0;
  int64_t dearest_ns_ = 0;                // of this step or the one before
  int64_t filled_ns_ = 0, share_ns_ = 0;  // since somebody began to decode
};

}  // namespace sensorium
