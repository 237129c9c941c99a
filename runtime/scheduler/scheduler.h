// Who runs in the next step. Integers in, plan items out; no device, and no clock but the times it
// is told. Engine thread only. The same object runs in the server, in `bench replay` and in `bench
// simulate`.
//
// A job is one request's stream of work: encode units, then prefill tokens, then decode rows, as
// often as it says (a recording goes round once per window).
//
// Admission. A job is admitted with its worst-case KV blocks, rows and feature slots set aside, so
// that nothing it does later can fail for want of memory. Who is next: waiting_line.h. The next one
// waits until it fits and nobody overtakes it, but a preempted job that still holds the image
// features it waits for.
//
// `optimistic`: a job is admitted with what it is expected to need. When blocks run out, the
// youngest of the lowest priority is preempted: it gives everything back, waits in its old place
// and is computed again. A parked job goes before its turn, since nothing says how long its reader
// will take, but only while it was preempted less than kMostEarly times. Who was preempted so often
// is admitted with its worst case set aside: it grows at nobody's cost, and goes in its turn alone,
// for one that is ahead of it. And nobody comes back with less than it gave, of which another took
// some: between two preemptions of a job another one has ended or was preempted. So no reader is so
// slow that its sequence is computed again and again.
//
// A step has `target_step_us` of predicted device time. Decodes go first, always all of them. What
// is left is filled with encode units and prefill chunks, the tenant with the lowest counter first,
// cut to what fits. Where a single unit does not fit, its price is saved up over steps, an eighth
// of the target at least each. So with D the price of the step's decodes, a step is predicted to
// last at most D + max(target, dearest unit), and max(target, D + target / 8) on average. A unit is
// an encode unit, or a prefill chunk of 16 tokens with its pass. Without anybody decoding a unit
// runs at once. `target_step_us` 0: no budget, first come, first served.
//
// Schedule and Commit take time for what begins, ends, fills or runs out of blocks, and none for a
// decode that goes on: those stay in the plan, and what they cost is kept in sums.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/kv_cache/block_allocator.h"
#include "runtime/scheduler/cost_model.h"
#include "runtime/scheduler/decode_ledger.h"
#include "runtime/scheduler/growth_wheel.h"
#include "runtime/scheduler/job.h"
#include "runtime/scheduler/preemption_order.h"
#include "runtime/scheduler/waiting_line.h"

namespace sensorium {

struct SchedulerModel {
  int32_t block_size = 16;       // tokens of a KV block of its rows
  int32_t max_encode_units = 4;  // of one call: what the workspace holds
  int32_t feature_slots = 0;     // images whose features may be held at once
  Prices prices;                 // to begin with
};

struct SchedulerOptions {
  std::vector<SchedulerModel> models = {{}};
  std::vector<TenantOptions> tenants = {{}};
  int32_t max_batch_tokens = 512;  // of one model's forward pass
  int32_t max_batch_seqs = 64;     // rows of all jobs together
  int32_t max_waiting = 256;       // jobs in line, of all tenants together
  int32_t encoder_slots = 1;       // encoders that may be stopped half way at once, at least 1
  int64_t target_step_us = 0;
  int64_t starvation_us = 30'000'000;
  bool optimistic = false;
  uint64_t chaos_seed = 0;  // tests: random cuts and a random order within the step
};

struct StepPlan {
  std::vector<PlanItem> items;
  int64_t predicted_ns = 0;
  int64_t decode_ns = 0;  // of it, the decodes
};

// Hears every call that changes a scheduler, in order: what a trace is made of.
class SchedulerListener {
 public:
  virtual ~SchedulerListener() = default;
  // `request`: as Add was told it.
  virtual void OnAdd(JobId id, const JobSpec& spec, int64_t now_us, std::string_view request) = 0;
  virtual void OnRefuse(const JobSpec& spec, int64_t now_us, std::string_view request) = 0;
  virtual void OnRemove(JobId id) = 0;
  virtual void OnAdmit(JobId id, int64_t now_us) = 0;
  virtual void OnPreempt(JobId id) = 0;
  virtual void OnWork(JobId id, const JobWork& work) = 0;
  virtual void OnPrices(int32_t model, const Prices& prices) = 0;
  virtual void OnPlan(const StepPlan& plan, int64_t now_us) = 0;
  virtual void OnCommit(int64_t elapsed_us) = 0;
};

class Scheduler {
 public:
  // `blocks` and `listener` (may be null) outlive the scheduler.
  Scheduler(const SchedulerOptions& options, BlockAllocator& blocks,
            SchedulerListener* listener = nullptr);

  // When a job that comes now would have its first token, and its last. Before it, slowed by
  // today's decodes, goes what its own tenant has to encode and prefill, and of each other tenant's
  // what the shares give that one meanwhile. Where it cannot start at once it waits besides for the
  // first of those who run to end, as many as make room for it. A prediction, not a bound.
  // O(max_waiting + max_batch_seqs) for one with a deadline, whose tenant's lower priorities and
  // places in line are looked at; else O(tenants).
  struct Prediction {
    int64_t first_token_us = 0, end_us = 0;  // from now
  };
  Prediction Predict(const JobSpec& spec) const;

  // Queues a job. RESOURCE_EXHAUSTED with both numbers when it could never run, or the line is
  // full; DEADLINE_EXCEEDED with the predicted time when its first token would come too late.
  // `request` is for the listener alone: whose job it is.
  absl::StatusOr<JobId> Add(const JobSpec& spec, int64_t now_us, std::string_view request = {});
  // Takes a waiting or admitted job out and gives its reservation back. REQUIRES: an admitted job's
  // blocks have been released.
  void Remove(JobId id);

  // Admits who fits; the ids, in order. The caller starts them and tells their work.
  const std::vector<JobId>& Admit(int64_t now_us);
  // What an admitted job needs next. Needed where Commit cannot know: after a phase, parking,
  // waking.
  void SetWork(JobId id, const JobWork& work);
  // Plans a step over the admitted jobs' work. `preempt` must release the job's blocks before it
  // returns. The plan is valid until the next call.
  const StepPlan& Schedule(int64_t now_us, absl::FunctionRef<void(JobId)> preempt);
  // The plan has been carried out and took so long: charges it and counts its work as done.
  // REQUIRES: since Schedule no admitted job was removed, nor told other work if it is in the plan.
  // Others may have been added, and admitted.
  void Commit(int64_t elapsed_us);

  void SetPrices(int32_t model, const Prices& prices);
  const Prices& prices(int32_t model) const { return models_[model].prices; }
  JobCost cost(JobId id, int64_t now_us) const;  // REQUIRES: it was not removed

  // The most jobs of a tenant that may be in line: its own limit, else FairPart of the line. A
  // tenant is known when it is configured or was ever seen.
  int32_t MostWaiting(int32_t tenant) const;
  int32_t waiting() const { return line_.size(); }
  int32_t waiting(int32_t tenant) const { return line_.size_of(tenant); }
  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int64_t preemptions() const { return preemptions_; }
  const WaitingLine& line() const { return line_; }
  const SchedulerOptions& options() const { return options_; }
  void CheckInvariants() const;  // O(max_waiting + max_batch_seqs); takes no memory

  static constexpr int32_t kMostEarly = 2;
  static constexpr int64_t kSmallestChunk = 16;  // tokens: below it a pass is mostly its fixed cost

 private:
  static constexpr int64_t kLeastShare = 8;  // of the target goes to encodes and prefills at least
  static constexpr int kSlotBits = 24;       // of a job id; the rest counts up
  static int32_t SlotOf(JobId id) { return static_cast<int32_t>(id & ((1 << kSlotBits) - 1)); }

  struct Job {
    JobId id = 0;
    JobSpec spec;
    int64_t order = 0;
    int64_t arrival_us = 0;
    int32_t reserve = 0;  // blocks to set aside at the next admission
    int32_t preemptions = 0;
    int64_t fill_ns = 0;        // predicted encode and prefill work, when it came
    int64_t fill_left_ns = 0;   // of it not yet done, nor found in a cache
    int32_t running_idx = -1;   // into running_, or -1: waits
    bool has_features = false;  // its feature slots are set aside, see JobSpec
    int64_t served_us = 0;      // when it last was in a plan, or was admitted; not told of decodes
    int64_t billed_us = 0;      // until when its blocks are in `cost`
    JobCost cost;               // but for the decodes of the present run
  };
  // What planning reads of an admitted job.
  struct Running {
    JobId id = 0;
    int64_t context = 0;  // of one that decodes(), at step 0 of the ledger
    int64_t cross_len = 0;
    int64_t covered = 0;    // context that the rows may come to with what is reserved
    int64_t decode_ps = 0;  // cost of this run's decodes, but for those since it last joined them
    uint64_t bill = 0;      // the ledger's when it joined
    int32_t slot = 0;
    int32_t amount = 0;
    int32_t tables = 1;
    int32_t reserved = 0;                       // KV blocks
    int32_t plan_at = -1;                       // into the plan's items
    int32_t fill_at = -1;                       // into fills_
    int32_t later_units = 0, later_tokens = 0;  // as told
    int16_t model = 0;
    int16_t tenant = 0;
    int16_t encoder_slot = -1;
    WorkKind kind = WorkKind::kNone;

    // One of the decodes that go on. One that sits a step out is not.
    bool decodes() const { return kind == WorkKind::kDecode && plan_at >= 0; }
  };
  // For a place in a step; the smaller, the sooner. No two are equal.
  struct Candidate {
    int64_t counter = 0;  // its tenant's
    int64_t deadline_us = 0, order = 0;
    int32_t priority = 0, slot = 0;

    bool operator<(const Candidate& x) const {
      if (counter != x.counter) return counter < x.counter;
      if (priority != x.priority) return priority > x.priority;
      if (deadline_us != x.deadline_us) return deadline_us < x.deadline_us;
      return order < x.order;
    }
  };

  void Know(int32_t tenant);
  const Job& Of(JobId id) const;
  Job& Of(JobId id) { return const_cast<Job&>(std::as_const(*this).Of(id)); }
  int32_t BlocksAt(const JobSpec& spec, int64_t rows, int64_t context) const;
  int64_t FillNs(int32_t model, int64_t units, int64_t tokens, int64_t context,
                 int64_t cross_len) const;
  // What must be free for a job to start, or what one that ends gives back.
  struct Room {
    int64_t rows = 0, blocks = 0, features = 0;  // image slots of one model
    Room& operator+=(const Room& o) {
      rows += o.rows, blocks += o.blocks, features += o.features;
      return *this;
    }
    bool Holds(const Room& o) const {
      return rows >= o.rows && blocks >= o.blocks && features >= o.features;
    }
  };
  // An admitted job's end, as far as it is known, for Predict.
  struct Ending {
    int64_t steps = 0;
    Room room;
  };
  int32_t BlocksToStart(const JobSpec& spec) const;
  int64_t AheadNs(const JobSpec& spec, int64_t own_ns, int64_t lower_ns) const;
  int64_t StepsUntilRoom(const JobSpec& spec, const Room& ahead) const;
  void SetFillLeft(Job& job, int64_t ns);
  void GiveFeaturesBack(Job& job);
  void TellFillLeft(const Running& r, int64_t context, int64_t again);
  bool CanStart(const Job& job) const;
  int32_t HolderOfFeaturesFor(const Job& job) const;
  void Start(int32_t slot, int64_t now_us);
  void Stop(Job& job);  // takes it out of running_ and gives back what it has set aside
  static bool IsBehind(const Job& x, const Job& y);
  void SetReserved(Running& r, int32_t blocks);
  void SetKind(Running& r, WorkKind kind);
  int64_t ContextOf(const Running& r) const {
    return r.decodes() ? r.context + ledger_.steps() : r.context;
  }
  int64_t DecodePs(const Running& r) const;
  void Join(Running& r);    // the decodes that go on
  void Depart(Running& r);  // from them, if it is one
  void Bill(Job& job, int32_t blocks);
  void Extend(Running& r, int32_t more);
  void Preempt(int32_t slot, absl::FunctionRef<void(JobId)> preempt);
  bool Grow(int32_t running_idx, int64_t rows, int64_t context,
            absl::FunctionRef<void(JobId)> preempt);
  void Forgo(int32_t slot);
  void GrowDecodes(absl::FunctionRef<void(JobId)> preempt);
  void Unplan(Running& r);
  void SetPlanAt(int32_t at);
  void DropItem(int32_t at);
  void DropFills();
  void CommitFill(const PlanItem& item);
  void PlanDecodes(absl::FunctionRef<void(JobId)> preempt);
  bool HasRoom(const Running& r) const;
  Candidate CandidateOf(const Job& job, int64_t now_us) const;
  void FindCandidates(int64_t now_us, const Candidate& after, size_t most);
  void PlanFill(int64_t now_us, absl::FunctionRef<void(JobId)> preempt);
  void SumUp();
  void AddDecode(const Running& r, int64_t times);
  int64_t DecodeNs() const;
  Work WorkOf(const Running& r, WorkKind kind, int64_t amount) const;
  int64_t Largest(const Running& r, int64_t most, int64_t budget_ns) const;
  uint64_t Random();

  const SchedulerOptions options_;
  BlockAllocator& blocks_;
  SchedulerListener* const listener_;
  std::vector<SchedulerModel> models_;

  std::vector<Job> jobs_;  // by slot: the low bits of an id
  std::vector<int32_t> free_slots_;
  std::vector<Running> running_;  // dense, in no order that means anything
  WaitingLine line_;
  std::vector<char> blocked_;  // by tenant, scratch of Admit
  std::vector<int32_t> tenant_running_, tenant_blocks_;
  std::vector<char> tenant_known_;
  int32_t known_tenants_ = 0;
  std::vector<int32_t> feature_slots_used_;  // by model
  std::vector<int32_t> features_waiting_;    // by model: of these, by preempted jobs
  std::vector<int32_t> free_encoder_slots_;
  std::vector<JobId> admitted_;
  PreemptionOrder preemption_order_;   // optimistic: of who is admitted and has blocks
  std::vector<int32_t> grows_;         // slots of decodes that are at the end of their blocks
  std::vector<int32_t> needs_;         // by slot: blocks that its next token takes; 0 between plans
  std::vector<int64_t> tenant_needs_;  // their sums, by tenant
  int64_t all_needs_ = 0;
  std::vector<int32_t> resting_;  // slots of decodes that sit this step out
  GrowthWheel growth_;            // optimistic: when decodes come to the end of their blocks
  std::vector<int32_t> fills_;    // slots of who encodes or prefills
  std::vector<Candidate> candidates_;
  std::vector<int32_t> tokens_left_;     // by model, of this step
  std::vector<int64_t> forward_tokens_;  // by model, of this step
  std::vector<RowPrices> row_prices_;    // by model, of the step that Commit charges
  DecodeLedger ledger_;
  std::vector<Work> decode_work_;         // by model, of the decodes that go on
  std::vector<Work> tenant_decode_work_;  // the same by (tenant, model)
  mutable std::vector<Work> found_work_;  // of that size, scratch of CheckInvariants
  StepPlan plan_;                         // the decodes that go on, then, while it is made, fills
  int32_t num_decodes_ = 0;               // of its items
  StepPlan shuffled_;                     // chaos: what is shown of it
  int64_t fill_ns_ = 0;           // of its encodes and prefills, without the passes' fixed cost
  std::vector<int64_t> charges_;  // by tenant, scratch of Commit
  int64_t plan_us_ = 0;           // when it was made
  int64_t clock_us_ = 0;          // the latest time that it was told

  int64_t next_id_ = 1;
  int64_t next_order_ = 0;
  int32_t rows_reserved_ = 0;
  std::vector<int64_t> tenant_backlog_ns_;      // fill_left_ns of its jobs
  mutable std::vector<int64_t> found_backlog_;  // of that size, scratch of CheckInvariants
  mutable std::vector<Ending> endings_;         // scratch of Predict
  int64_t saved_ns_ = 0;                        // towards the unit that did not fit
  int64_t wanted_ns_ = 0;                       // what that unit costs
  int64_t preemptions_ = 0;
  uint64_t random_state_;
};

}  // namespace sensorium
