#include "runtime/scheduler/replay.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

// What a scheduler adds up stays within 64 bits as long as a full step, the work in line and all
// steps together are predicted within these.
constexpr int64_t kMaxStepNs = 10'000'000'000'000;            // 2.7 hours
constexpr int64_t kMaxBacklogNs = 1'000'000'000'000'000'000;  // 31 years
constexpr int64_t kMaxTotalNs = 5'000'000'000'000'000;        // 57 days
constexpr int64_t kMaxBlockNs = 5'000'000'000'000'000'000;
constexpr int64_t kMaxMemorySlots = 1 << 22;
constexpr int kShownItems = 64;
constexpr int kProgressLines = 4096;

double Quantile(std::vector<double>& values, double quantile) {
  if (values.empty()) return 0;
  const auto at =
      values.begin() + static_cast<int64_t>(quantile * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

class Replayer {
 public:
  explicit Replayer(TraceReader& reader)
      : reader_(reader),
        options_(reader.header().options),
        blocks_(reader.header().num_blocks),
        scheduler_(options_, blocks_) {
    for (const SchedulerModel& m : options_.models) prices_.push_back(m.prices);
  }

  absl::Status Handle(const TraceEvent& event) {
    using Kind = TraceEvent::Kind;
    // Lines of one decision follow each other: an Admit's are over when another kind of line, or
    // another time, comes; a Schedule's preemptions come before its plan.
    if (!admits_.empty() && (event.kind != Kind::kAdmit || event.now_us != admit_us_)) Admit();
    RETURN_IF_ERROR(TellTime(event.line, event.now_us));
    if (!preempts_.empty() && event.kind != Kind::kPreempt && event.kind != Kind::kPlan) {
      return reader_.At(event.line, "a preemption is not followed by its plan");
    }
    switch (event.kind) {
      case Kind::kAdd:
      case Kind::kRefuse:
        return Add(event);
      case Kind::kRemove:
        return Remove(event);
      case Kind::kAdmit:
        RETURN_IF_ERROR(Known(event));
        if (admits_.empty()) admit_line_ = event.line;
        admit_us_ = event.now_us;
        admits_.push_back(event.job);
        return absl::OkStatus();
      case Kind::kPreempt:
        RETURN_IF_ERROR(Known(event));
        if (preempts_.empty()) preempt_line_ = event.line;
        preempts_.push_back(event.job);
        return absl::OkStatus();
      case Kind::kWork:
        return SetWork(event);
      case Kind::kPrices:
        return SetPrices(event);
      case Kind::kPlan:
        return Schedule(event);
      case Kind::kCommit:
        return Commit(event);
    }
    return absl::OkStatus();
  }

  ReplayReport Finish() {
    if (!admits_.empty()) Admit();
    report_.median_step_error = Quantile(step_errors_, 0.5);
    report_.p99_step_error = Quantile(step_errors_, 0.99);
    if (report_.plans > 0) {
      report_.host_us_per_plan = std::chrono::duration<double, std::micro>(host_).count() /
                                 static_cast<double>(report_.plans);
    }
    return report_;
  }

  // Whether the options are ones that a scheduler can be made with, before it is.
  static absl::Status CheckOptions(const TraceReader& reader) {
    const SchedulerOptions& o = reader.header().options;
    if (int64_t{o.max_waiting} + o.max_batch_seqs > kMaxMemorySlots) {
      return reader.At(1, "more jobs at once than can be replayed");
    }
    for (const SchedulerModel& m : o.models) {
      RETURN_IF_ERROR(CheckPrices(reader, 1, o, m, m.prices, /*context=*/0, /*cross_len=*/0));
    }
    return absl::OkStatus();
  }

 private:
  struct Job {
    JobId replayed = 0;   // 0: this scheduler refused it
    std::string request;  // whose it is
    JobSpec spec;
    int64_t fill_ns = 0;
    bool running = false;
  };

  static absl::Status CheckPrices(const TraceReader& reader, int64_t line,
                                  const SchedulerOptions& o, const SchedulerModel& m,
                                  const Prices& prices, int64_t context, int64_t cross_len) {
    const int64_t tokens = o.max_batch_tokens, rows = o.max_batch_seqs;
    const int64_t longest = std::max<int64_t>(context, 1);
    const int64_t ns = PriceNs(prices, {.encode_units = m.max_encode_units,
                                        .forwards = 1,
                                        .prefill_tokens = tokens,
                                        .prefill_context = tokens * (longest + tokens),
                                        .decode_rows = rows,
                                        .decode_context = rows * longest,
                                        .cross_positions = (tokens + rows) * cross_len});
    if (prices.forward_ps > std::numeric_limits<int64_t>::max() / rows) {
      return reader.At(line, "a forward pass costs more than can be shared out");
    }
    if (ns <= kMaxStepNs) return absl::OkStatus();
    return reader.At(line, absl::StrCat("a full step would be predicted at ", ns / 1'000'000,
                                        " ms; the limit is ", kMaxStepNs / 1'000'000));
  }

  absl::Status CheckAllPrices(int64_t line) const {
    for (size_t m = 0; m < prices_.size(); ++m) {
      RETURN_IF_ERROR(CheckPrices(reader_, line, options_, options_.models[m], prices_[m],
                                  longest_context_, longest_cross_));
    }
    return absl::OkStatus();
  }

  absl::Status Known(const TraceEvent& event) const {
    if (jobs_.contains(event.job)) return absl::OkStatus();
    return reader_.At(event.line, absl::StrCat("job ", event.job, " is not there"));
  }

  void Mismatch(int64_t line, std::string what, std::string recorded, std::string replayed) {
    ++report_.mismatches;
    if (report_.first_mismatch) return;
    report_.first_mismatch = {line, std::move(what), std::move(recorded), std::move(replayed)};
  }

  // "job 16777216 (gen-7)"
  std::string Name(JobId recorded) const {
    const auto found = jobs_.find(recorded);
    const bool known = found != jobs_.end() && !found->second.request.empty();
    return absl::StrCat("job ", recorded, known ? " (" + found->second.request + ")" : "");
  }

  std::string Show(const std::vector<PlanItem>& items) const {
    std::string text = absl::StrCat(items.size(), items.size() == 1 ? " item" : " items");
    for (size_t i = 0; i < items.size() && i < kShownItems; ++i) {
      const PlanItem& item = items[i];
      absl::StrAppend(&text, i == 0 ? ": " : ", ", std::string(WorkKindName(item.kind)), " ",
                      item.amount, " of ", Name(item.job));
      if (item.kind == WorkKind::kEncode) absl::StrAppend(&text, " in slot ", item.encoder_slot);
    }
    if (items.size() > kShownItems) text += ", ...";
    return text;
  }

  std::string Show(const std::vector<JobId>& jobs) const {
    if (jobs.empty()) return "nobody";
    std::string text;
    for (size_t i = 0; i < jobs.size() && i < kShownItems; ++i) {
      absl::StrAppend(&text, i == 0 ? "" : ", ", Name(jobs[i]));
    }
    if (jobs.size() > kShownItems) text += ", ...";
    return text;
  }

  // The name the trace has for a job, 0 if it has none.
  JobId Recorded(JobId replayed) const {
    const auto found = recorded_.find(replayed);
    return found == recorded_.end() ? 0 : found->second;
  }

  absl::Status Add(const TraceEvent& event) {
    const JobSpec& spec = event.spec;
    if (spec.model >= static_cast<int32_t>(options_.models.size())) {
      return reader_.At(event.line, absl::StrCat("there is no model ", spec.model));
    }
    if (spec.tenant >= static_cast<int32_t>(options_.tenants.size())) {
      return reader_.At(event.line, absl::StrCat("there is no tenant ", spec.tenant));
    }
    longest_context_ = std::max({longest_context_, spec.max_context, spec.prefill_tokens});
    longest_cross_ = std::max(longest_cross_, spec.cross_len);
    RETURN_IF_ERROR(CheckAllPrices(event.line));
    const SchedulerModel& model = options_.models[spec.model];
    const int64_t worst = spec.fixed_blocks + spec.rows * (spec.max_context / model.block_size + 1);
    if (worst > std::numeric_limits<int32_t>::max()) {
      return reader_.At(event.line, absl::StrCat("the job needs ", worst, " blocks at worst"));
    }
    const int64_t n = spec.prefill_tokens;
    const int64_t fill_ns =
        PriceNs(prices_[spec.model], {.encode_units = spec.encode_units,
                                      .forwards = n / options_.max_batch_tokens + 1,
                                      .prefill_tokens = n,
                                      .prefill_context = n * (n + 1) / 2,
                                      .cross_positions = n * spec.cross_len});
    if (fill_ns > kMaxBacklogNs - backlog_ns_) {
      return reader_.At(event.line, "more work in line than can be added up");
    }
    const bool accepted = event.kind == TraceEvent::Kind::kAdd;
    if (accepted && jobs_.contains(event.job)) {
      return reader_.At(event.line, absl::StrCat("job ", event.job, " is there already"));
    }
    const absl::StatusOr<JobId> id = scheduler_.Add(spec, event.now_us);
    accepted ? ++report_.jobs : ++report_.refusals;
    if (accepted != id.ok()) {
      const std::string told = id.ok() ? "accepted" : std::string(id.status().message());
      Mismatch(event.line,
               absl::StrCat("request ", event.request, event.request.empty() ? "at " : " at ",
                            event.now_us, " us"),
               accepted ? "accepted" : "refused", told);
      if (id.ok()) scheduler_.Remove(*id);
    } else if (accepted && *id != event.job) {
      Mismatch(event.line, "name of a job", absl::StrCat(event.job), absl::StrCat(*id));
    }
    if (!accepted) return absl::OkStatus();
    Job& job = jobs_[event.job];
    job = {
        .replayed = id.ok() ? *id : 0, .request = event.request, .spec = spec, .fill_ns = fill_ns};
    backlog_ns_ += fill_ns;
    worst_blocks_ = std::max(worst_blocks_, worst);
    if (job.replayed) recorded_[job.replayed] = event.job;
    return absl::OkStatus();
  }

  absl::Status Remove(const TraceEvent& event) {
    RETURN_IF_ERROR(Known(event));
    const Job job = jobs_[event.job];
    jobs_.erase(event.job);
    backlog_ns_ -= job.fill_ns;
    if (job.replayed == 0) return absl::OkStatus();
    planned_ = planned_ && !job.running;
    recorded_.erase(job.replayed);
    scheduler_.Remove(job.replayed);
    return absl::OkStatus();
  }

  void Admit() {
    std::vector<JobId> admitted;
    for (const JobId id : scheduler_.Admit(admit_us_)) {
      admitted.push_back(Recorded(id));
      if (const auto job = jobs_.find(admitted.back()); job != jobs_.end()) {
        job->second.running = true;
      }
    }
    report_.admissions += static_cast<int64_t>(admits_.size());
    if (admitted != admits_) {
      Mismatch(admit_line_, absl::StrCat("admission at ", admit_us_, " us"), Show(admits_),
               Show(admitted));
    }
    admits_.clear();
  }

  absl::Status SetWork(const TraceEvent& event) {
    RETURN_IF_ERROR(Known(event));
    const Job& job = jobs_[event.job];
    const JobWork& work = event.work;
    const auto wrong = [&](const char* what) { return reader_.At(event.line, what); };
    if (IsWork(work.kind) && work.amount < 1) return wrong("work of no amount");
    if (work.kind == WorkKind::kDecode && work.amount > job.spec.rows) {
      return wrong("the job decodes more rows than it has");
    }
    if (work.tables > job.spec.rows) return wrong("the job has more tables than rows");
    if (work.context > job.spec.max_context) return wrong("the job has come to too many tokens");
    if (work.kind == WorkKind::kPrefill && work.amount > job.spec.max_context - work.context) {
      return wrong("the job will come to too many tokens");
    }
    if (!job.running) {
      Mismatch(event.line, "work of " + Name(event.job), "admitted",
               job.replayed ? "waits" : "refused");
      return absl::OkStatus();
    }
    if (planned_ && in_plan_.contains(job.replayed)) {
      return wrong("the job's work changes between its plan and the plan's end");
    }
    scheduler_.SetWork(job.replayed, work);
    return absl::OkStatus();
  }

  absl::Status SetPrices(const TraceEvent& event) {
    if (event.model >= static_cast<int32_t>(prices_.size())) {
      return reader_.At(event.line, absl::StrCat("there is no model ", event.model));
    }
    prices_[event.model] = event.prices;
    RETURN_IF_ERROR(CheckAllPrices(event.line));
    scheduler_.SetPrices(event.model, event.prices);
    return absl::OkStatus();
  }

  absl::Status Schedule(const TraceEvent& event) {
    std::vector<JobId> preempted;
    const auto start = Clock::now();
    plan_us_ = event.now_us;
    const StepPlan& plan = scheduler_.Schedule(event.now_us, [&](JobId id) {
      preempted.push_back(Recorded(id));
      if (const auto job = jobs_.find(preempted.back()); job != jobs_.end()) {
        job->second.running = false;
      }
    });
    host_ += Clock::now() - start;
    ++report_.plans;
    report_.preemptions += static_cast<int64_t>(preempts_.size());
    if (preempted != preempts_) {
      Mismatch(preempts_.empty() ? event.line : preempt_line_, "preemption", Show(preempts_),
               Show(preempted));
    }
    preempts_.clear();

    items_ = plan.items;
    in_plan_.clear();
    for (PlanItem& item : items_) {
      in_plan_.insert(item.job);
      item.job = Recorded(item.job);
    }
    report_.items += static_cast<int64_t>(items_.size());
    const std::string what = absl::StrCat("plan at ", event.now_us, " us");
    if (items_ != event.plan.items) {
      Mismatch(event.line, what, Show(event.plan.items), Show(items_));
    } else if (plan.predicted_ns != event.plan.predicted_ns ||
               plan.decode_ns != event.plan.decode_ns) {
      const auto show = [](const StepPlan& p) {
        return absl::StrCat("predicted ", p.predicted_ns, " ns, decodes ", p.decode_ns, " ns");
      };
      Mismatch(event.line, what, show(event.plan), show(plan));
    }
    predicted_ns_ = plan.predicted_ns;
    planned_ = true;
    return absl::OkStatus();
  }

  // Of the scheduler's clock; a job's blocks times it must be a number.
  absl::Status TellTime(int64_t line, int64_t us) {
    clock_us_ = std::max(clock_us_, us);
    if (clock_us_ > kMaxBlockNs / 1000 / std::max<int64_t>(worst_blocks_, 1)) {
      return reader_.At(line, "it takes longer than can be added up");
    }
    return absl::OkStatus();
  }

  absl::Status Commit(const TraceEvent& event) {
    if (!planned_) {
      return reader_.At(event.line, "a step ends without a plan, or after its jobs were removed");
    }
    total_ns_ += predicted_ns_;
    if (total_ns_ > kMaxTotalNs) {
      return reader_.At(event.line, "the steps take longer than can be added up");
    }
    RETURN_IF_ERROR(TellTime(event.line, plan_us_ + event.elapsed_us));
    const auto start = Clock::now();
    scheduler_.Commit(event.elapsed_us);
    host_ += Clock::now() - start;
    planned_ = false;
    ++report_.steps;
    if (event.elapsed_us > 0 && predicted_ns_ > 0) {
      const double recorded = static_cast<double>(event.elapsed_us) * 1000;
      step_errors_.push_back(std::abs(static_cast<double>(predicted_ns_) - recorded) / recorded);
      report_.predicted_us += predicted_ns_ / 1000;
      report_.recorded_us += event.elapsed_us;
    }
    return absl::OkStatus();
  }

  const TraceReader& reader_;
  const SchedulerOptions options_;
  BlockAllocator blocks_;
  Scheduler scheduler_;
  std::vector<Prices> prices_;  // by model, today's

  absl::flat_hash_map<JobId, Job> jobs_;        // by the trace's name
  absl::flat_hash_map<JobId, JobId> recorded_;  // the trace's name, by this scheduler's
  std::vector<JobId> admits_, preempts_;        // of the decision being read
  int64_t admit_line_ = 0, preempt_line_ = 0, admit_us_ = 0;
  std::vector<PlanItem> items_;
  absl::flat_hash_set<JobId> in_plan_;
  bool planned_ = false;  // Commit may come
  int64_t predicted_ns_ = 0;

  int64_t longest_context_ = 0, longest_cross_ = 0, worst_blocks_ = 0;
  int64_t backlog_ns_ = 0, total_ns_ = 0, clock_us_ = 0, plan_us_ = 0;
  std::vector<double> step_errors_;
  Clock::duration host_{};
  ReplayReport report_;
};

}  // namespace

absl::StatusOr<ReplayReport> Replay(TraceReader& reader,
                                    absl::FunctionRef<void(int64_t, int64_t)> progress) {
  RETURN_IF_ERROR(Replayer::CheckOptions(reader));
  Replayer replayer(reader);
  for (int64_t lines = 0;; ++lines) {
    ASSIGN_OR_RETURN(const TraceEvent* event, reader.Next());
    if (event == nullptr) break;
    RETURN_IF_ERROR(replayer.Handle(*event));
    if (lines % kProgressLines == 0) progress(reader.bytes_read(), reader.bytes_total());
  }
  return replayer.Finish();
}

}  // namespace sensorium
