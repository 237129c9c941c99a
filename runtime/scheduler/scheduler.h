// Who runs in the next step. Integers in, plan items out; no clock, no device. Engine thread only.
//
// A job is one request's stream of work: encode units (image crops, audio windows), then prefill
// tokens, then decode rows, as often as it says (a recording goes round once per window). Jobs are
// admitted in the order they came, each with its worst-case blocks and rows reserved; the first
// that does not fit waits, and everybody behind it too. Within a step decodes go first, then
// prefill chunks under the token budget, then encode units under theirs, oldest job first.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "runtime/kv_cache/block_allocator.h"

namespace sensorium {

using JobId = int64_t;

enum class WorkKind : uint8_t {
  kNone,     // parked: a full reader, or between two phases
  kEncode,   // amount: units left; may be cut
  kPrefill,  // amount: tokens left; may be cut
  kDecode,   // amount: rows, one token each; all or none
};

struct SchedulerOptions {
  int32_t max_batch_tokens = 512;
  int32_t max_batch_seqs = 64;
  int32_t max_encode_units = 4;
  uint64_t chaos_seed = 0;  // tests: random cuts and a random order within the step
};

struct JobSpec {
  JobId id = 0;
  int32_t blocks = 0;     // worst case, of all its tables together
  int32_t rows = 1;       // most rows it decodes at once, at least 1: what keeps a prefill moving
  int32_t unit_cost = 1;  // of one encode unit, in crops; at least 1
};

struct PlanItem {
  JobId job;
  WorkKind kind;
  int32_t amount;
};

class Scheduler {
 public:
  // `blocks` outlives the scheduler.
  Scheduler(const SchedulerOptions& options, BlockAllocator& blocks);

  // Whether the job could ever be admitted, with everybody else gone.
  bool Fits(const JobSpec& job) const;
  // Queues a job. REQUIRES: Fits(job), id new.
  void Add(const JobSpec& job);
  // Takes a waiting or admitted job out and gives its reservation back.
  // REQUIRES: an admitted job's blocks have been released.
  void Remove(JobId id);
  // What an admitted job needs next, replacing what it needed before.
  void SetWork(JobId id, WorkKind kind, int32_t amount);

  // Admits who fits.
  std::vector<JobId> Admit();
  // Plans a step over the admitted jobs' work. Changes nothing: the engine reports what was done
  // through SetWork.
  std::vector<PlanItem> Schedule();

  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  void CheckInvariants() const;

 private:
  struct Job {
    JobSpec spec;
    int64_t order = 0;
    WorkKind kind = WorkKind::kNone;
    int32_t amount = 0;
  };
  uint64_t Random();

  const SchedulerOptions options_;
  BlockAllocator& blocks_;
  std::deque<JobSpec> waiting_;
  std::map<int64_t, Job> running_;        // by order of admission
  std::map<JobId, int64_t> order_by_id_;  // of running jobs
  int64_t next_order_ = 0;
  int32_t rows_reserved_ = 0;
  uint64_t random_state_;
};

}  // namespace sensorium
