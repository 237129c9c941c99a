#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {

Scheduler::Scheduler(const SchedulerOptions& options, BlockAllocator& blocks)
    : options_(options), blocks_(blocks), random_state_(options.chaos_seed) {
  CHECK_GT(options.max_batch_tokens, 0);
  CHECK_GT(options.max_batch_seqs, 0);
  CHECK_GT(options.max_encode_units, 0);
}

bool Scheduler::Fits(const JobSpec& job) const {
  return job.blocks <= blocks_.total() &&
         job.rows <= std::min(options_.max_batch_seqs, options_.max_batch_tokens);
}

void Scheduler::Add(const JobSpec& job) {
  CHECK(job.blocks >= 0 && job.rows >= 1 && job.unit_cost >= 1) << job.id;
  CHECK(!order_by_id_.contains(job.id)) << job.id;
  CHECK(Fits(job)) << job.blocks << " blocks, " << job.rows << " rows";
  waiting_.push_back(job);
}

void Scheduler::Remove(JobId id) {
  if (auto it = order_by_id_.find(id); it != order_by_id_.end()) {
    const Job& job = running_.at(it->second);
    rows_reserved_ -= job.spec.rows;
    blocks_.Unreserve(job.spec.blocks);
    running_.erase(it->second);
    order_by_id_.erase(it);
    return;
  }
  auto it = std::find_if(waiting_.begin(), waiting_.end(),
                         [&](const JobSpec& job) { return job.id == id; });
  CHECK(it != waiting_.end()) << "unknown job " << id;
  waiting_.erase(it);
}

void Scheduler::SetWork(JobId id, WorkKind kind, int32_t amount) {
  Job& job = running_.at(order_by_id_.at(id));
  CHECK(kind == WorkKind::kNone || amount > 0) << amount;
  CHECK(kind != WorkKind::kDecode || amount <= job.spec.rows) << amount;
  job.kind = kind;
  job.amount = amount;
}

std::vector<JobId> Scheduler::Admit() {
  std::vector<JobId> admitted;
  const int32_t row_limit = std::min(options_.max_batch_seqs, options_.max_batch_tokens);
  while (!waiting_.empty()) {
    const JobSpec& spec = waiting_.front();
    if (rows_reserved_ + spec.rows > row_limit || !blocks_.Reserve(spec.blocks)) break;
    rows_reserved_ += spec.rows;
    const int64_t order = next_order_++;
    order_by_id_[spec.id] = order;
    running_[order] = {.spec = spec, .order = order};
    admitted.push_back(spec.id);
    waiting_.pop_front();
  }
  return admitted;
}

std::vector<PlanItem> Scheduler::Schedule() {
  std::vector<PlanItem> items;
  int32_t tokens = options_.max_batch_tokens;
  int32_t units = options_.max_encode_units;
  for (const auto& [order, job] : running_) {
    if (job.kind != WorkKind::kDecode) continue;
    CHECK_GE(tokens, job.amount) << "admitted rows exceed the batch";
    items.push_back({job.spec.id, WorkKind::kDecode, job.amount});
    tokens -= job.amount;
  }
  for (const auto& [order, job] : running_) {
    if (job.kind != WorkKind::kPrefill || tokens == 0) continue;
    int32_t amount = std::min(job.amount, tokens);
    if (options_.chaos_seed) amount = 1 + static_cast<int32_t>(Random() % amount);
    items.push_back({job.spec.id, WorkKind::kPrefill, amount});
    tokens -= amount;
  }
  bool encodes = false;
  for (const auto& [order, job] : running_) {
    if (job.kind != WorkKind::kEncode) continue;
    // A unit dearer than the whole budget still runs, alone.
    int32_t amount = std::min(job.amount, units / job.spec.unit_cost);
    if (amount == 0 && !encodes) amount = 1;
    if (amount == 0) continue;
    if (options_.chaos_seed) amount = 1 + static_cast<int32_t>(Random() % amount);
    items.push_back({job.spec.id, WorkKind::kEncode, amount});
    units = std::max(0, units - amount * job.spec.unit_cost);
    encodes = true;
  }
  if (options_.chaos_seed) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[Random() % i]);
  }
  return items;
}

void Scheduler::CheckInvariants() const {
  int32_t blocks = 0;
  int32_t rows = 0;
  for (const auto& [order, job] : running_) {
    blocks += job.spec.blocks;
    rows += job.spec.rows;
  }
  CHECK_EQ(blocks, blocks_.reserved());
  CHECK_EQ(rows, rows_reserved_);
  CHECK_EQ(running_.size(), order_by_id_.size());
}

// SplitMix64 (Steele et al. 2014), enough for shuffling test schedules.
uint64_t Scheduler::Random() {
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace sensorium
