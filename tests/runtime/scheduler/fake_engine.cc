#include "tests/runtime/scheduler/fake_engine.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>

#include "runtime/base/check.h"

namespace sensorium {

FakeEngine::FakeEngine(const SchedulerOptions& options, int32_t num_blocks, uint64_t seed)
    : options_(options), dice_(seed), blocks_(num_blocks), scheduler_(options, blocks_) {
  const int32_t slots = options.max_waiting + options.max_batch_seqs;
  jobs_.reserve(slots);
  for (int32_t i = 0; i < slots; ++i) jobs_.push_back({.fixed = BlockTable(blocks_, 1)});
  live_.reserve(slots);
  tokens_.resize(options.models.size());
  tenant_ns_.resize(options.tenants.size());
  came_.resize(options.tenants.size());
}

FakeEngine::Job& FakeEngine::Get(JobId id) {
  for (const int32_t i : live_) {
    if (jobs_[i].id == id) return jobs_[i];
  }
  CHECK(false) << "no job " << id;
  return jobs_[0];
}

const FakeEngine::Job* FakeEngine::Find(JobId id) const {
  for (const int32_t i : live_) {
    if (jobs_[i].id == id) return &jobs_[i];
  }
  return nullptr;
}

// ---- Requests come and go -----------------------------------------------------------------------

int32_t FakeEngine::MostWaiting(int32_t tenant) {
  came_[tenant] = true;
  int32_t known = 0;
  for (size_t t = 0; t < came_.size(); ++t) known += came_[t] || options_.tenants[t].known;
  const int32_t own = options_.tenants[tenant].max_waiting, line = options_.max_waiting;
  return own > 0 ? own : known == 1 ? line - (line > 1) : line / 2 + line % 2;
}

absl::StatusOr<JobId> FakeEngine::Submit(const FakeRequest& request) {
  const JobSpec& spec = request.spec;
  const TenantOptions& tenant = options_.tenants[spec.tenant];
  const SchedulerModel& model = options_.models[spec.model];
  const int64_t worst =
      spec.fixed_blocks +
      int64_t{spec.rows} * BlockTable::BlocksFor(spec.max_context, model.block_size);
  const int32_t most_waiting = MostWaiting(spec.tenant);
  int32_t free_rows = std::min(options_.max_batch_seqs, options_.max_batch_tokens), of_tenant = 0;
  for (const int32_t i : live_) {
    if (!jobs_[i].admitted) continue;
    free_rows -= jobs_[i].request.spec.rows;
    of_tenant += jobs_[i].request.spec.tenant == spec.tenant;
  }
  const bool room = worst <= std::min(blocks_.total(), tenant.max_blocks) &&
                    spec.rows <= std::min(options_.max_batch_seqs, options_.max_batch_tokens) &&
                    spec.feature_slots <= model.feature_slots &&
                    scheduler_.waiting() < options_.max_waiting + free_rows &&
                    scheduler_.waiting(spec.tenant) <
                        most_waiting + std::min(free_rows, tenant.max_running - of_tenant);
  const absl::StatusOr<JobId> id = scheduler_.Add(spec, now_us_);
  if (!id.ok()) {
    CHECK_EQ(room, absl::IsDeadlineExceeded(id.status())) << id.status();
    CHECK(!room || spec.deadline_us != kNever);
    return id;
  }
  CHECK(room) << "the scheduler took what it cannot run";
  size_t i = 0;
  while (jobs_[i].id != 0) ++i;
  Job& job = jobs_[i];
  job.id = *id;
  job.request = request;
  job.arrival_us = now_us_;
  job.admitted = job.parked = job.encoded = job.planned = false;
  job.work = {};
  job.encoder_slot = -1;
  job.rounds_left = request.rounds;
  job.decoded = 0;
  job.preemptions = 0;
  while (static_cast<int32_t>(job.tables.size()) < spec.rows) job.tables.emplace_back(blocks_, 1);
  live_.push_back(static_cast<int32_t>(i));
  return id;
}

void FakeEngine::End(Job& job) {
  for (BlockTable& table : job.tables) table.Clear();
  job.fixed.Clear();
  const int64_t cost = scheduler_.cost(job.id, now_us_).total_ns();
  tenant_ns_[job.request.spec.tenant] += cost;
  ended_cost_ns_ += cost;
  scheduler_.Remove(job.id);
  job.id = 0;
  const int32_t i = static_cast<int32_t>(&job - jobs_.data());
  live_.erase(std::find(live_.begin(), live_.end(), i));
}

void FakeEngine::Cancel(JobId id) { End(Get(id)); }

void FakeEngine::CancelAnybody() {
  if (!live_.empty()) End(jobs_[live_[dice_.Uniform(0, live() - 1)]]);
}

void FakeEngine::CancelAnybodyWhoWaits() {
  if (live_.empty()) return;
  Job& job = jobs_[live_[dice_.Uniform(0, live() - 1)]];
  if (!job.admitted) End(job);
}

void FakeEngine::Park(JobId id, bool parked) {
  Job& job = Get(id);
  job.parked = parked;
  if (job.admitted) Tell(job);
}

void FakeEngine::ParkAnybody(bool parked) {
  if (live_.empty()) return;
  Job& job = jobs_[live_[dice_.Uniform(0, live() - 1)]];
  // A slow reader has something to read; an encoder half way would be kept from everybody else.
  if (job.work.kind == WorkKind::kDecode) Park(job.id, parked);
}

void FakeEngine::UnparkAll() {
  for (const int32_t i : live_) {
    if (jobs_[i].parked) Park(jobs_[i].id, false);
  }
}

void FakeEngine::SetPrices(int32_t model, const Prices& prices) {
  scheduler_.SetPrices(model, prices);
}

int64_t FakeEngine::cost_ns() const {
  int64_t total = ended_cost_ns_;
  for (const int32_t i : live_) total += scheduler_.cost(jobs_[i].id, now_us_).total_ns();
  return total;
}

// What was decoded of this round before a preemption is prefilled again, after the prompt.
void FakeEngine::StartRound(Job& job) {
  const FakeRequest& request = job.request;
  if (request.encode_units > 0 && !job.encoded) {
    job.work = {.kind = WorkKind::kEncode, .amount = request.encode_units};
  } else {
    job.work = {.kind = WorkKind::kPrefill, .amount = request.prompt_tokens + job.decoded};
  }
  const int32_t block_size = options_.models[request.spec.model].block_size;
  if (job.tables[0].block_size() != block_size) job.tables[0] = BlockTable(blocks_, block_size);
}

void FakeEngine::Tell(Job& job) {
  JobWork work = job.work;
  const FakeRequest& request = job.request;
  const int32_t rounds = job.rounds_left - 1;
  work.later_units = rounds * request.encode_units;
  work.later_tokens = rounds * request.prompt_tokens;
  if (work.kind == WorkKind::kEncode) work.later_tokens += request.prompt_tokens + job.decoded;
  if (job.parked) work.kind = WorkKind::kParked;
  scheduler_.SetWork(job.id, work);
}

// ---- The step -----------------------------------------------------------------------------------

bool FakeEngine::IsBehind(const Job& a, const Job& b) {
  const auto key = [](const Job& job) {
    return std::tuple(!job.starved, job.starved ? 0 : -job.request.spec.priority, job.id);
  };
  return key(a) > key(b);
}

void FakeEngine::OnPreempt(JobId id) {
  Job& job = Get(id);
  CHECK(job.admitted && options_.optimistic);
  bool last_of_all = true, last_of_tenant = true, foremost = true;
  for (const int32_t i : live_) {
    const Job& other = jobs_[i];
    if (!other.admitted || &other == &job) continue;
    const bool behind = IsBehind(other, job);
    foremost = foremost && behind;
    last_of_all = last_of_all && !behind;
    const bool same = other.request.spec.tenant == job.request.spec.tenant;
    last_of_tenant = last_of_tenant && !(same && behind);
  }
  // Who waits for its reader goes before anybody, but so often and no more.
  if (!job.parked || job.preemptions >= Scheduler::kMostEarly) {
    CHECK(!foremost && last_of_tenant) << id;
    const int32_t limit = options_.tenants[job.request.spec.tenant].max_blocks;
    CHECK(last_of_all || limit <= blocks_.total()) << id;
  }
  ++job.preemptions;
  for (BlockTable& table : job.tables) table.Clear();
  job.fixed.Clear();
  job.admitted = false;
  job.work = {};
  job.encoder_slot = -1;
  preempted_.push_back(id);
}

void FakeEngine::AdmitWaiting() {
  for (const JobId id : scheduler_.Admit(now_us_)) {
    Job& job = Get(id);
    CHECK(!job.admitted);
    job.admitted = true;
    job.starved = now_us_ - job.arrival_us >= options_.starvation_us;
    job.fixed.Grow(job.request.spec.fixed_blocks);
    StartRound(job);
    Tell(job);
  }
}

bool FakeEngine::Step(absl::FunctionRef<void()> while_it_works) {
  AdmitWaiting();
  const int64_t dearest = DearestUnitNs();
  dearest_ns_ = std::max(dearest, dearest_before_ns_);  // it may be gone what was saved up for
  dearest_before_ns_ = dearest;
  preempted_.clear();
  const int64_t preemptions = scheduler_.preemptions();
  plan_ = scheduler_.Schedule(now_us_, [this](JobId id) { OnPreempt(id); });
  CheckPlan(preemptions);
  const int64_t elapsed_us = plan_.predicted_ns / 1000;
  now_us_ += elapsed_us / 2;
  while_it_works();
  now_us_ += elapsed_us - elapsed_us / 2;
  predicted_ns_ += plan_.predicted_ns;
  items_ += static_cast<int64_t>(plan_.items.size());
  scheduler_.Commit(elapsed_us);
  for (const PlanItem& item : plan_.items) Perform(item);
  scheduler_.CheckInvariants();
  blocks_.CheckInvariants();
  CheckOwnership();
  CHECK_EQ(scheduler_.waiting() + scheduler_.running(), live());
  return !plan_.items.empty();
}

// Owned is what is used: each reference to a block is some table's.
void FakeEngine::CheckOwnership() const {
  size_t held = 0;
  for (const int32_t i : live_) {
    held += jobs_[i].fixed.blocks().size();
    for (const BlockTable& table : jobs_[i].tables) held += table.blocks().size();
  }
  CHECK_EQ(static_cast<int64_t>(held), blocks_.references()) << "blocks held by jobs, and held";
}

void FakeEngine::Finish(int64_t most) {
  for (int64_t steps = 0; live() > 0; ++steps) {
    CHECK_LT(steps, most) << live() << " jobs never end";
    if (!Step()) Sleep(1000);
  }
  CHECK_EQ(blocks_.used(), 0);
  CHECK_EQ(blocks_.reserved(), 0);
  CHECK(std::abs(predicted_ns() - cost_ns()) <= 2 * items())
      << predicted_ns() << " predicted, " << cost_ns() << " charged, " << items() << " items";
}

int64_t FakeEngine::DearestUnitNs() const {
  if (options_.target_step_us == 0) return 0;
  int64_t dearest = 0;
  for (const int32_t i : live_) {
    const Job& job = jobs_[i];
    if (!job.admitted) continue;
    const JobSpec& spec = job.request.spec;
    const Prices& prices = scheduler_.prices(spec.model);
    if (job.work.kind == WorkKind::kEncode) {
      dearest = std::max(dearest, PriceNs(prices, {.encode_units = 1}));
    } else if (job.work.kind == WorkKind::kPrefill) {
      const int64_t n = std::min(job.work.amount, 16);
      dearest = std::max(dearest,
                         PriceNs(prices, {.forwards = 1,
                                          .prefill_tokens = n,
                                          .prefill_context = n * job.work.context + n * (n + 1) / 2,
                                          .cross_positions = n * spec.cross_len}));
    }
  }
  return dearest;
}

void FakeEngine::CheckPlan(int64_t preemptions_before) {
  const bool preempted = scheduler_.preemptions() != preemptions_before;
  CHECK_EQ(static_cast<int64_t>(preempted_.size()), scheduler_.preemptions() - preemptions_before);
  std::fill(tokens_.begin(), tokens_.end(), 0);
  int32_t rows = 0;
  uint64_t encoders = 0;  // in use, by bit
  for (const PlanItem& item : plan_.items) {
    Job& job = Get(item.job);
    const JobSpec& spec = job.request.spec;
    CHECK(job.admitted && !job.parked && !job.planned) << item.job;
    job.planned = true;
    CHECK(item.kind == job.work.kind);
    CHECK(item.amount > 0 && item.amount <= job.work.amount) << item.amount;
    if (item.kind == WorkKind::kEncode) {
      CHECK_LE(item.amount, options_.models[spec.model].max_encode_units);
      CHECK(item.encoder_slot >= 0 && item.encoder_slot < options_.encoder_slots);
      CHECK(job.encoder_slot < 0 || job.encoder_slot == item.encoder_slot) << "it moved";
      job.encoder_slot = item.encoder_slot;
    } else {
      tokens_[spec.model] += item.amount;
      if (item.kind == WorkKind::kDecode) {
        CHECK_EQ(item.amount, job.work.amount);
        rows += item.amount;
      }
    }
  }
  CHECK_LE(rows, options_.max_batch_seqs);
  for (const int32_t tokens : tokens_) CHECK_LE(tokens, options_.max_batch_tokens);
  if (options_.chaos_seed == 0) {
    for (const PlanItem& item : plan_.items) {
      const Job& job = Get(item.job);
      CHECK(item.kind != WorkKind::kPrefill || item.amount >= 16 ||
            item.amount == job.work.amount || preempted ||
            tokens_[job.request.spec.model] == options_.max_batch_tokens)
          << "a chunk of " << item.amount;
    }
  }

  const Job* foremost = nullptr;
  bool work = false;
  for (const int32_t i : live_) {
    Job& job = jobs_[i];
    if (!job.admitted) continue;
    if (job.encoder_slot >= 0) {
      const uint64_t bit = uint64_t{1} << job.encoder_slot;
      CHECK((encoders & bit) == 0) << "two jobs in encoder slot " << job.encoder_slot;
      encoders |= bit;
    }
    work = work || !job.parked;
    // Decodes always, all of them; unless memory is only hoped for.
    CHECK(options_.optimistic || job.parked || job.work.kind != WorkKind::kDecode || job.planned);
    if (foremost == nullptr || IsBehind(*foremost, job)) foremost = &job;
  }
  if (foremost && !foremost->parked && foremost->work.kind == WorkKind::kDecode) {
    CHECK(foremost->planned) << "no room for the foremost";
  }
  CHECK(!work || !plan_.items.empty() || options_.optimistic) << "idle with work to do";
  for (const PlanItem& item : plan_.items) Get(item.job).planned = false;
  CheckBound(preempted);
}

// What scheduler.h says of a step's length. A preemption takes decodes out of a plan that was made
// with them.
void FakeEngine::CheckBound(bool preempted) {
  const int64_t target = options_.target_step_us * 1000;
  if (target == 0) return;
  if (preempted) {
    filled_ns_ = 0;
    share_ns_ = dearest_ns_;  // what may have been saved up
    return;
  }
  const int64_t decode = plan_.decode_ns;
  CHECK_LE(plan_.predicted_ns, decode + std::max(target, dearest_ns_));
  const bool decodes = std::any_of(plan_.items.begin(), plan_.items.end(),
                                   [](const PlanItem& i) { return i.kind == WorkKind::kDecode; });
  if (!decodes) {
    filled_ns_ = share_ns_ = 0;
    return;
  }
  filled_ns_ += plan_.predicted_ns - decode;
  share_ns_ += std::max(target - decode, target / 8);
  CHECK_LE(filled_ns_, share_ns_);
}

void FakeEngine::Perform(const PlanItem& item) {
  Job& job = Get(item.job);
  const FakeRequest& request = job.request;
  switch (item.kind) {
    case WorkKind::kNone:
    case WorkKind::kParked:
      CHECK(false);
      break;
    case WorkKind::kEncode:
      job.work.amount -= item.amount;
      if (job.work.amount > 0) break;  // the scheduler knows
      job.encoded = true;
      job.encoder_slot = -1;
      StartRound(job);
      Tell(job);
      break;
    case WorkKind::kPrefill:
      job.work.context += item.amount;
      job.work.amount -= item.amount;
      job.tables[0].Grow(job.work.context);
      if (job.work.amount > 0) break;
      for (int32_t row = 1; row < request.spec.rows; ++row) {
        job.tables[row] = job.tables[0].Fork(job.work.context, copies_);
      }
      copies_.clear();
      job.work.kind = WorkKind::kDecode;
      job.work.amount = job.work.tables = request.spec.rows;
      Tell(job);
      break;
    case WorkKind::kDecode:
      ++job.work.context;
      for (int32_t row = 0; row < job.work.amount; ++row) job.tables[row].Grow(job.work.context);
      if (++job.decoded >= request.decode_tokens) {
        if (--job.rounds_left == 0) {
          ++finished_;
          End(job);
          return;
        }
        for (BlockTable& table : job.tables) table.Clear();
        job.decoded = 0;
        job.encoded = false;
        StartRound(job);
        Tell(job);
      } else if (rows_end_ && job.work.amount > 1 && dice_.OneIn(8)) {
        // Its table goes too, or is kept as a finished beam's is.
        --job.work.amount;
        if (job.work.tables == job.work.amount + 1 && dice_.OneIn(2)) {
          job.tables[job.work.amount].Clear();
          job.work.tables = job.work.amount;
        }
        Tell(job);
      }
      break;
  }
}

}  // namespace sensorium
