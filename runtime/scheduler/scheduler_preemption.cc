// Blocks for those who grow, and who goes for them.
#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

void Scheduler::Extend(Running& r, int32_t more) {
  CHECK(blocks_.Reserve(more));
  Bill(jobs_[r.slot], r.reserved);
  SetReserved(r, r.reserved + more);
  tenant_blocks_[r.tenant] += more;
}

void Scheduler::Preempt(int32_t slot, absl::FunctionRef<void(JobId)> preempt) {
  Job& job = jobs_[slot];
  const JobSpec& spec = job.spec;
  preempt(job.id);
  Running& r = running_[job.running_idx];
  const int32_t worst = BlocksAt(spec, spec.rows, spec.max_context);
  const int32_t expected = BlocksAt(spec, spec.rows, ContextOf(r) + models_[r.model].block_size);
  job.reserve = ++job.preemptions < kMostEarly
                    ? std::min(worst, std::max({job.reserve, expected, r.reserved + 1}))
                    : worst;
  TellFillLeft(r, 0, ContextOf(r));
  Stop(job);
  Forgo(slot);
  features_waiting_[spec.model] += spec.feature_slots;
  line_.Push(slot, {.tenant = spec.tenant,
                    .priority = spec.priority,
                    .deadline_us = spec.deadline_us,
                    .arrival_us = job.arrival_us,
                    .order = job.order});
  ++preemptions_;
  if (listener_) listener_->OnPreempt(job.id);
}

// Sets aside what a job comes to with `rows` rows at `context`, whoever of those behind it goes for
// it (of its tenant, if it is the tenant's limit that is in the way). False: it is the last itself.
bool Scheduler::Grow(int32_t running_idx, int64_t rows, int64_t context,
                     absl::FunctionRef<void(JobId)> preempt) {
  const int32_t slot = running_[running_idx].slot;
  const int32_t needed = BlocksAt(jobs_[slot].spec, rows, context);
  while (true) {
    Running& r = running_[jobs_[slot].running_idx];
    const int32_t more = needed - r.reserved;
    if (more <= 0) return true;
    const bool tenant_full = tenant_blocks_[r.tenant] + more > line_.options(r.tenant).max_blocks;
    if (!tenant_full && more <= blocks_.total() - blocks_.reserved()) {
      Extend(r, more);
      return true;
    }
    const int32_t last =
        tenant_full ? preemption_order_.FirstOf(r.tenant) : preemption_order_.First();
    if (last == slot) return false;
    Preempt(last, preempt);
  }
}

void Scheduler::Forgo(int32_t slot) {
  tenant_needs_[jobs_[slot].spec.tenant] -= needs_[slot];
  all_needs_ -= std::exchange(needs_[slot], 0);
}

// The decodes in grows_ get their next blocks together. Who is furthest behind goes, one after the
// other, until those that are left have room; where the last one's own need is all that is lacking,
// it stays, and sits this step out. That is as if each had grown in its turn, the foremost first,
// but costs O(log n) for each that grows or goes, and nothing for the others.
void Scheduler::GrowDecodes(absl::FunctionRef<void(JobId)> preempt) {
  for (const int32_t slot : grows_) {
    const Running& r = running_[jobs_[slot].running_idx];
    needs_[slot] =
        BlocksAt(jobs_[slot].spec, std::max(r.amount, r.tables), ContextOf(r) + 1) - r.reserved;
    tenant_needs_[r.tenant] += needs_[slot];
    all_needs_ += needs_[slot];
  }
  const auto give_way = [&](int32_t last, int64_t lacking) {
    if (needs_[last] >= lacking) {
      Unplan(running_[jobs_[last].running_idx]);
      resting_.push_back(last);
      Forgo(last);
    } else {
      Preempt(last, preempt);
    }
  };
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    const int64_t limit = line_.options(t).max_blocks;
    while (tenant_needs_[t] > 0 && tenant_blocks_[t] + tenant_needs_[t] > limit) {
      give_way(preemption_order_.FirstOf(t), tenant_blocks_[t] + tenant_needs_[t] - limit);
    }
  }
  while (all_needs_ > blocks_.total() - blocks_.reserved()) {
    give_way(preemption_order_.First(), all_needs_ - (blocks_.total() - blocks_.reserved()));
  }
  for (const int32_t slot : grows_) {
    if (needs_[slot] == 0) continue;
    Extend(running_[jobs_[slot].running_idx], needs_[slot]);
    Forgo(slot);  // it has them
  }
}

}  // namespace sensorium
