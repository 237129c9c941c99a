#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "runtime/base/check.h"

namespace sensorium {

Scheduler::Scheduler(const SchedulerOptions& options, BlockAllocator& blocks,
                     SchedulerListener* listener)
    : options_(options),
      blocks_(blocks),
      listener_(listener),
      models_(options.models),
      line_(options.tenants, options.starvation_us, options.max_waiting + options.max_batch_seqs),
      preemption_order_(static_cast<int32_t>(options.tenants.size()),
                        options.max_waiting + options.max_batch_seqs),
      growth_(options.max_waiting + options.max_batch_seqs),
      ledger_(options.models.size()),
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
  resting_.reserve(options.max_batch_seqs);
  needs_.resize(slots);
  tenant_needs_.resize(options.tenants.size());
  fills_.reserve(options.max_batch_seqs);
  candidates_.reserve(options.max_batch_seqs);
  tokens_left_.resize(models_.size());
  forward_tokens_.resize(models_.size());
  row_prices_.resize(models_.size());
  decode_work_.resize(models_.size());
  tenant_decode_work_.resize(options.tenants.size() * models_.size());
  found_work_.resize(tenant_decode_work_.size());
  plan_.items.reserve(options.max_batch_seqs);
  shuffled_.items.reserve(options.chaos_seed ? options.max_batch_seqs : 0);
  charges_.resize(options.tenants.size());
  tenant_backlog_ns_.resize(options.tenants.size());
  found_backlog_.resize(options.tenants.size());
  endings_.reserve(options.max_batch_seqs);
}

int32_t Scheduler::BlocksAt(const JobSpec& spec, int64_t rows, int64_t context) const {
  const int64_t size = models_[spec.model].block_size;
  return spec.fixed_blocks + static_cast<int32_t>(rows * ((context + size - 1) / size));
}

// Encode units, and a prefill that begins at `context`, in passes of their own.
int64_t Scheduler::FillNs(int32_t model, int64_t units, int64_t tokens, int64_t context,
                          int64_t cross_len) const {
  const int64_t n = tokens;
  return PriceNs(models_[model].prices,
                 {.encode_units = units,
                  .forwards = n > 0 ? (n - 1) / options_.max_batch_tokens + 1 : 0,
                  .prefill_tokens = n,
                  .prefill_context = n * context + n * (n + 1) / 2,
                  .cross_positions = n * cross_len});
}

// What a step's decodes take now.
int64_t Scheduler::DecodeNs() const {
  int64_t total = 0;
  for (size_t m = 0; m < models_.size(); ++m) {
    Work work = decode_work_[m];
    work.forwards = work.decode_rows > 0;
    total += PriceNs(models_[m].prices, work);
  }
  return total;
}

int32_t Scheduler::BlocksToStart(const JobSpec& spec) const {
  const bool expects_less =
      options_.optimistic && spec.expected_context > 0 && spec.expected_context < spec.max_context;
  return BlocksAt(spec, spec.rows, expects_less ? spec.expected_context : spec.max_context);
}

// Of what has to be encoded and prefilled, what goes before a job whose own part is `own_ns`;
// `lower_ns` of its tenant's is of lower priority.
int64_t Scheduler::AheadNs(const JobSpec& spec, int64_t own_ns, int64_t lower_ns) const {
  if (options_.target_step_us == 0) {  // first come, first served
    return std::accumulate(tenant_backlog_ns_.begin(), tenant_backlog_ns_.end(), int64_t{0});
  }
  const int64_t mine = tenant_backlog_ns_[spec.tenant] - lower_ns;
  // The counters rise side by side: when this tenant's has come so far, so have the others'.
  const double until = static_cast<double>(line_.EnteringCounter(spec.tenant)) +
                       static_cast<double>(mine + own_ns) * 1000 /
                           static_cast<double>(line_.options(spec.tenant).weight);
  double ahead = static_cast<double>(mine);
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    if (t == spec.tenant || tenant_backlog_ns_[t] == 0) continue;
    const double share = (until - static_cast<double>(line_.counter(t))) *
                         static_cast<double>(line_.options(t).weight) / 1000;
    ahead += std::clamp(share, 0.0, static_cast<double>(tenant_backlog_ns_[t]));
  }
  return static_cast<int64_t>(ahead);
}

// Decode steps until those who end first have made room for the job and for who is `ahead` of it.
int64_t Scheduler::StepsUntilRoom(const JobSpec& spec, const Room& ahead) const {
  Room wanted = ahead;
  // Where nobody is preempted, image slots are free with a prompt's end, which AheadNs counts.
  if (!options_.optimistic) wanted.features = 0;
  wanted += {spec.rows, BlocksToStart(spec), options_.optimistic ? spec.feature_slots : 0};
  Room free = {std::min(options_.max_batch_seqs, options_.max_batch_tokens) - rows_reserved_,
               blocks_.total() - blocks_.reserved(),
               models_[spec.model].feature_slots - feature_slots_used_[spec.model]};
  if (free.Holds(wanted)) return 0;
  endings_.clear();
  for (const Running& r : running_) {
    const JobSpec& other = jobs_[r.slot].spec;
    // How many windows of a recording are left, nobody said: it may end at once.
    const int64_t most = other.cross_len > 0 ? 0 : other.decode_tokens;
    const int64_t until = other.expected_context > 0 ? other.expected_context
                                                     : other.prefill_tokens + other.decode_tokens;
    endings_.push_back(
        {.steps = std::clamp<int64_t>(until - ContextOf(r), 0, most),
         .room = {other.rows, r.reserved, other.model == spec.model ? other.feature_slots : 0}});
  }
  const auto later = [](const Ending& a, const Ending& b) { return a.steps > b.steps; };
  std::make_heap(endings_.begin(), endings_.end(), later);
  int64_t steps = 0;
  while (!endings_.empty() && !free.Holds(wanted)) {
    std::pop_heap(endings_.begin(), endings_.end(), later);
    steps = endings_.back().steps;
    free += endings_.back().room;
    endings_.pop_back();
  }
  return steps;
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
  const int64_t own = FillNs(spec.model, spec.encode_units, spec.prefill_tokens, 0, spec.cross_len);
  int64_t lower = 0, wait = 0;
  if (spec.deadline_us != kNever) {
    Room ahead;
    for (const Job& job : jobs_) {
      if (job.id == 0 || job.spec.tenant != spec.tenant) continue;
      if (job.spec.priority < spec.priority) {
        lower += job.fill_left_ns;
      } else if (job.running_idx < 0) {
        ahead += {job.spec.rows, job.reserve,
                  job.spec.model == spec.model && !job.has_features ? job.spec.feature_slots : 0};
      }
    }
    wait = StepsUntilRoom(spec, ahead) * decode;
  }
  const double fill_ns = std::max(static_cast<double>(AheadNs(spec, own, lower) + own) * stretch,
                                  static_cast<double>(wait) + static_cast<double>(own) * stretch);
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

void Scheduler::SetPrices(int32_t model, const Prices& prices) {
  if (models_[model].prices == prices) return;
  models_[model].prices = prices;
  if (listener_) listener_->OnPrices(model, prices);
}

const Scheduler::Job& Scheduler::Of(JobId id) const {
  const auto slot = static_cast<size_t>(SlotOf(id));
  CHECK(id != 0 && slot < jobs_.size() && jobs_[slot].id == id) << "unknown job " << id;
  return jobs_[slot];
}

JobCost Scheduler::cost(JobId id, int64_t now_us) const {
  const Job& job = Of(id);
  JobCost cost = job.cost;
  if (job.running_idx >= 0) {
    const Running& r = running_[job.running_idx];
    cost.decode_ns += DecodePs(r) / 1000;
    cost.block_ns += r.reserved * std::max<int64_t>(now_us - job.billed_us, 0) * 1000;
  }
  return cost;
}

void Scheduler::CheckInvariants() const {
  int64_t blocks = 0, rows = 0;
  std::fill(found_backlog_.begin(), found_backlog_.end(), 0);
  int32_t live = 0, encoders = 0, decodes = 0, fills = 0;
  std::vector<Work>& work = found_work_;
  std::fill(work.begin(), work.end(), Work{});
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
    if (r.plan_at >= 0) CHECK_EQ(plan_.items[r.plan_at].job, r.id);
    CHECK_EQ(growth_.Contains(r.slot), options_.optimistic && r.decodes());
    if (r.decodes()) {
      CHECK_LT(r.plan_at, num_decodes_);
      ++decodes;
      Work& of = work[r.tenant * models_.size() + r.model];
      of.decode_rows += r.amount;
      of.decode_context += r.amount * (ContextOf(r) + 1);
      of.cross_positions += r.amount * r.cross_len;
    }
    CHECK_EQ(r.fill_at >= 0, r.kind == WorkKind::kEncode || r.kind == WorkKind::kPrefill);
    if (r.fill_at >= 0) CHECK_EQ(fills_[r.fill_at], r.slot);
    fills += r.fill_at >= 0;
  }
  CHECK_EQ(decodes, num_decodes_);
  CHECK_EQ(fills, static_cast<int32_t>(fills_.size()));
  for (size_t m = 0; m < models_.size(); ++m) {
    Work sum;
    for (size_t i = m; i < work.size(); i += models_.size()) {
      CHECK(work[i] == tenant_decode_work_[i]);
      sum.decode_rows += work[i].decode_rows;
      sum.decode_context += work[i].decode_context;
      sum.cross_positions += work[i].cross_positions;
    }
    CHECK(sum == decode_work_[m]);
  }
  std::array<int64_t, 2> features{}, expected_features{};  // in use, and of it by who waits
  for (const Job& job : jobs_) {
    if (job.id == 0) continue;
    ++live;
    if (job.has_features) {
      features[0] += job.spec.feature_slots;
      if (job.running_idx < 0) features[1] += job.spec.feature_slots;
    }
    CHECK(job.fill_left_ns >= 0 && job.fill_left_ns <= job.fill_ns);
    found_backlog_[job.spec.tenant] += job.fill_left_ns;
    CHECK(job.running_idx >= 0 || line_.Contains(SlotOf(job.id)));
  }
  CHECK_EQ(live, running() + waiting());
  CHECK_EQ(live + static_cast<int32_t>(free_slots_.size()), static_cast<int32_t>(jobs_.size()));
  CHECK_EQ(blocks, blocks_.reserved());
  CHECK_EQ(rows, rows_reserved_);
  CHECK(found_backlog_ == tenant_backlog_ns_);
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
