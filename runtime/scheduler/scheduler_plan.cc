// The step: what is in it, and what it has cost.
#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/scheduler/scheduler.h"

namespace sensorium {

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
    case WorkKind::kParked:
      break;
  }
  return {};
}

// ---- The decodes that go on ----

// Of this run, up to now.
int64_t Scheduler::DecodePs(const Running& r) const {
  if (!r.decodes()) return r.decode_ps;
  const uint64_t bill = ledger_.Bill(r.model, r.amount, r.context, r.cross_len);
  return r.decode_ps + static_cast<int64_t>(bill - r.bill);
}

// Adds a decode to the sums over its model's, or takes it out. REQUIRES: decodes()
void Scheduler::AddDecode(const Running& r, int64_t times) {
  const int64_t rows = times * r.amount;
  for (Work* work :
       {&decode_work_[r.model], &tenant_decode_work_[r.tenant * models_.size() + r.model]}) {
    work->decode_rows += rows;
    work->decode_context += rows * (ContextOf(r) + 1);
    work->cross_positions += rows * r.cross_len;
  }
}

// REQUIRES: it decodes, and is not in the plan
void Scheduler::Join(Running& r) {
  plan_.items.push_back({.job = r.id, .kind = WorkKind::kDecode, .amount = r.amount});
  const auto last = static_cast<int32_t>(plan_.items.size()) - 1;
  std::swap(plan_.items[num_decodes_], plan_.items[last]);  // of a plan that was not carried out
  SetPlanAt(last);
  SetPlanAt(num_decodes_++);
  r.context -= ledger_.steps();
  r.bill = ledger_.Bill(r.model, r.amount, r.context, r.cross_len);
  AddDecode(r, 1);
  SetReserved(r, r.reserved);
}

void Scheduler::Depart(Running& r) {
  if (!r.decodes()) return;
  r.decode_ps = DecodePs(r);
  AddDecode(r, -1);
  growth_.Erase(r.slot);
  r.context = ContextOf(r);
  // The last decode takes its place, and the last fill that one's.
  const int32_t at = std::exchange(r.plan_at, -1);
  const int32_t last = --num_decodes_;
  plan_.items[at] = plan_.items[last];
  if (at != last) SetPlanAt(at);
  DropItem(last);
}

// ---- The plan's items ----

// Tells the job of an item where in the plan it is.
void Scheduler::SetPlanAt(int32_t at) {
  running_[jobs_[SlotOf(plan_.items[at].job)].running_idx].plan_at = at;
}

// The last item takes the place of one that nobody has any more.
void Scheduler::DropItem(int32_t at) {
  const PlanItem last = plan_.items.back();
  plan_.items.pop_back();
  if (at == static_cast<int32_t>(plan_.items.size())) return;
  plan_.items[at] = last;
  SetPlanAt(at);
}

// Takes what an admitted job has in the plan out again.
void Scheduler::Unplan(Running& r) {
  if (r.plan_at < 0) return;
  if (r.decodes()) {
    forward_tokens_[r.model] -= r.amount;
    Depart(r);
    return;
  }
  const int32_t at = std::exchange(r.plan_at, -1);
  const PlanItem& item = plan_.items[at];
  if (item.kind == WorkKind::kPrefill) forward_tokens_[r.model] -= item.amount;
  fill_ns_ -= PriceNs(models_[r.model].prices, WorkOf(r, item.kind, item.amount));
  DropItem(at);
}

void Scheduler::DropFills() {
  for (auto at = static_cast<size_t>(num_decodes_); at < plan_.items.size(); ++at) {
    running_[jobs_[SlotOf(plan_.items[at].job)].running_idx].plan_at = -1;
  }
  plan_.items.resize(num_decodes_);
}

// ---- A step ----

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

void Scheduler::PlanDecodes(absl::FunctionRef<void(JobId)> preempt) {
  for (const int32_t slot : resting_) {
    const int32_t idx = jobs_[slot].id == 0 ? -1 : jobs_[slot].running_idx;
    if (idx < 0) continue;  // gone since, or somebody else by now
    Running& r = running_[idx];
    if (r.kind == WorkKind::kDecode && !r.decodes()) Join(r);
  }
  resting_.clear();
  grows_.clear();
  if (options_.optimistic) growth_.AppendDue(ledger_.steps(), grows_);
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
    Work work = decode_work_[m];
    work.forwards = work.decode_rows > 0;
    plan_.decode_ns += PriceNs(prices, work);
    const bool fills_only = work.decode_rows == 0 && forward_tokens_[m] > 0;
    if (fills_only) plan_.predicted_ns += prices.forward_ps / 1000;
  }
  plan_.predicted_ns += plan_.decode_ns;
}

// Whether a step that is being made can take more of its kind of work at all.
bool Scheduler::HasRoom(const Running& r) const {
  if (r.kind == WorkKind::kPrefill) return tokens_left_[r.model] > 0;
  return r.encoder_slot >= 0 || !free_encoder_slots_.empty();
}

Scheduler::Candidate Scheduler::CandidateOf(const Job& job, int64_t now_us) const {
  // Whoever got nothing for too long goes first, whatever its tenant had or its neighbours are.
  const bool starves = now_us - job.served_us >= options_.starvation_us;
  const bool first_come = options_.target_step_us == 0;
  if (first_come || starves) return {.counter = -1, .order = job.order};
  return {.counter = line_.counter(job.spec.tenant),
          .deadline_us = job.spec.deadline_us,
          .order = job.order,
          .priority = job.spec.priority};
}

// The first `most` of the candidates after `after`, the very first at the back. A step takes few of
// the many there may be: to put all in order would cost more than the rest of the plan.
void Scheduler::FindCandidates(int64_t now_us, const Candidate& after, size_t most) {
  candidates_.clear();
  for (const int32_t slot : fills_) {
    const Job& job = jobs_[slot];
    Candidate c = CandidateOf(job, now_us);
    const bool full = candidates_.size() == most;
    if (full && !(c < candidates_.front())) continue;  // the last of them, while it is a heap
    if (!(after < c) || !HasRoom(running_[job.running_idx])) continue;
    c.slot = slot;
    if (full) {
      std::pop_heap(candidates_.begin(), candidates_.end());
      candidates_.back() = c;
    } else {
      candidates_.push_back(c);
    }
    std::push_heap(candidates_.begin(), candidates_.end());
  }
  std::sort_heap(candidates_.begin(), candidates_.end());
  std::reverse(candidates_.begin(), candidates_.end());
}

void Scheduler::PlanFill(int64_t now_us, absl::FunctionRef<void(JobId)> preempt) {
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
  Candidate last{.counter = std::numeric_limits<int64_t>::min()};
  size_t most_found = 32;
  FindCandidates(now_us, last, most_found);
  bool all_found = candidates_.size() < most_found;
  while (true) {
    if (candidates_.empty() && !all_found) {
      most_found *= 8;
      FindCandidates(now_us, last, most_found);
      all_found = candidates_.size() < most_found;
    }
    if (candidates_.empty()) break;
    last = candidates_.back();
    candidates_.pop_back();
    const int32_t slot = last.slot;
    const int32_t idx = jobs_[slot].running_idx;
    if (idx < 0) continue;  // preempted for one before it
    const Running r = running_[idx];
    if (!HasRoom(r)) continue;
    const Prices& prices = models_[r.model].prices;
    const bool prefill = r.kind == WorkKind::kPrefill;
    const int64_t most =
        std::min(r.amount, prefill ? tokens_left_[r.model] : models_[r.model].max_encode_units);
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
    now.plan_at = static_cast<int32_t>(plan_.items.size());
    plan_.items.push_back(item);
    filled = true;
  }
  saved_ns_ = saved;
  wanted_ns_ = wanted;
}

const StepPlan& Scheduler::Schedule(int64_t now_us, absl::FunctionRef<void(JobId)> preempt) {
  DropFills();  // of a plan that was not carried out
  fill_ns_ = 0;
  plan_us_ = now_us;
  clock_us_ = std::max(clock_us_, now_us);
  PlanDecodes(preempt);
  PlanFill(now_us, preempt);
  SumUp();
  const StepPlan* shown = &plan_;
  if (options_.chaos_seed) {
    shuffled_ = plan_;
    std::vector<PlanItem>& items = shuffled_.items;
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[Random() % i]);
    shown = &shuffled_;
  }
  if (listener_) listener_->OnPlan(*shown, now_us);
  return *shown;
}

void Scheduler::Commit(int64_t elapsed_us) {
  std::fill(charges_.begin(), charges_.end(), 0);
  const size_t num_models = models_.size();
  for (size_t m = 0; m < num_models; ++m) {
    const Prices& p = models_[m].prices;
    const int64_t share_ps = p.forward_ps / std::max<int64_t>(forward_tokens_[m], 1);
    row_prices_[m] = {p.decode_row_ps + share_ps, p.decode_context_ps, p.cross_position_ps};
  }
  for (auto at = static_cast<size_t>(num_decodes_); at < plan_.items.size(); ++at) {
    CommitFill(plan_.items[at]);
  }
  DropFills();
  for (size_t i = 0; i < tenant_decode_work_.size(); ++i) {
    Work& work = tenant_decode_work_[i];
    if (work.decode_rows == 0) continue;
    const RowPrices& p = row_prices_[i % num_models];
    charges_[i / num_models] += (work.decode_rows * p.row_ps + work.decode_context * p.context_ps +
                                 work.cross_positions * p.cross_ps) /
                                1000;
    work.decode_context += work.decode_rows;  // each row grew by a token
    decode_work_[i % num_models].decode_context += work.decode_rows;
  }
  ledger_.Step(row_prices_);
  clock_us_ = std::max(clock_us_, plan_us_ + elapsed_us);
  for (int32_t t = 0; t < line_.num_tenants(); ++t) {
    if (charges_[t]) line_.Charge(t, charges_[t]);
  }
  if (listener_) listener_->OnCommit(elapsed_us);
}

// Charges an encode or a prefill and counts it as done.
void Scheduler::CommitFill(const PlanItem& item) {
  Job& job = Of(item.job);
  Running& r = running_[job.running_idx];
  const Prices& prices = models_[r.model].prices;
  int64_t cost = PriceNs(prices, WorkOf(r, item.kind, item.amount));
  r.amount -= item.amount;
  if (item.kind == WorkKind::kEncode) {
    job.cost.encode_ns += cost;
    if (r.amount == 0) free_encoder_slots_.push_back(std::exchange(r.encoder_slot, -1));
  } else {
    cost += (row_prices_[r.model].row_ps - prices.decode_row_ps) * item.amount / 1000;
    job.cost.prefill_ns += cost;
    r.context += item.amount;
  }
  job.served_us = plan_us_;
  SetFillLeft(job, std::max<int64_t>(job.fill_left_ns - cost, 0));
  charges_[r.tenant] += cost;
  if (r.amount == 0) {  // what comes next, SetWork tells
    r.plan_at = -1;
    SetKind(r, WorkKind::kNone);
  }
}

}  // namespace sensorium
