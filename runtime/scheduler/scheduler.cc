#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_payload.h"

namespace sensorium {

namespace {

constexpr int kSlotBits = 24;           // of a job id; the rest counts up
constexpr int64_t kSmallestChunk = 16;  // tokens: below it a pass is mostly its fixed cost
constexpr int64_t kLeastShare = 8;      // of the target goes to encodes and prefills at least

int32_t SlotOf(JobId id) { return static_cast<int32_t>(id & ((1 << kSlotBits) - 1)); }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, BlockAllocator& blocks,
                     SchedulerListener* listener)
    : options_(options),
      blocks_(blocks),
      listener_(listener),
      models_(options.models),
      line_(options.tenants, options.starvation_us, options.max_waiting + options.max_batch_seqs),
      preemption_order_(static_cast<int32_t>(options.tenants.size()),
                        options.max_waiting + options.max_batch_seqs),
      random_state_(options.chaos_seed) {
  CHECK_GT(options.max_batch_tokens, 0);
  CHECK_GT(options.max_batch_seqs, 0);
  CHECK_GE(options.max_waiting, 0);
  CHECK_GE(options.encoder_slots, 1);
  CHECK(!options.models.empty());
  for (const size_t count : {options.models.size(), options.tenants.size(),
                             static_cast<size_t>(options.encoder_slots)}) {
    CHECK_LE(count, size_t{std::numeric_limits<int16_t>::max()});  // see Running
  }
  const int32_t slots = options.max_waiting + options.max_batch_seqs;
  CHECK_LT(slots, 1 << kSlotBits);
  jobs_.resize(slots);
  for (int32_t s = slots - 1; s >= 0; --s) free_slots_.push_back(s);
  running_.reserve(options.max_batch_seqs);
  blocked_.resize(options.tenants.size());
  tenant_running_.resize(options.tenants.size());
  tenant_blocks_.resize(options.tenants.size());
  tenant_known_.resize(options.tenants.size());
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    if (options.tenants[t].known) Know(t);
  }
  feature_slots_used_.resize(models_.size());
  features_waiting_.resize(models_.size());
  for (int32_t s = options.encoder_slots - 1; s >= 0; --s) free_encoder_slots_.push_back(s);
  admitted_.reserve(options.max_batch_seqs);
  grows_.reserve(options.max_batch_seqs);
  needs_.resize(slots);
  tenant_needs_.resize(options.tenants.size());
  fills_.reserve(options.max_batch_seqs);
  candidates_.reserve(options.max_batch_seqs);
  tokens_left_.resize(models_.size());
  forward_tokens_.resize(models_.size());
  row_prices_.resize(models_.size());
  decode_work_.resize(models_.size());
  plan_.items.reserve(options.max_batch_seqs);
  plan_idx_.reserve(options.max_batch_seqs);
  plan_at_.resize(options.max_batch_seqs);
  charges_.resize(options.tenants.size());
}

// ---- Prices and predictions ---------------------------------------------------------------------

int32_t Scheduler::BlocksAt(const JobSpec& spec, int64_t rows, int64_t context) const {
  const int64_t size = models_[spec.model].block_size;
  return spec.fixed_blocks + static_cast<int32_t>(rows * ((context + size - 1) / size));
}

int64_t Scheduler::FillNs(const JobSpec& spec) const {
  const int64_t n = spec.prefill_tokens;
  return PriceNs(models_[spec.model].prices,
                 {.encode_units = spec.encode_units,
                  .forwards = n > 0 ? (n - 1) / options_.max_batch_tokens + 1 : 0,
                  .prefill_tokens = n,
                  .prefill_context = n * (n + 1) / 2,
                  .cross_positions = n * spec.cross_len});
}

// What a step's decodes take now. The last plan's would be those of who may have left since.
int64_t Scheduler::DecodeNs() const {
  int64_t total = 0;
  for (int32_t m = 0; m < static_cast<int32_t>(models_.size()); ++m) {
    Work work;
    for (const Running& r : running_) {
      if (r.kind == WorkKind::kDecode && r.model == m) AddDecode(work, r);
    }
    work.forwards = work.decode_rows > 0;
    total += PriceNs(models_[m].prices, work);
  }
  return total;
}

Scheduler::Prediction Scheduler::Predict(const JobSpec& spec) const {
  // Of each step the decodes take their time, what is left goes into the backlog.
  const int64_t decode = DecodeNs();
  int64_t step = std::max<int64_t>(decode, 1), share = step;
  if (options_.target_step_us > 0 && decode > 0) {
    const int64_t target = options_.target_step_us * 1000;
    share = std::max(target - decode, target / kLeastShare);
    step = decode + share;
  }
  const double stretch = static_cast<double>(step) / static_cast<double>(share);
  const double fill_ns = static_cast<double>(backlog_ns_ + FillNs(spec)) * stretch;
  const int64_t own_row = PriceNs(models_[spec.model].prices,
                                  {.forwards = decode > 0 ? 0 : 1,
                                   .decode_rows = 1,
                                   .decode_context = spec.prefill_tokens + spec.decode_tokens / 2,
                                   .cross_positions = spec.cross_len});
  const double end_ns =
      fill_ns + static_cast<double>(spec.decode_tokens) * static_cast<double>(own_row + decode);
  return {.first_token_us = static_cast<int64_t>(fill_ns / 1000),
          .end_us = static_cast<int64_t>(end_ns / 1000)};
}

// What `amount` more of a job's work asks of the device; the pass's fixed cost is not its own.
Work Scheduler::WorkOf(const Running& r, WorkKind kind, int64_t amount) const {
  switch (kind) {
    case WorkKind::kEncode:
      return {.encode_units = amount};
    case WorkKind::kPrefill:
      return {.prefill_tokens = amount,
              .prefill_context = amount * r.context + amount * (amount + 1) / 2,
              .cross_positions = amount * r.cross_len};
    case WorkKind::kDecode:
      return {.decode_rows = amount,
              .decode_context = amount * (r.context + 1),
              .cross_positions = amount * r.cross_len};
    case WorkKind::kNone:
      break;
  }
  return {};
}

// Adds a decode to the sum over a model's, or takes it out.
void Scheduler::AddDecode(Work& work, const Running& r, int64_t times) {
  const int64_t rows = times * r.amount;
  work.decode_rows += rows;
  work.decode_context += rows * (r.context + 1);
  work.cross_positions += rows * r.cross_len;
}

// The most of a job's work, up to `most`, that costs no more than `budget_ns`; 0: not even one.
int64_t Scheduler::Largest(const Running& r, int64_t most, int64_t budget_ns) const {
  const Prices& prices = models_[r.model].prices;
  int64_t fits = 0;
  for (int64_t low = 1, high = most; low <= high;) {
    const int64_t middle = low + (high - low) / 2;
    if (PriceNs(prices, WorkOf(r, r.kind, middle)) <= budget_ns) {
      fits = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  return fits;
}

void Scheduler::SetPrices(int32_t model, const Prices& prices) {
  if (models_[model].prices == prices) return;
  models_[model].prices = prices;
  if (listener_) listener_->OnPrices(model, prices);
}

// ---- In and out ---------------------------------------------------------------------------------

const Scheduler::Job& Scheduler::Of(JobId id) const {
  const auto slot = static_cast<size_t>(SlotOf(id));
  CHECK(id != 0 && slot < jobs_.size() && jobs_[slot].id == id) << "unknown job " << id;
  return jobs_[slot];
}

JobCost Scheduler::cost(JobId id) const {
  const Job& job = Of(id);
  JobCost cost = job.cost;
  if (job.running_idx >= 0) {
    const Running& r = running_[job.running_idx];
    cost.decode_ns += r.decode_ns;
    cost.block_ns += r.reserved * (busy_us_ - job.billed_us) * 1000;
  }
  return cost;
}

void Scheduler::Know(int32_t tenant) {
  known_tenants_ += !tenant_known_[tenant];
  tenant_known_[tenant] = true;
}

int32_t Scheduler::MostWaiting(int32_t tenant) const {
  const int32_t own = line_.options(tenant).max_waiting;
  if (own > 0) return own;
  return known_tenants_ > 1 ? (options_.max_waiting + 1) / 2 : options_.max_waiting;
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
  if (line_.size() >= options_.max_waiting || free_slots_.empty()) {
    return refuse(absl::ResourceExhaustedError(
        absl::StrCat(line_.size(), " requests wait; the limit is ", options_.max_waiting)));
  }
  if (line_.size_of(spec.tenant) >= MostWaiting(spec.tenant)) {
    return refuse(absl::ResourceExhaustedError(
        absl::StrCat(line_.size_of(spec.tenant), " requests of this tenant wait; its limit is ",
                     MostWaiting(spec.tenant))));
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
  const bool expects_less =
      options_.optimistic && spec.expected_context > 0 && spec.expected_context < spec.max_context;
  const int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Job& job = jobs_[slot];
  job = {.id = next_id_++ << kSlotBits | slot,
         .spec = spec,
         .order = next_order_++,
         .arrival_us = now_us,
         .reserve = expects_less ? BlocksAt(spec, spec.rows, spec.expected_context) : worst,
         .fill_left_ns = FillNs(spec)};
  backlog_ns_ += job.fill_left_ns;
  line_.Enter(spec.tenant);
  line_.Push(slot, {.tenant = spec.tenant,
                    .priority = spec.priority,
                    .deadline_us = spec.deadline_us,
                    .arrival_us = now_us,
                    .order = job.order});
  if (listener_) listener_->OnAdd(job.id, spec, now_us, request);
  return job.id;
}

void Scheduler::Stop(Job& job) {
  Running& r = running_[job.running_idx];
  if (preemption_order_.Contains(r.slot)) preemption_order_.Erase(r.slot);
  job.cost.decode_ns += r.decode_ns;
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
  job.cost.block_ns += blocks * (busy_us_ - job.billed_us) * 1000;
  job.billed_us = busy_us_;
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
  if (job.has_features) feature_slots_used_[job.spec.model] -= job.spec.feature_slots;
  line_.Leave(job.spec.tenant);
  backlog_ns_ -= job.fill_left_ns;
  job.id = 0;
  free_slots_.push_back(slot);
  if (listener_) listener_->OnRemove(id);
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
  job.billed_us = busy_us_;
  running_.push_back({.id = job.id,
                      .cross_len = job.spec.cross_len,
                      .slot = slot,
                      .model = static_cast<int16_t>(job.spec.model),
                      .tenant = static_cast<int16_t>(job.spec.tenant)});
  SetReserved(running_.back(), job.reserve);
  if (options_.optimistic && job.reserve > 0) {
    preemption_order_.Insert(slot, {.tenant = job.spec.tenant,
                                    .early = job.preemptions < kMostEarly,  // parked so far
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
  if (JobWork{r.kind, r.amount, r.context, r.tables} == work) return;
  CHECK(work.kind == WorkKind::kNone || work.amount > 0) << work.amount;
  CHECK(work.kind != WorkKind::kDecode || work.amount <= job.spec.rows) << work.amount;
  CHECK_LE(work.context, job.spec.max_context);
  CHECK_LE(work.tables, job.spec.rows);
  if (r.encoder_slot >= 0 && work.kind != WorkKind::kEncode && work.kind != WorkKind::kNone) {
    free_encoder_slots_.push_back(std::exchange(r.encoder_slot, -1));  // no longer half way
  }
  if (r.kind == WorkKind::kDecode) job.served_us = std::max(job.served_us, plan_us_);
  SetKind(r, work.kind);
  r.amount = work.amount;
  r.context = work.context;
  r.tables = work.tables;
  SetReserved(r, r.reserved);
  if (listener_) listener_->OnWork(id, work);
}

// ---- The step -----------------------------------------------------------------------------------

bool Scheduler::IsBehind(const Job& x, const Job& y) {
  return std::tuple(-int64_t{x.spec.priority}, x.order) >
         std::tuple(-int64_t{y.spec.priority}, y.order);
}

void Scheduler::SetReserved(Running& r, int32_t blocks) {
  r.reserved = blocks;
  const int64_t rows = std::max(r.tables, r.kind == WorkKind::kDecode ? r.amount : 1);
  const int64_t each = (blocks - jobs_[r.slot].spec.fixed_blocks) / rows;
  r.covered = each * models_[r.model].block_size;
}

void Scheduler::SetKind(Running& r, WorkKind kind) {
  if (preemption_order_.Contains(r.slot)) {
    preemption_order_.SetEarly(r.slot,
                               kind == WorkKind::kNone && jobs_[r.slot].preemptions < kMostEarly);
  }
  r.kind = kind;
}

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
  const Running& r = running_[job.running_idx];
  const int32_t worst = BlocksAt(spec, spec.rows, spec.max_context);
  const int32_t expected = BlocksAt(spec, spec.rows, r.context + models_[r.model].block_size);
  job.reserve = ++job.preemptions < kMostEarly
                    ? std::min(worst, std::max({job.reserve, expected, r.reserved + 1}))
                    : worst;
  const int32_t idx = job.running_idx;
  Unplan(idx);
  Stop(job);
  if (idx < running() && (plan_at_[idx] = plan_at_[running()]) >= 0) {
    plan_idx_[plan_at_[idx]] = idx;  // the last one took its place
  }
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

// Takes what an admitted job has in the plan out again.
void Scheduler::Unplan(int32_t running_idx) {
  const int32_t at = std::exchange(plan_at_[running_idx], -1);
  if (at < 0) return;
  const Running& r = running_[running_idx];
  const PlanItem& item = plan_.items[at];
  if (item.kind != WorkKind::kEncode) forward_tokens_[r.model] -= item.amount;
  if (item.kind == WorkKind::kDecode) {
    AddDecode(decode_work_[r.model], r, -1);
  } else {
    fill_ns_ -= PriceNs(models_[r.model].prices, WorkOf(r, item.kind, item.amount));
  }
  plan_.items[at] = plan_.items.back();
  plan_idx_[at] = plan_idx_.back();
  plan_.items.pop_back();
  plan_idx_.pop_back();
  if (at < static_cast<int32_t>(plan_idx_.size())) plan_at_[plan_idx_[at]] = at;
}

// The decodes in grows_ get their next blocks together. Who is furthest behind goes, one after the
// other, until those that are left have room; where the last one's own need is all that is lacking,
// it stays, and sits this step out. That is as if each had grown in its turn, the foremost first,
// but costs O(log n) for each that grows or goes, and nothing for the others.
void Scheduler::GrowDecodes(absl::FunctionRef<void(JobId)> preempt) {
  for (const int32_t slot : grows_) {
    const Running& r = running_[jobs_[slot].running_idx];
    needs_[slot] =
        BlocksAt(jobs_[slot].spec, std::max(r.amount, r.tables), r.context + 1) - r.reserved;
    tenant_needs_[r.tenant] += needs_[slot];
    all_needs_ += needs_[slot];
  }
  const auto give_way = [&](int32_t last, int64_t lacking) {
    if (needs_[last] >= lacking) {
      Unplan(jobs_[last].running_idx);
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

void Scheduler::PlanDecodes(absl::FunctionRef<void(JobId)> preempt) {
  std::fill(decode_work_.begin(), decode_work_.end(), Work{});
  std::fill(forward_tokens_.begin(), forward_tokens_.end(), 0);
  grows_.clear();
  fills_.clear();
  for (int32_t i = 0; i < running(); ++i) {  // ten thousand of these a step
    const Running& r = running_[i];
    plan_at_[i] = -1;
    if (r.kind == WorkKind::kDecode) {
      plan_at_[i] = static_cast<int32_t>(plan_.items.size());
      plan_.items.push_back({.job = r.id, .kind = WorkKind::kDecode, .amount = r.amount});
      plan_idx_.push_back(i);
      AddDecode(decode_work_[r.model], r);
      if (options_.optimistic && r.context >= r.covered) grows_.push_back(r.slot);
    } else if (r.kind != WorkKind::kNone) {
      fills_.push_back(r.slot);
    }
  }
  for (size_t m = 0; m < models_.size(); ++m) forward_tokens_[m] = decode_work_[m].decode_rows;
  if (!grows_.empty()) GrowDecodes(preempt);
  for (size_t m = 0; m < models_.size(); ++m) {
    tokens_left_[m] = options_.max_batch_tokens - static_cast<int32_t>(forward_tokens_[m]);
  }
  SumUp();
}

// What the plan comes to.
void Scheduler::SumUp() {
  plan_.decode_ns = 0;
  plan_.predicted_ns = fill_ns_;
  for (size_t m = 0; m < models_.size(); ++m) {
    const Prices& prices = models_[m].prices;
    Work& work = decode_work_[m];
    work.forwards = work.decode_rows > 0;
    plan_.decode_ns += PriceNs(prices, work);
    const bool fills_only = work.decode_rows == 0 && forward_tokens_[m] > 0;
    if (fills_only) plan_.predicted_ns += prices.forward_ps / 1000;
  }
  plan_.predicted_ns += plan_.decode_ns;
}

void Scheduler::PlanFill(int64_t now_us, absl::FunctionRef<void(JobId)> preempt) {
  candidates_.clear();
  for (const int32_t slot : fills_) {
    const Job& job = jobs_[slot];
    // Whoever got nothing for too long goes first, whatever its tenant had or its neighbours are.
    const bool starves = now_us - job.served_us >= options_.starvation_us;
    const bool first_come = options_.target_step_us == 0;
    if (first_come || starves) {
      candidates_.push_back({.counter = -1, .order = job.order, .slot = slot});
    } else {
      candidates_.push_back({.counter = line_.counter(job.spec.tenant),
                             .deadline_us = job.spec.deadline_us,
                             .order = job.order,
                             .priority = job.spec.priority,
                             .slot = slot});
    }
  }
  const auto later = [](const Candidate& a, const Candidate& b) {
    return std::tuple(a.counter, -int64_t{a.priority}, a.deadline_us, a.order) >
           std::tuple(b.counter, -int64_t{b.priority}, b.deadline_us, b.order);
  };
  std::make_heap(candidates_.begin(), candidates_.end(), later);

  const bool unlimited = options_.target_step_us == 0;
  const bool anybody_decodes = !plan_.items.empty();
  const int64_t target = options_.target_step_us * 1000;
  int64_t budget = target;
  if (anybody_decodes) {
    // With the savings a step may be as long as the unit they are for, or the share, not as both.
    const int64_t share = std::max(target - plan_.decode_ns, target / kLeastShare);
    budget = std::min(share + saved_ns_, std::max(share, wanted_ns_));
  }
  int64_t saved = 0, wanted = 0;
  bool filled = false;
  while (!candidates_.empty()) {
    std::pop_heap(candidates_.begin(), candidates_.end(), later);
    const int32_t slot = candidates_.back().slot;
    candidates_.pop_back();
    const int32_t idx = jobs_[slot].running_idx;
    if (idx < 0) continue;  // preempted for one before it
    const Running r = running_[idx];
    const Prices& prices = models_[r.model].prices;
    const bool prefill = r.kind == WorkKind::kPrefill;
    if (!prefill && r.encoder_slot < 0 && free_encoder_slots_.empty()) continue;
    int64_t most =
        std::min(r.amount, prefill ? tokens_left_[r.model] : models_[r.model].max_encode_units);
    if (most == 0) continue;
    const int64_t fixed = prefill && forward_tokens_[r.model] == 0 ? prices.forward_ps / 1000 : 0;
    int64_t amount = unlimited ? most : Largest(r, most, budget - fixed);
    const int64_t least = prefill ? std::min(most, kSmallestChunk) : 1;
    if (amount < least) {
      if (anybody_decodes || filled) {
        // Nobody overtakes it; what this step did not spend is put by until it is enough.
        if (anybody_decodes) {
          wanted = fixed + PriceNs(prices, WorkOf(r, r.kind, least));
          saved = std::clamp<int64_t>(budget, 0, wanted);
        }
        break;
      }
      amount = least;  // nobody is held up by it
    }
    if (options_.chaos_seed) amount = 1 + static_cast<int64_t>(Random() % amount);
    if (prefill && options_.optimistic) {
      // The last chunk is followed by forks: all rows' blocks must be there.
      const int64_t rows = amount == r.amount ? jobs_[slot].spec.rows : r.tables;
      if (!Grow(idx, rows, r.context + amount, preempt)) continue;
    }
    PlanItem item{.job = jobs_[slot].id, .kind = r.kind, .amount = static_cast<int32_t>(amount)};
    Running& now = running_[jobs_[slot].running_idx];
    if (prefill) {
      tokens_left_[r.model] -= static_cast<int32_t>(amount);
      forward_tokens_[r.model] += amount;
    } else {
      if (now.encoder_slot < 0) {
        now.encoder_slot = static_cast<int16_t>(free_encoder_slots_.back());
        free_encoder_slots_.pop_back();
      }
      item.encoder_slot = now.encoder_slot;
    }
    const int64_t price = PriceNs(prices, WorkOf(r, r.kind, amount));
    budget -= fixed + price;
    fill_ns_ += price;
    plan_at_[jobs_[slot].running_idx] = static_cast<int32_t>(plan_.items.size());
    plan_.items.push_back(item);
    plan_idx_.push_back(jobs_[slot].running_idx);
    filled = true;
  }
  saved_ns_ = saved;
  wanted_ns_ = wanted;
}

const StepPlan& Scheduler::Schedule(int64_t now_us, absl::FunctionRef<void(JobId)> preempt) {
  plan_.items.clear();
  plan_idx_.clear();
  fill_ns_ = 0;
  plan_us_ = now_us;
  PlanDecodes(preempt);
  PlanFill(now_us, preempt);
  SumUp();
  if (options_.chaos_seed) {
    for (size_t i = plan_.items.size(); i > 1; --i) {
      const size_t j = Random() % i;
      std::swap(plan_.items[i - 1], plan_.items[j]);
      std::swap(plan_idx_[i - 1], plan_idx_[j]);
    }
  }
  if (listener_) listener_->OnPlan(plan_, now_us);
  return plan_;
}

void Scheduler::Commit(int64_t elapsed_us) {
  std::fill(charges_.begin(), charges_.end(), 0);
  for (size_t m = 0; m < models_.size(); ++m) {
    const Prices& p = models_[m].prices;
    const int64_t share_ps = p.forward_ps / std::max<int64_t>(forward_tokens_[m], 1);
    row_prices_[m] = {p.decode_row_ps + share_ps, p.decode_context_ps, p.cross_position_ps};
  }
  for (size_t i = 0; i < plan_.items.size(); ++i) {
    const PlanItem& item = plan_.items[i];
    Running& r = running_[plan_idx_[i]];
    const RowPrices& p = row_prices_[r.model];
    int64_t cost;
    if (item.kind == WorkKind::kDecode) {  // ten thousand of these a step
      ++r.context;
      cost = item.amount * (p.row_ps + r.context * p.context_ps + r.cross_len * p.cross_ps) / 1000;
      r.decode_ns += cost;
    } else {
      Job& job = jobs_[r.slot];
      const Prices& prices = models_[r.model].prices;
      cost = PriceNs(prices, WorkOf(r, item.kind, item.amount));
      r.amount -= item.amount;
      if (item.kind == WorkKind::kEncode) {
        job.cost.encode_ns += cost;
        if (r.amount == 0) free_encoder_slots_.push_back(std::exchange(r.encoder_slot, -1));
      } else {
        cost += (p.row_ps - prices.decode_row_ps) * item.amount / 1000;
        job.cost.prefill_ns += cost;
        r.context += item.amount;
      }
      if (r.amount == 0) SetKind(r, WorkKind::kNone);  // what comes next, SetWork tells
      job.served_us = plan_us_;
      const int64_t done = std::min(cost, job.fill_left_ns);
      job.fill_left_ns -= done;
      backlog_ns_ -= done;
    }
    charges_[r.tenant] += cost;
  }
  busy_us_ += elapsed_us;
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    if (charges_[t]) line_.Charge(t, charges_[t]);
  }
  plan_.items.clear();
  plan_idx_.clear();
  if (listener_) listener_->OnCommit(elapsed_us);
}

void Scheduler::CheckInvariants() const {
  int64_t blocks = 0, rows = 0, backlog = 0;
  int32_t live = 0, encoders = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    const Running& r = running_[i];
    const Job& job = jobs_[r.slot];
    CHECK(job.id != 0 && job.id == r.id && job.running_idx == static_cast<int32_t>(i));
    CHECK(!line_.Contains(r.slot));
    CHECK_EQ(preemption_order_.Contains(r.slot), options_.optimistic && r.reserved > 0);
    CHECK_LE(r.reserved, BlocksAt(job.spec, job.spec.rows, job.spec.max_context));
    blocks += r.reserved;
    rows += job.spec.rows;
    encoders += r.encoder_slot >= 0;
  }
  std::array<int64_t, 2> features{}, expected_features{};  // in use, and of it by who waits
  for (const Job& job : jobs_) {
    if (job.id == 0) continue;
    ++live;
    if (job.has_features) {
      features[0] += job.spec.feature_slots;
      if (job.running_idx < 0) features[1] += job.spec.feature_slots;
    }
    CHECK_GE(job.fill_left_ns, 0);
    backlog += job.fill_left_ns;
    CHECK(job.running_idx >= 0 || line_.Contains(SlotOf(job.id)));
  }
  CHECK_EQ(live, running() + waiting());
  CHECK_EQ(live + static_cast<int32_t>(free_slots_.size()), static_cast<int32_t>(jobs_.size()));
  CHECK_EQ(blocks, blocks_.reserved());
  CHECK_EQ(rows, rows_reserved_);
  CHECK_EQ(backlog, backlog_ns_);
  CHECK_EQ(encoders + static_cast<int32_t>(free_encoder_slots_.size()), options_.encoder_slots);
  for (size_t m = 0; m < models_.size(); ++m) {
    CHECK_LE(feature_slots_used_[m], models_[m].feature_slots);
    expected_features[0] += feature_slots_used_[m];
    expected_features[1] += features_waiting_[m];
  }
  CHECK(features == expected_features);
  for (size_t t = 0; t < tenant_blocks_.size(); ++t) {
    CHECK_LE(tenant_blocks_[t], line_.options(static_cast<int32_t>(t)).max_blocks);
    CHECK_LE(tenant_running_[t], line_.options(static_cast<int32_t>(t)).max_running);
  }
  CHECK_EQ(all_needs_, 0);
  preemption_order_.CheckInvariants();
  line_.CheckInvariants();
}

// SplitMix64 (Steele et al. 2014), enough for shuffling test schedules.
uint64_t Scheduler::Random() {
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace sensorium
