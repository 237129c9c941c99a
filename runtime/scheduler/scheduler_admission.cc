// In and out: who may wait, who is admitted, and with what.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_payload.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

void Scheduler::Know(int32_t tenant) {
  known_tenants_ += !tenant_known_[tenant];
  tenant_known_[tenant] = true;
}

int32_t Scheduler::MostWaiting(int32_t tenant) const {
  const int32_t own = line_.options(tenant).max_waiting;
  return own > 0 ? own : FairPart(options_.max_waiting, known_tenants_);
}

absl::StatusOr<JobId> Scheduler::Add(const JobSpec& spec, int64_t now_us,
                                     std::string_view request) {
  CHECK(spec.rows >= 1 && spec.max_context >= 0 && spec.fixed_blocks >= 0);
  CHECK(spec.tenant >= 0 && spec.tenant < line_.num_tenants());
  CHECK(spec.model >= 0 && spec.model < static_cast<int32_t>(models_.size()));
  const auto refuse = [&](absl::Status status) {
    if (listener_) listener_->OnRefuse(spec, now_us, request);
    return status;
  };
  Know(spec.tenant);
  const TenantOptions& tenant = line_.options(spec.tenant);
  const int32_t worst = BlocksAt(spec, spec.rows, spec.max_context);
  const int32_t most_blocks = std::min(blocks_.total(), tenant.max_blocks);
  const int32_t most_rows = std::min(options_.max_batch_seqs, options_.max_batch_tokens);
  if (worst > most_blocks || spec.rows > most_rows) {
    return refuse(
        NeverFits(absl::StrCat("the request needs ", worst, " KV blocks and ", spec.rows,
                               " rows at worst; it may have ", most_blocks, " and ", most_rows)));
  }
  if (spec.feature_slots > models_[spec.model].feature_slots) {
    return refuse(
        NeverFits(absl::StrCat("the request needs ", spec.feature_slots,
                               " image slots; the model has ", models_[spec.model].feature_slots)));
  }
  // Those for whom rows are free need no place in line: they go with the next Admit.
  const int32_t free_rows = most_rows - rows_reserved_;
  const int32_t free_places =
      std::min(free_rows, tenant.max_running - tenant_running_[spec.tenant]);
  if (line_.size() >= options_.max_waiting + free_rows || free_slots_.empty()) {
    return refuse(absl::ResourceExhaustedError(absl::StrCat(
        line_.size(), " requests wait; the limit is ", options_.max_waiting + free_rows)));
  }
  if (line_.size_of(spec.tenant) >= MostWaiting(spec.tenant) + free_places) {
    return refuse(absl::ResourceExhaustedError(
        absl::StrCat(line_.size_of(spec.tenant), " requests of this tenant wait; its limit is ",
                     MostWaiting(spec.tenant) + free_places)));
  }
  if (spec.deadline_us != kNever) {
    const Prediction p = Predict(spec);
    if (now_us + p.first_token_us > spec.deadline_us) {
      return refuse(absl::DeadlineExceededError(
          absl::StrCat("the first token is predicted after ", p.first_token_us / 1000,
                       " ms; the deadline is in ",
                       std::max<int64_t>(0, spec.deadline_us - now_us) / 1000, " ms")));
    }
  }
  const int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Job& job = jobs_[slot];
  job = {.id = next_id_++ << kSlotBits | slot,
         .spec = spec,
         .order = next_order_++,
         .arrival_us = now_us,
         .reserve = BlocksToStart(spec),
         .fill_ns = FillNs(spec.model, spec.encode_units, spec.prefill_tokens, 0, spec.cross_len)};
  SetFillLeft(job, job.fill_ns);
  line_.Enter(spec.tenant);
  line_.Push(slot, {.tenant = spec.tenant,
                    .priority = spec.priority,
                    .deadline_us = spec.deadline_us,
                    .arrival_us = now_us,
                    .order = job.order});
  if (listener_) listener_->OnAdd(job.id, spec, now_us, request);
  return job.id;
}

void Scheduler::Remove(JobId id) {
  Job& job = Of(id);
  const int32_t slot = SlotOf(id);
  if (job.running_idx >= 0) {
    Stop(job);
  } else {
    line_.Erase(slot);
    if (job.has_features) features_waiting_[job.spec.model] -= job.spec.feature_slots;
  }
  GiveFeaturesBack(job);
  line_.Leave(job.spec.tenant);
  SetFillLeft(job, 0);
  job.id = 0;
  free_slots_.push_back(slot);
  if (listener_) listener_->OnRemove(id);
}

void Scheduler::GiveFeaturesBack(Job& job) {
  if (std::exchange(job.has_features, false)) {
    feature_slots_used_[job.spec.model] -= job.spec.feature_slots;
  }
}

void Scheduler::Stop(Job& job) {
  Running& r = running_[job.running_idx];
  SetKind(r, WorkKind::kNone);
  if (preemption_order_.Contains(r.slot)) preemption_order_.Erase(r.slot);
  job.cost.decode_ns += r.decode_ps / 1000;
  Bill(job, r.reserved);
  blocks_.Unreserve(r.reserved);
  tenant_blocks_[r.tenant] -= r.reserved;
  --tenant_running_[r.tenant];
  rows_reserved_ -= job.spec.rows;
  if (r.encoder_slot >= 0) free_encoder_slots_.push_back(r.encoder_slot);
  r = running_.back();
  jobs_[r.slot].running_idx = job.running_idx;
  running_.pop_back();
  job.running_idx = -1;
}

// Blocks by time, up to now: before their number changes.
void Scheduler::Bill(Job& job, int32_t blocks) {
  job.cost.block_ns += blocks * (clock_us_ - job.billed_us) * 1000;
  job.billed_us = clock_us_;
}

// What is ahead of those who come next changes with it.
void Scheduler::SetFillLeft(Job& job, int64_t ns) {
  tenant_backlog_ns_[job.spec.tenant] += ns - job.fill_left_ns;
  job.fill_left_ns = ns;
}

// By what an admitted job was told, at `context` tokens, with `again` tokens to be computed once
// more. Not more than was said when it came, by which the others were measured.
void Scheduler::TellFillLeft(const Running& r, int64_t context, int64_t again) {
  Job& job = jobs_[r.slot];
  const int64_t units = r.later_units + (r.kind == WorkKind::kEncode ? r.amount : 0);
  const int64_t tokens = r.later_tokens + (r.kind == WorkKind::kPrefill ? r.amount : 0);
  SetFillLeft(job,
              std::min(job.fill_ns, FillNs(r.model, units, tokens + again, context, r.cross_len)));
}

bool Scheduler::IsBehind(const Job& x, const Job& y) {
  return std::tuple(-int64_t{x.spec.priority}, x.order) >
         std::tuple(-int64_t{y.spec.priority}, y.order);
}

bool Scheduler::CanStart(const Job& job) const {
  const int32_t rows = std::min(options_.max_batch_seqs, options_.max_batch_tokens);
  return rows_reserved_ + job.spec.rows <= rows &&
         (job.has_features || feature_slots_used_[job.spec.model] + job.spec.feature_slots <=
                                  models_[job.spec.model].feature_slots);
}

// A preempted job keeps its features. Whoever waits for them lets it go first: else each of the two
// would wait for the other. The foremost such job's slot, or -1.
int32_t Scheduler::HolderOfFeaturesFor(const Job& job) const {
  const int32_t model = job.spec.model;
  if (job.has_features || features_waiting_[model] == 0 ||
      feature_slots_used_[model] + job.spec.feature_slots <= models_[model].feature_slots) {
    return -1;
  }
  const Job* foremost = nullptr;
  for (const Job& other : jobs_) {
    if (other.id == 0 || other.running_idx >= 0 || !other.has_features ||
        other.spec.feature_slots == 0 || other.spec.model != model || blocked_[other.spec.tenant]) {
      continue;
    }
    if (foremost == nullptr || IsBehind(*foremost, other)) foremost = &other;
  }
  return foremost == nullptr ? -1 : SlotOf(foremost->id);
}

void Scheduler::Start(int32_t slot, int64_t now_us) {
  Job& job = jobs_[slot];
  line_.Erase(slot);
  job.running_idx = running();
  job.served_us = now_us;
  job.billed_us = clock_us_;
  running_.push_back({.id = job.id,
                      .cross_len = job.spec.cross_len,
                      .slot = slot,
                      .model = static_cast<int16_t>(job.spec.model),
                      .tenant = static_cast<int16_t>(job.spec.tenant)});
  SetReserved(running_.back(), job.reserve);
  if (options_.optimistic && job.reserve > 0) {
    preemption_order_.Insert(slot, {.tenant = job.spec.tenant,
                                    .starved = now_us - job.arrival_us >= options_.starvation_us,
                                    .priority = job.spec.priority,
                                    .order = job.order});
  }
  tenant_blocks_[job.spec.tenant] += job.reserve;
  ++tenant_running_[job.spec.tenant];
  rows_reserved_ += job.spec.rows;
  if (job.has_features) {
    features_waiting_[job.spec.model] -= job.spec.feature_slots;
  } else {
    feature_slots_used_[job.spec.model] += job.spec.feature_slots;
  }
  job.has_features = true;
}

const std::vector<JobId>& Scheduler::Admit(int64_t now_us) {
  admitted_.clear();
  clock_us_ = std::max(clock_us_, now_us);
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    blocked_[t] = tenant_running_[t] >= line_.options(t).max_running;
  }
  while (true) {
    int32_t slot = line_.Head(now_us, blocked_);
    if (slot < 0) break;
    if (const int32_t holder = HolderOfFeaturesFor(jobs_[slot]); holder >= 0) slot = holder;
    const Job& job = jobs_[slot];
    const int32_t t = job.spec.tenant;
    // A tenant at its own limit holds up nobody else; for want of the common memory all wait.
    if (tenant_blocks_[t] + job.reserve > line_.options(t).max_blocks) {
      blocked_[t] = 1;
      continue;
    }
    if (!CanStart(job) || !blocks_.Reserve(job.reserve)) break;
    Start(slot, now_us);
    if (tenant_running_[t] >= line_.options(t).max_running) blocked_[t] = 1;
    admitted_.push_back(job.id);
    if (listener_) listener_->OnAdmit(job.id, now_us);
  }
  return admitted_;
}

void Scheduler::SetWork(JobId id, const JobWork& work) {
  Job& job = Of(id);
  CHECK_GE(job.running_idx, 0);
  Running& r = running_[job.running_idx];
  if (JobWork{r.kind, r.amount, ContextOf(r), r.tables, r.later_units, r.later_tokens} == work) {
    return;
  }
  CHECK(!IsWork(work.kind) || work.amount > 0) << work.amount;
  CHECK(work.kind != WorkKind::kDecode || work.amount <= job.spec.rows) << work.amount;
  CHECK_LE(work.context, job.spec.max_context);
  CHECK_LE(work.tables, job.spec.rows);
  if (r.encoder_slot >= 0 && work.kind != WorkKind::kEncode && IsWork(work.kind)) {
    free_encoder_slots_.push_back(std::exchange(r.encoder_slot, -1));  // no longer half way
  }
  if (r.kind == WorkKind::kDecode) job.served_us = std::max(job.served_us, plan_us_);
  Depart(r);
  SetKind(r, work.kind);
  r.amount = work.amount;
  r.context = work.context;
  r.tables = work.tables;
  r.later_units = work.later_units;
  r.later_tokens = work.later_tokens;
  TellFillLeft(r, work.context, 0);
  SetReserved(r, r.reserved);
  if (r.kind == WorkKind::kDecode) {
    if (!options_.optimistic) GiveFeaturesBack(job);  // its prompt is computed, and never again
    Join(r);
  }
  if (listener_) listener_->OnWork(id, work);
}

void Scheduler::SetReserved(Running& r, int32_t blocks) {
  r.reserved = blocks;
  const int64_t rows = std::max(r.tables, r.kind == WorkKind::kDecode ? r.amount : 1);
  const int64_t each = (blocks - jobs_[r.slot].spec.fixed_blocks) / rows;
  r.covered = each * models_[r.model].block_size;
  if (options_.optimistic && r.decodes()) {
    growth_.Put(r.slot, std::max(ledger_.steps(), r.covered - r.context));
  }
}

void Scheduler::SetKind(Running& r, WorkKind kind) {
  if (preemption_order_.Contains(r.slot)) {
    preemption_order_.SetEarly(r.slot,
                               kind == WorkKind::kParked && jobs_[r.slot].preemptions < kMostEarly);
  }
  if (kind != r.kind) Unplan(r);
  r.kind = kind;
  const bool fills = kind == WorkKind::kEncode || kind == WorkKind::kPrefill;
  if (fills && r.fill_at < 0) {
    r.fill_at = static_cast<int32_t>(fills_.size());
    fills_.push_back(r.slot);
  } else if (!fills && r.fill_at >= 0) {
    const int32_t last = fills_.back();
    fills_[r.fill_at] = last;
    running_[jobs_[last].running_idx].fill_at = r.fill_at;
    r.fill_at = -1;
    fills_.pop_back();
  }
}

}  // namespace sensorium
