#include "runtime/simulator/simulator.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/kv_cache/block_table.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t kVision = 0, kSpeech = 1;  // models
constexpr int64_t kMaxContext = 1 << 28;     // beyond any pool: refused, and no overflow on the way
constexpr int64_t kSmallestChunk = 16;       // tokens that a prefill is cut to, scheduler.cc
constexpr double kSpokenTokensPerSecond = 3;
constexpr size_t kMoments = 150, kMaxMoments = 600;
constexpr int kMaxEmptyPlans = 1000;
constexpr int kProgressSteps = 1024;

Prices Scaled(const Prices& p, double by) {
  const auto scale = [by](int64_t ps) { return std::llround(static_cast<double>(ps) * by); };
  return {scale(p.encode_unit_ps),     scale(p.forward_ps),    scale(p.prefill_token_ps),
          scale(p.prefill_context_ps), scale(p.decode_row_ps), scale(p.decode_context_ps),
          scale(p.cross_position_ps)};
}

// A request's work on one model: encode, prefill and decode, once in each round.
struct Phase {
  int32_t model = kVision;
  int32_t rounds = 1;
  int32_t encode_units = 0;    // of a round
  int64_t prefill_tokens = 1;  // of a round
  int64_t output_tokens = 1;   // of all rounds
  int64_t cross_len = 0;
  bool is_heard = false;  // its tokens are the request's answer

  int64_t OutputOf(int32_t round) const {
    return std::max<int64_t>(1,
                             output_tokens * (round + 1) / rounds - output_tokens * round / rounds);
  }
};

struct Request {
  Arrival arrival;
  std::vector<Phase> phases;
  size_t phase = 0;
  JobId job = 0;
  bool counted = false;   // arrived within the window
  bool admitted = false;  // once
  bool has_token = false;
  int64_t last_token_us = -1;  // of this round

  // Of the phase that it is in.
  int32_t round = 0;
  int32_t encode_left = 0;
  int64_t prefill_left = 0;
  int64_t context = 0;             // tokens in its cache
  int64_t produced = 0;            // of this round
  std::vector<BlockTable> tables;  // the row's, and the encoder's

  const Phase& now() const { return phases[phase]; }
};

class Simulation {
 public:
  Simulation(const Workload& workload, const DeviceProfile& profile,
             const SimulationOptions& options, std::vector<Arrival> arrivals)
      : workload_(workload),
        profile_(profile),
        options_(options),
        arrivals_(std::move(arrivals)),
        blocks_(profile.kv_blocks),
        scheduler_(SimulatedSchedulerOptions(workload, profile, options), blocks_,
                   options.listener),
        cost_models_{CostModel(Scaled(profile.vision.prices, options.price_error)),
                     CostModel(Scaled(profile.speech.prices, options.price_error))},
        random_(options.seed * 0x9e3779b97f4a7c15u + 1) {
    begin_us_ = static_cast<int64_t>(options.warmup_s * 1e6);
    end_us_ = std::max(begin_us_ + 1, static_cast<int64_t>(workload.duration_s * 1e6));
    kinds_.resize(kNumRequestKinds);
    for (int k = 0; k < kNumRequestKinds; ++k) {
      kinds_[k].name = std::string(RequestKindName(static_cast<RequestKind>(k)));
    }
    for (const TenantMix& t : workload.tenants) {
      TenantReport& tenant = report_.tenants.emplace_back();
      tenant.name = t.name;
      tenant.weight = t.weight;
    }
    report_.total.name = "all";
    device_ns_.resize(workload.tenants.size());
    moment_us_ = std::max<int64_t>(1, end_us_ / static_cast<int64_t>(kMoments));
  }

  absl::StatusOr<SimulationRun> Run(absl::FunctionRef<void(double, double)> progress) {
    const auto start = Clock::now();
    int empty_plans = 0;
    for (int64_t turn = 0;; ++turn) {
      if (turn % kProgressSteps == 0) {
        progress(static_cast<double>(now_us()) / 1e6, static_cast<double>(end_us_) / 1e6);
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
    Finish();
    SimulationRun run{.report = std::move(report_)};
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

  // f(group) for every group that the request belongs to.
  template <typename F>
  void ForGroups(const Arrival& a, F&& f) {
    f(report_.total);
    f(kinds_[static_cast<int>(a.kind)]);
    f(static_cast<GroupReport&>(report_.tenants[a.tenant]));
  }
  bool InWindow(int64_t us) const { return us >= begin_us_ && us < end_us_; }

  // ---- Requests

  std::vector<Phase> PhasesOf(const Arrival& a) const {
    std::vector<Phase> phases;
    const SpeechProfile& speech = profile_.speech;
    int64_t prompt = a.prompt_tokens;
    if (a.audio_ms > 0 || a.kind == RequestKind::kSpeech) {
      const int64_t windows = std::clamp<int64_t>(
          (a.audio_ms + speech.window_ms - 1) / speech.window_ms, 1, kMaxContext);
      const bool is_answer = a.kind == RequestKind::kSpeech;
      const int64_t spoken =
          std::llround(static_cast<double>(a.audio_ms) / 1000 * kSpokenTokensPerSecond);
      phases.push_back(
          {.model = kSpeech,
           .rounds = static_cast<int32_t>(windows),
           .encode_units = speech.window_stages,
           .prefill_tokens = speech.prompt_tokens,
           .output_tokens = std::max<int64_t>(is_answer ? a.output_tokens : spoken, windows),
           .cross_len = speech.cross_positions,
           .is_heard = is_answer});
      if (is_answer) return phases;
      prompt += spoken;
    }
    prompt += int64_t{a.image_crops} * profile_.vision.crop_tokens;
    phases.push_back({.encode_units = a.image_crops,
                      .prefill_tokens = std::clamp<int64_t>(prompt, 1, kMaxContext),
                      .output_tokens = std::min<int64_t>(a.output_tokens, kMaxContext),
                      .is_heard = true});
    return phases;
  }

  JobSpec SpecOf(const Request& r) const {
    const Phase& p = r.now();
    const int64_t longest_output = p.OutputOf(p.rounds - 1) + (p.rounds > 1 ? 1 : 0);
    JobSpec spec{.model = p.model,
                 .tenant = r.arrival.tenant,
                 .priority = r.arrival.priority,
                 .deadline_us = r.arrival.deadline_us,
                 .max_context = p.prefill_tokens + longest_output,
                 .encode_units = int64_t{p.encode_units} * p.rounds,
                 .prefill_tokens = p.prefill_tokens * p.rounds,
                 .decode_tokens = p.output_tokens,
                 .cross_len = p.cross_len};
    if (p.model == kVision) {
      spec.feature_slots = p.encode_units > 0 ? 1 : 0;
      // A server knows what was asked for at most, and that most answers are half of it.
      spec.expected_context = p.prefill_tokens + (longest_output + 1) / 2;
    } else {
      spec.fixed_blocks = BlockTable::BlocksFor(p.cross_len, profile_.speech.block_size);
    }
    return spec;
  }

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
      r = {.arrival = a, .phases = PhasesOf(a), .counted = InWindow(a.time_us)};
      if (r.counted) ForGroups(a, [](GroupReport& g) { ++g.arrived; });
      Submit(slot);
    }
  }

  // Puts the request's phase in line, or refuses it.
  void Submit(int32_t slot) {
    Request& r = requests_[slot];
    const absl::StatusOr<JobId> id = scheduler_.Add(SpecOf(r), now_us());
    if (!id.ok()) {
      if (r.counted) ForGroups(r.arrival, [](GroupReport& g) { ++g.refused; });
      Leave(slot);
      return;
    }
    r.job = *id;
    by_job_[*id] = slot;
    r.round = 0;
    r.produced = 0;
    EnterRound(r);
    if (r.arrival.deadline_us != kNever) deadlines_.push({r.arrival.deadline_us, *id});
  }

  void EnterRound(Request& r) {
    r.encode_left = r.now().encode_units;
    r.prefill_left = r.now().prefill_tokens;
    r.context = 0;
    r.produced = 0;
    r.last_token_us = -1;
  }

  // Admitted, perhaps again.
  void Start(Request& r) {
    if (!r.admitted && r.counted) {
      ForGroups(r.arrival, [&](GroupReport& g) { g.queueing.Add(now_us() - r.arrival.time_us); });
    }
    r.admitted = true;
    const int32_t size =
        r.now().model == kVision ? profile_.vision.block_size : profile_.speech.block_size;
    r.tables.emplace_back(blocks_, size);
    if (r.now().cross_len > 0) {
      r.tables.emplace_back(blocks_, size);
      r.tables.back().Grow(r.now().cross_len);
    }
    TellWork(r);
  }

  void TellWork(const Request& r) {
    JobWork work{.context = r.context};
    if (r.encode_left > 0) {
      work.kind = WorkKind::kEncode;
      work.amount = r.encode_left;
    } else if (r.prefill_left > 0) {
      work.kind = WorkKind::kPrefill;
      work.amount = static_cast<int32_t>(r.prefill_left);
    } else {
      work.kind = WorkKind::kDecode;
      work.amount = 1;
    }
    scheduler_.SetWork(r.job, work);
  }

  // Preempted: its blocks go, and what they held is computed again. Features of a picture stay; the
  // keys of a window's encoder lay in blocks.
  void Preempt(JobId id) {
    Request& r = Of(id);
    r.tables.clear();
    if (r.now().cross_len > 0) r.encode_left = r.now().encode_units;
    r.prefill_left = r.now().prefill_tokens + r.produced;
    r.context = 0;
  }

  // Its phase is over, or all of it.
  void EndJob(Request& r) {
    const int32_t slot = by_job_.at(r.job);
    r.tables.clear();
    device_ns_[r.arrival.tenant] += scheduler_.cost(r.job).total_ns();
    by_job_.erase(r.job);
    scheduler_.Remove(r.job);
    r.job = 0;
    if (++r.phase < r.phases.size()) {
      Submit(slot);
      return;
    }
    if (r.counted) {
      ForGroups(r.arrival, [&](GroupReport& g) {
        ++g.completed;
        g.end_to_end.Add(now_us() - r.arrival.time_us);
      });
    }
    if (InWindow(now_us())) ++ended_in_window_;
    Leave(slot);
  }

  void Expire() {
    while (!deadlines_.empty() && deadlines_.top().first < now_us()) {
      const JobId id = deadlines_.top().second;
      deadlines_.pop();
      const auto found = by_job_.find(id);
      if (found == by_job_.end()) continue;
      Request& r = requests_[found->second];
      const int32_t slot = found->second;
      r.tables.clear();
      device_ns_[r.arrival.tenant] += scheduler_.cost(id).total_ns();
      by_job_.erase(found);
      scheduler_.Remove(id);
      if (r.counted) ForGroups(r.arrival, [](GroupReport& g) { ++g.expired; });
      Leave(slot);
    }
  }

  // For Little's law: the time it was here, within the window.
  void Leave(int32_t slot) {
    const int64_t from = std::max(requests_[slot].arrival.time_us, begin_us_);
    const int64_t to = std::min(now_us(), end_us_);
    if (to > from) in_system_us_ += static_cast<double>(to - from);
    requests_[slot].phases.clear();
    free_.push_back(slot);
  }

  // ---- The step

  // False: there was nothing to do.
  bool Step() {
    const auto host_start = Clock::now();
    const StepPlan& plan = scheduler_.Schedule(now_us(), [this](JobId id) { Preempt(id); });
    host_ += Clock::now() - host_start;
    if (plan.items.empty()) return false;
    items_ = plan.items;
    const int64_t predicted_ns = plan.predicted_ns;
    dearest_decodes_ns_ = std::max(dearest_decodes_ns_, plan.decode_ns);

    const int64_t device_ns = RunDevice();
    const int64_t before_us = now_us();
    Advance(device_ns + options_.host_us * 1000, /*busy=*/true);
    if (device_ns > 0) {
      step_error_.Add(std::llround(1e6 * std::abs(static_cast<double>(predicted_ns - device_ns)) /
                                   static_cast<double>(device_ns)));
    }
    const auto commit_start = Clock::now();
    scheduler_.Commit(now_us() - before_us);
    host_ += Clock::now() - commit_start;
    ++report_.steps;
    for (const PlanItem& item : items_) Progress(item);
    for (int32_t m = 0; m < 2; ++m) scheduler_.SetPrices(m, PricesNow(m));
    return true;
  }

  Prices PricesNow(int32_t model) const {
    const bool learns = options_.noise > 0 || options_.price_error != 1;
    if (learns) return cost_models_[model].prices();
    return model == kVision ? profile_.vision.prices : profile_.speech.prices;
  }

  // The calls that the plan makes: for each model its encode units, and one forward pass.
  int64_t RunDevice() {
    Work encode[2], forward[2];
    for (const PlanItem& item : items_) {
      Request& r = Of(item.job);
      const Phase& phase = r.now();
      const int64_t n = item.amount;
      Work& w = forward[phase.model];
      if (item.kind == WorkKind::kEncode) {
        encode[phase.model].encode_units += n;
        continue;
      }
      w.forwards = 1;
      r.tables[0].Grow(r.context + n);
      w.cross_positions += n * phase.cross_len;
      if (item.kind == WorkKind::kPrefill) {
        w.prefill_tokens += n;
        w.prefill_context += n * r.context + n * (n + 1) / 2;
        const int64_t least = std::min(r.prefill_left, kSmallestChunk);
        longest_prefilled_ = std::max(longest_prefilled_, r.context + least);
      } else {
        w.decode_rows += n;
        w.decode_context += n * (r.context + 1);
      }
    }
    int64_t total_ns = 0;
    for (int32_t m = 0; m < 2; ++m) {
      const Prices& truth = m == kVision ? profile_.vision.prices : profile_.speech.prices;
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
    switch (item.kind) {
      case WorkKind::kEncode:
        r.encode_left -= item.amount;
        if (r.encode_left == 0) TellWork(r);
        return;
      case WorkKind::kPrefill:
        r.prefill_left -= item.amount;
        r.context += item.amount;
        if (r.prefill_left > 0) return;
        break;
      default:
        r.context += 1;
    }
    TakeToken(r);
    if (r.produced < r.now().OutputOf(r.round)) {
      if (item.kind == WorkKind::kPrefill) TellWork(r);
    } else if (++r.round < r.now().rounds) {
      EnterRound(r);
      TellWork(r);
    } else {
      EndJob(r);
    }
  }

  void TakeToken(Request& r) {
    ++r.produced;
    if (!r.now().is_heard) return;
    const int64_t now = now_us();
    if (InWindow(now)) ForGroups(r.arrival, [](GroupReport& g) { ++g.output_tokens; });
    if (r.counted) {
      if (!r.has_token) {
        ForGroups(r.arrival, [&](GroupReport& g) { g.first_token.Add(now - r.arrival.time_us); });
      }
      if (r.last_token_us >= 0) {
        ForGroups(r.arrival, [&](GroupReport& g) { g.inter_token.Add(now - r.last_token_us); });
      }
    }
    r.has_token = true;
    r.last_token_us = now;
  }

  // ---- Time

  void Advance(int64_t ns, bool busy) {
    const int64_t from_us = now_us();
    now_ns_ += ns;
    const int64_t to_us = now_us();
    if (busy) {
      busy_us_ += static_cast<double>(
          std::max<int64_t>(0, std::min(to_us, end_us_) - std::max(from_us, begin_us_)));
    }
    if (from_us <= begin_us_ && to_us >= begin_us_) device_at_begin_ = DeviceNs();
    if (from_us <= end_us_ && to_us >= end_us_) device_at_end_ = DeviceNs();
    // Into the moments, each its part.
    for (int64_t at = from_us; at < to_us;) {
      const size_t moment = static_cast<size_t>(at / moment_us_);
      const int64_t until = std::min(to_us, static_cast<int64_t>(moment + 1) * moment_us_);
      if (moment >= kMaxMoments) {
        HalveMoments();
        continue;
      }
      if (moment >= report_.moments.size()) report_.moments.resize(moment + 1);
      SimulationMoment& m = report_.moments[moment];
      const double us = static_cast<double>(until - at);
      m.waiting += us * scheduler_.waiting();
      m.running += us * scheduler_.running();
      m.utilisation += busy ? us : 0;
      at = until;
    }
  }

  void HalveMoments() {
    moment_us_ *= 2;
    std::vector<SimulationMoment>& all = report_.moments;
    for (size_t i = 0; i < all.size(); ++i) {
      const SimulationMoment m = all[i];
      if (i % 2 == 0) {
        all[i / 2] = m;
      } else {
        all[i / 2].waiting += m.waiting;
        all[i / 2].running += m.running;
        all[i / 2].utilisation += m.utilisation;
      }
    }
    all.resize((all.size() + 1) / 2);
  }

  // By tenant: of all that was and is.
  std::vector<int64_t> DeviceNs() const {
    std::vector<int64_t> ns = device_ns_;
    for (const auto& [job, slot] : by_job_) {
      ns[requests_[slot].arrival.tenant] += scheduler_.cost(job).total_ns();
    }
    return ns;
  }

  void Finish() {
    if (device_at_begin_.empty()) device_at_begin_.resize(device_ns_.size());
    if (device_at_end_.empty()) device_at_end_ = DeviceNs();
    const double window_s = static_cast<double>(end_us_ - begin_us_) / 1e6;
    report_.window_s = window_s;
    report_.simulated_s = static_cast<double>(now_us()) / 1e6;
    for (GroupReport& kind : kinds_) {
      if (kind.arrived > 0 || kind.output_tokens > 0) report_.kinds.push_back(std::move(kind));
    }
    double sum = 0, squares = 0;
    int active = 0;
    for (size_t t = 0; t < report_.tenants.size(); ++t) {
      TenantReport& tenant = report_.tenants[t];
      tenant.device_s = static_cast<double>(device_at_end_[t] - device_at_begin_[t]) / 1e9;
      if (tenant.arrived == 0) continue;
      const double share = tenant.device_s / tenant.weight;
      sum += share;
      squares += share * share;
      ++active;
    }
    report_.fairness = squares > 0 ? sum * sum / (active * squares) : 1;
    std::erase_if(report_.tenants, [](const TenantReport& t) {
      return t.arrived == 0 && t.output_tokens == 0 && t.device_s == 0;
    });
    report_.requests_per_s = static_cast<double>(ended_in_window_) / window_s;
    report_.tokens_per_s = static_cast<double>(report_.total.output_tokens) / window_s;
    report_.utilisation = busy_us_ / 1e6 / window_s;
    report_.mean_in_system = in_system_us_ / 1e6 / window_s;
    report_.preemptions = scheduler_.preemptions();

    const Prices& vision = profile_.vision.prices;
    const Prices& speech = profile_.speech.prices;
    const auto chunk_ns = [&](const Prices& p, int64_t cross_len) {
      return PriceNs(p, {.forwards = 1,
                         .prefill_tokens = kSmallestChunk,
                         .prefill_context = kSmallestChunk * longest_prefilled_,
                         .cross_positions = kSmallestChunk * cross_len});
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
    report_.dearest_unit_us = unit_ns / 1000;
    report_.dearest_decodes_us = dearest_decodes_ns_ / 1000;
    if (options_.target_step_us > 0) {
      report_.stall_bound_us =
          report_.dearest_decodes_us + std::max(options_.target_step_us, report_.dearest_unit_us);
    }
    report_.median_step_error = static_cast<double>(step_error_.QuantileUs(0.5)) / 1e6;
    report_.p99_step_error = static_cast<double>(step_error_.QuantileUs(0.99)) / 1e6;
    report_.moment_s = static_cast<double>(moment_us_) / 1e6;
    const double width = static_cast<double>(moment_us_);
    for (size_t i = 0; i < report_.moments.size(); ++i) {
      SimulationMoment& m = report_.moments[i];
      const double here =  // the last one may be cut short
          std::clamp(static_cast<double>(now_us()) - static_cast<double>(i) * width, 1.0, width);
      m.time_s = static_cast<double>(i) * report_.moment_s;
      m.waiting /= here;
      m.running /= here;
      m.utilisation /= here;
    }
    CHECK_EQ(blocks_.used(), 0);
    CHECK_EQ(blocks_.reserved(), 0);
  }

  const Workload& workload_;
  const DeviceProfile& profile_;
  const SimulationOptions options_;
  const std::vector<Arrival> arrivals_;  // by time
  size_t next_ = 0;
  int64_t begin_us_ = 0, end_us_ = 0;  // of the window

  BlockAllocator blocks_;
  Scheduler scheduler_;
  CostModel cost_models_[2];
  SimulationRandom random_;

  std::vector<Request> requests_;  // by slot, used again
  std::vector<int32_t> free_;
  absl::flat_hash_map<JobId, int32_t> by_job_;
  using Deadline = std::pair<int64_t, JobId>;
  std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
  std::vector<PlanItem> items_;

  int64_t now_ns_ = 0;
  std::vector<GroupReport> kinds_;
  std::vector<int64_t> device_ns_;  // by tenant, of jobs that have ended
  std::vector<int64_t> device_at_begin_, device_at_end_;
  int64_t moment_us_ = 1;
  int64_t ended_in_window_ = 0;
  int64_t dearest_decodes_ns_ = 0;
  int64_t longest_prefilled_ = 0;
  double busy_us_ = 0, in_system_us_ = 0;
  LatencyHistogram step_error_;  // in millionths
  Clock::duration host_{};
  SimulationReport report_;
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
