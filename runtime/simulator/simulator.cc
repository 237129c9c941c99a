#include "runtime/simulator/simulator.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/simulator/recorder.h"
#include "runtime/simulator/simulated_job.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxEmptyPlans = 1000;
constexpr int kProgressSteps = 1024;

Prices Scaled(const Prices& p, double by) {
  const auto scale = [by](int64_t ps) { return std::llround(static_cast<double>(ps) * by); };
  return {scale(p.encode_unit_ps),     scale(p.forward_ps),    scale(p.prefill_token_ps),
          scale(p.prefill_context_ps), scale(p.decode_row_ps), scale(p.decode_context_ps),
          scale(p.cross_position_ps)};
}

struct Request {
  Arrival arrival;
  int64_t number = 0;
  std::vector<SimulatedPhase> phases;
  size_t phase = 0;
  JobId id = 0;
  std::unique_ptr<SimulatedJob> job;  // of this phase
  bool counted = false;               // arrived within the window
  bool admitted = false;              // once
  bool has_token = false;
  int64_t last_token_us = -1;  // of this round
};

class Simulation {
 public:
  Simulation(const Workload& workload, const DeviceProfile& profile,
             const SimulationOptions& options, std::vector<Arrival> arrivals)
      : profile_(profile),
        options_(options),
        arrivals_(std::move(arrivals)),
        memory_(profile, options.prefix_cache, options.encoder_cache_share,
                options.max_waiting + options.max_batch_seqs, options.optimistic),
        scheduler_(SimulatedSchedulerOptions(workload, profile, options), memory_.blocks,
                   options.listener),
        cost_models_{CostModel(Scaled(profile.vision.prices, options.price_error)),
                     CostModel(Scaled(profile.speech.prices, options.price_error))},
        random_(options.seed * 0x9e3779b97f4a7c15u + 1),
        recorder_(workload, static_cast<int64_t>(options.warmup_s * 1e6), EndUs(workload, options)),
        device_ns_(workload.tenants.size()) {}

  absl::StatusOr<SimulationRun> Run(absl::FunctionRef<void(double, double)> progress) {
    const auto start = Clock::now();
    int empty_plans = 0;
    for (int64_t turn = 0;; ++turn) {
      if (turn % kProgressSteps == 0) {
        progress(static_cast<double>(now_us()) / 1e6,
                 static_cast<double>(recorder_.end_us()) / 1e6);
      }
      Deliver();
      Expire();
      const auto host_start = Clock::now();
      const std::vector<JobId>& admitted = scheduler_.Admit(now_us());
      host_ += Clock::now() - host_start;
      for (const JobId id : admitted) Start(Of(id));
      if (scheduler_.running() > 0 && Step()) {
        empty_plans = 0;
        continue;
      }
      // Nothing to do until somebody comes, or the deadline of one who waits is over.
      const bool more = next_ < arrivals_.size();
      if (!more && scheduler_.running() + scheduler_.waiting() == 0) break;
      if ((!more || scheduler_.running() > 0) && ++empty_plans > kMaxEmptyPlans) return Stuck();
      const int64_t gap_ns = more ? arrivals_[next_].time_us * 1000 - now_ns_ : 1'000'000;
      Advance(std::max<int64_t>(gap_ns, 1000), /*busy=*/false);
    }
    SimulationRun run{.report = Finish()};
    run.wall_s = std::chrono::duration<double>(Clock::now() - start).count();
    run.host_us_per_plan = std::chrono::duration<double, std::micro>(host_).count() /
                           static_cast<double>(std::max<int64_t>(run.report.steps, 1));
    return run;
  }

 private:
  int64_t now_us() const { return now_ns_ / 1000; }
  Request& Of(JobId id) { return requests_[by_job_.at(id)]; }

  absl::Status Stuck() const {
    return absl::InternalError(absl::StrCat("after ", now_us(), " us nothing is planned for ",
                                            scheduler_.running(), " jobs, and ",
                                            scheduler_.waiting(), " wait"));
  }

  static int64_t EndUs(const Workload& workload, const SimulationOptions& options) {
    const auto begin_us = static_cast<int64_t>(options.warmup_s * 1e6);
    return std::max(begin_us + 1, static_cast<int64_t>(workload.duration_s * 1e6));
  }

  // ---- Requests

  void Deliver() {
    while (next_ < arrivals_.size() && arrivals_[next_].time_us <= now_us()) {
      const Arrival& a = arrivals_[next_++];
      int32_t slot = static_cast<int32_t>(requests_.size());
      if (free_.empty()) {
        requests_.emplace_back();
      } else {
        slot = free_.back();
        free_.pop_back();
      }
      Request& r = requests_[slot];
      r = {.arrival = a,
           .number = static_cast<int64_t>(next_),
           .phases = PhasesOf(a, profile_),
           .counted = recorder_.InWindow(a.time_us)};
      if (r.counted) recorder_.ForGroups(a, [](GroupReport& g) { ++g.arrived; });
      Submit(slot);
    }
  }

  // Puts the request's phase in line, or refuses it.
  void Submit(int32_t slot) {
    Request& r = requests_[slot];
    r.job = std::make_unique<SimulatedJob>(r.phases[r.phase], r.arrival, r.number, memory_);
    const absl::StatusOr<JobId> id =
        scheduler_.Add(r.job->spec(), now_us(), "arrival-" + std::to_string(r.number));
    if (!id.ok()) {
      if (r.counted) recorder_.ForGroups(r.arrival, [](GroupReport& g) { ++g.refused; });
      Leave(slot);
      return;
    }
    r.id = *id;
    r.last_token_us = -1;
    by_job_[*id] = slot;
    if (r.arrival.deadline_us != kNever) deadlines_.push({r.arrival.deadline_us, *id});
  }

  // Admitted, perhaps again.
  void Start(Request& r) {
    if (!r.admitted && r.counted) {
      recorder_.ForGroups(r.arrival,
                          [&](GroupReport& g) { g.queueing.Add(now_us() - r.arrival.time_us); });
    }
    r.admitted = true;
    r.job->Start(r.id);
    TellWork(r);
  }

  void TellWork(const Request& r) {
    scheduler_.SetWork(r.id, r.job->Pending());
    if (r.job->WaitsForAnother()) wait_for_another_.push_back(r.id);
  }

  // Of those whose picture another job encodes, or did when they were last asked.
  void TellWaiting() {
    std::vector<JobId> asked;
    asked.swap(wait_for_another_);
    for (const JobId id : asked) {
      const auto found = by_job_.find(id);
      if (found == by_job_.end() || !requests_[found->second].job->running()) continue;
      TellWork(requests_[found->second]);
    }
  }

  // Out of the scheduler, with all that it holds.
  void EndJob(Request& r) {
    r.job->End();
    device_ns_[r.arrival.tenant] += scheduler_.cost(r.id, now_us()).total_ns();
    if (r.counted) {
      recorder_.ForGroups(r.arrival, [&](GroupReport& g) { g.cache += r.job->cache_use(); });
    }
    by_job_.erase(r.id);
    scheduler_.Remove(r.id);
  }

  void EndPhase(Request& r) {
    const int32_t slot = by_job_.at(r.id);
    EndJob(r);
    if (++r.phase < r.phases.size()) {
      Submit(slot);
      return;
    }
    if (r.counted) {
      recorder_.ForGroups(r.arrival, [&](GroupReport& g) {
        ++g.completed;
        g.end_to_end.Add(now_us() - r.arrival.time_us);
      });
    }
    recorder_.Answered(now_us());
    Leave(slot);
  }

  void Expire() {
    while (!deadlines_.empty() && deadlines_.top().first < now_us()) {
      const JobId id = deadlines_.top().second;
      deadlines_.pop();
      const auto found = by_job_.find(id);
      if (found == by_job_.end()) continue;
      const int32_t slot = found->second;
      Request& r = requests_[slot];
      EndJob(r);
      if (r.counted) recorder_.ForGroups(r.arrival, [](GroupReport& g) { ++g.expired; });
      Leave(slot);
    }
  }

  void Leave(int32_t slot) {
    recorder_.Gone(requests_[slot].arrival.time_us, now_us());
    requests_[slot].phases.clear();
    requests_[slot].job.reset();
    free_.push_back(slot);
  }

  // ---- The step

  // False: there was nothing to do.
  bool Step() {
    TellWaiting();
    const auto host_start = Clock::now();
    const StepPlan& plan =
        scheduler_.Schedule(now_us(), [this](JobId id) { Of(id).job->Preempt(); });
    host_ += Clock::now() - host_start;
    if (plan.items.empty()) return false;
    items_ = plan.items;
    const int64_t predicted_ns = plan.predicted_ns, decode_ns = plan.decode_ns;

    const int64_t device_ns = RunDevice();
    const int64_t before_us = now_us();
    Advance(device_ns + options_.host_us * 1000, /*busy=*/true);
    recorder_.Step(predicted_ns, decode_ns, device_ns);
    const auto commit_start = Clock::now();
    scheduler_.Commit(now_us() - before_us);
    host_ += Clock::now() - commit_start;
    for (const PlanItem& item : items_) Progress(item);
    for (int32_t m = 0; m < 2; ++m) scheduler_.SetPrices(m, PricesNow(m));
    CheckOwnership();
    return true;
  }

  // Owned is what is used: what jobs hold is what allocator and slots have given out.
  void CheckOwnership() const {
    int64_t blocks = 0, holds = 0;
    for (const Request& r : requests_) {
      if (!r.job) continue;
      blocks += r.job->BlocksHeld();
      holds += r.job->FeaturesHeld();
    }
    CHECK_EQ(blocks, memory_.blocks.references()) << "KV blocks that jobs hold, and that are held";
    CHECK_EQ(holds, memory_.features.holds()) << "feature slots that jobs hold, and that are held";
  }

  Prices PricesNow(int32_t model) const {
    const bool learns = options_.noise > 0 || options_.price_error != 1;
    if (learns) return cost_models_[model].prices();
    return model == kVisionModel ? profile_.vision.prices : profile_.speech.prices;
  }

  // The calls that the plan makes: for each model its encode units, and one forward pass.
  int64_t RunDevice() {
    Work encode[2], forward[2];
    for (const PlanItem& item : items_) {
      SimulatedJob& job = *Of(item.job).job;
      const int32_t model = job.phase().model;
      if (item.kind == WorkKind::kPrefill) {
        const JobWork work = job.Pending();
        longest_prefilled_ =
            std::max(longest_prefilled_,
                     work.context + std::min<int64_t>(work.amount, Scheduler::kSmallestChunk));
      }
      const Work work = job.Take(item);
      Work& sum = item.kind == WorkKind::kEncode ? encode[model] : forward[model];
      sum.encode_units += work.encode_units;
      sum.forwards = work.forwards;
      sum.prefill_tokens += work.prefill_tokens;
      sum.prefill_context += work.prefill_context;
      sum.decode_rows += work.decode_rows;
      sum.decode_context += work.decode_context;
      sum.cross_positions += work.cross_positions;
    }
    int64_t total_ns = 0;
    for (int32_t m = 0; m < 2; ++m) {
      const Prices& truth = m == kVisionModel ? profile_.vision.prices : profile_.speech.prices;
      for (const Work& work : {encode[m], forward[m]}) {
        int64_t ns = PriceNs(truth, work);
        if (ns == 0) continue;
        if (options_.noise > 0) {
          ns = std::llround(static_cast<double>(ns) * std::exp(options_.noise * random_.Normal()));
        }
        cost_models_[m].Observe(work, ns);
        total_ns += ns;
      }
    }
    return total_ns;
  }

  // What the item's work has come to, now that the step is over.
  void Progress(const PlanItem& item) {
    Request& r = Of(item.job);
    SimulatedJob& job = *r.job;
    if (!job.Done(item)) return TellWork(r);
    if (job.phase().is_answer) TakeToken(r);
    if (!job.RoundIsOver()) {
      if (item.kind == WorkKind::kPrefill) TellWork(r);
    } else if (job.NextRound()) {
      r.last_token_us = -1;
      TellWork(r);
    } else {
      EndPhase(r);
    }
  }

  void TakeToken(Request& r) {
    const int64_t now = now_us();
    // Beams come to one text; answers are all answered.
    const int32_t tokens = r.arrival.kind == RequestKind::kSpeech ? 1 : r.arrival.rows;
    if (recorder_.InWindow(now))
      recorder_.ForGroups(r.arrival, [&](GroupReport& g) { g.output_tokens += tokens; });
    if (r.counted) {
      if (!r.has_token) {
        recorder_.ForGroups(r.arrival,
                            [&](GroupReport& g) { g.first_token.Add(now - r.arrival.time_us); });
      }
      if (r.last_token_us >= 0) {
        recorder_.ForGroups(r.arrival,
                            [&](GroupReport& g) { g.inter_token.Add(now - r.last_token_us); });
      }
    }
    r.has_token = true;
    r.last_token_us = now;
  }

  // ---- Time

  void Advance(int64_t ns, bool busy) {
    const int64_t from_us = now_us();
    now_ns_ += ns;
    const int64_t to_us = now_us(), begin_us = recorder_.begin_us(), end_us = recorder_.end_us();
    if (from_us <= begin_us && to_us >= begin_us) device_at_begin_ = DeviceNs();
    if (from_us <= end_us && to_us >= end_us) device_at_end_ = DeviceNs();
    recorder_.Pass(from_us, to_us, busy, scheduler_.waiting(), scheduler_.running());
  }

  // By tenant: of all that was and is.
  std::vector<int64_t> DeviceNs() const {
    std::vector<int64_t> ns = device_ns_;
    for (const auto& [job, slot] : by_job_) {
      ns[requests_[slot].arrival.tenant] += scheduler_.cost(job, now_us()).total_ns();
    }
    return ns;
  }

  SimulationReport Finish() {
    if (device_at_begin_.empty()) device_at_begin_.resize(device_ns_.size());
    if (device_at_end_.empty()) device_at_end_ = DeviceNs();
    for (size_t t = 0; t < device_at_end_.size(); ++t) device_at_end_[t] -= device_at_begin_[t];
    SimulationReport report = recorder_.Finish(now_us(), device_at_end_);
    report.preemptions = scheduler_.preemptions();
    report.dearest_unit_us = DearestUnitNs() / 1000;
    if (options_.target_step_us > 0) {
      report.stall_bound_us =
          report.dearest_decodes_us + std::max(options_.target_step_us, report.dearest_unit_us);
    }
    for (const CacheClass c : {CacheClass::kPrefix, CacheClass::kEncoder}) {
      report.evicted_blocks += memory_.cache.stats(c).evictions;
    }
    CHECK_EQ(memory_.blocks.used(), 0);
    CHECK_EQ(memory_.blocks.reserved(), 0);
    CHECK_EQ(memory_.features.pinned(), 0);
    return report;
  }

  int64_t DearestUnitNs() const {
    const Prices& vision = profile_.vision.prices;
    const Prices& speech = profile_.speech.prices;
    const auto chunk_ns = [&](const Prices& p, int64_t cross_len) {
      return PriceNs(p, {.forwards = 1,
                         .prefill_tokens = Scheduler::kSmallestChunk,
                         .prefill_context = Scheduler::kSmallestChunk * longest_prefilled_,
                         .cross_positions = Scheduler::kSmallestChunk * cross_len});
    };
    bool pictures = false, sounds = false;
    for (const Arrival& a : arrivals_) {
      pictures = pictures || a.image_crops > 0;
      sounds = sounds || a.kind == RequestKind::kSpeech || a.audio_ms > 0;
    }
    int64_t unit_ns = chunk_ns(vision, 0);
    if (pictures) unit_ns = std::max(unit_ns, PriceNs(vision, {.encode_units = 1}));
    if (sounds) {
      unit_ns = std::max({unit_ns, PriceNs(speech, {.encode_units = 1}),
                          chunk_ns(speech, profile_.speech.cross_positions)});
    }
    return unit_ns;
  }

  const DeviceProfile& profile_;
  const SimulationOptions options_;
  const std::vector<Arrival> arrivals_;  // by time
  size_t next_ = 0;

  SimulatedMemory memory_;
  Scheduler scheduler_;
  CostModel cost_models_[2];
  SimulationRandom random_;
  Recorder recorder_;

  std::vector<Request> requests_;  // by slot, used again
  std::vector<int32_t> free_;
  absl::flat_hash_map<JobId, int32_t> by_job_;
  using Deadline = std::pair<int64_t, JobId>;
  std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
  std::vector<PlanItem> items_;
  std::vector<JobId> wait_for_another_;

  int64_t now_ns_ = 0;
  std::vector<int64_t> device_ns_;  // by tenant, of jobs that have ended
  std::vector<int64_t> device_at_begin_, device_at_end_;
  int64_t longest_prefilled_ = 0;
  Clock::duration host_{};
};

}  // namespace

SchedulerOptions SimulatedSchedulerOptions(const Workload& workload, const DeviceProfile& profile,
                                           const SimulationOptions& options) {
  SchedulerOptions o{.max_batch_tokens = options.max_batch_tokens,
                     .max_batch_seqs = options.max_batch_seqs,
                     .max_waiting = options.max_waiting,
                     .encoder_slots = options.encoder_slots,
                     .target_step_us = options.target_step_us,
                     .starvation_us = options.starvation_us,
                     .optimistic = options.optimistic};
  const auto first = [&](const Prices& prices) {
    return options.price_error == 1 ? prices : Scaled(prices, options.price_error);
  };
  o.models = {{.block_size = profile.vision.block_size,
               .max_encode_units = profile.vision.max_encode_units,
               .feature_slots = profile.vision.feature_slots,
               .prices = first(profile.vision.prices)},
              {.block_size = profile.speech.block_size,
               .max_encode_units = profile.speech.max_encode_units,
               .prices = first(profile.speech.prices)}};
  o.tenants.clear();
  for (const TenantMix& t : workload.tenants) {
    o.tenants.push_back(
        {.weight = t.weight, .max_waiting = t.max_waiting, .max_running = t.max_running});
  }
  return o;
}

absl::StatusOr<SimulationRun> Simulate(const Workload& workload, const DeviceProfile& profile,
                                       const SimulationOptions& options,
                                       absl::FunctionRef<void(double, double)> progress) {
  if (options.warmup_s >= workload.duration_s) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the warm-up is ", options.warmup_s, " s; the arrivals last ", workload.duration_s, " s"));
  }
  ASSIGN_OR_RETURN(std::vector<Arrival> arrivals, DrawArrivals(workload, options.seed));
  return Simulation(workload, profile, options, std::move(arrivals)).Run(progress);
}

}  // namespace sensorium
