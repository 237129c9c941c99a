#include "runtime/engine/step_loop.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "runtime/base/check.h"
#include "runtime/base/no_allocation.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/calibration.h"
#include "runtime/engine/forward_pass.h"
#include "runtime/scheduler/price_fields.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace {

using Clock = StepLoop::Clock;

int64_t NanosSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

}  // namespace

void StepLoop::Waker::Wake() {
  {
    std::lock_guard lock(mu_);
    rung_ = true;
  }
  bell_.notify_one();
}

void StepLoop::Waker::Wait(const std::optional<Deadline>& until) {
  std::unique_lock lock(mu_);
  const auto rung = [&] { return rung_; };
  if (until) {
    bell_.wait_until(lock, *until, rung);
  } else {
    bell_.wait(lock, rung);
  }
  rung_ = false;
}

std::function<void()> StepLoop::WakeFunction() const {
  return [waker = waker_] { waker->Wake(); };
}

// ---- Memory
// -------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<StepLoop>> StepLoop::Create(
    const EngineConfig& config, std::vector<TenantOptions> tenants, Backend& backend,
    std::span<const std::unique_ptr<LoadedModel>> models) {
  std::unique_ptr<StepLoop> loop(new StepLoop(config, backend, models));
  RETURN_IF_ERROR(loop->TakeMemory(std::move(tenants)));
  return loop;
}

StepLoop::StepLoop(const EngineConfig& config, Backend& backend,
                   std::span<const std::unique_ptr<LoadedModel>> models)
    : config_(config),
      be_(backend),
      models_(models),
      farewells_{.shutdown = absl::UnavailableError("the server is shutting down"),
                 .cancelled = absl::CancelledError("cancelled by the client"),
                 .deadline = absl::DeadlineExceededError("the deadline passed"),
                 .unread = absl::DeadlineExceededError(absl::StrCat(
                     "the answer was not read for ",
                     absl::FormatDuration(absl::FromChrono(config.reader_timeout))))} {}

absl::Status StepLoop::TakeMemory(std::vector<TenantOptions> tenants) {
  ASSIGN_OR_RETURN(memory_, EngineMemory::Take(config_, be_, models_));
  SchedulerOptions options{.models = {},
                           .tenants = std::move(tenants),
                           .max_batch_tokens = config_.max_batch_tokens,
                           .max_batch_seqs = config_.max_batch_seqs,
                           .max_waiting = config_.max_waiting,
                           .encoder_slots = config_.encoder_slots,
                           .target_step_us = config_.target_step_us,
                           .starvation_us = config_.starvation_us,
                           .optimistic = config_.optimistic_admission,
                           .chaos_seed = config_.chaos_seed};
  steps_.resize(models_.size());
  for (const auto& model : models_) {
    Prices prices = GuessPrices(*model);
    ForEachPrice(prices, [&](const char*, int64_t& ps, int64_t, int64_t) {
      ps = std::llround(static_cast<double>(ps) * config_.first_prices);
    });
    costs_.emplace_back(prices);
  }
  TakeStepMemory();
  if (config_.calibrate) Calibrate();
  for (size_t m = 0; m < models_.size(); ++m) {
    const LoadedModel& model = *models_[m];
    options.models.push_back(
        {.block_size = model.self_kv.layout.block_size,
         // A window's stages may all be run in one call; crops share the workspace.
         .max_encode_units = model.is_whisper() ? model.UnitsPerWindow() : config_.max_encode_units,
         .feature_slots = model.is_whisper() ? 0 : model.feature_cache->total(),
         .prices = costs_[m].prices()});
  }
  if (!config_.trace_path.empty()) {
    ASSIGN_OR_RETURN(
        trace_, TraceWriter::Open(config_.trace_path,
                                  {.options = options, .num_blocks = memory_.blocks->total()}));
  }
  scheduler_ = std::make_unique<Scheduler>(options, *memory_.blocks, trace_.get());
  stats_.blocks_total = memory_.blocks->total();
  spdlog::info("{}: {} KV blocks of {} KiB, workspace {} MiB", be_.description(),
               memory_.blocks->total(), memory_.block_bytes >> 10,
               memory_.workspace_buffer->size_bytes() >> 20);
  for (const auto& model : models_) {
    if (model->is_whisper()) continue;
    spdlog::info("{}: image cache of {} pictures of {} KiB, {:.1f} MiB", model->name,
                 model->feature_cache->total(), model->FeatureSlotBytes() >> 10,
                 static_cast<double>(model->feature_arena->size_bytes()) / (1 << 20));
  }
  return absl::OkStatus();
}

// The most that any step may hold, so that no step asks for more: the batches' arrays, and what the
// backend works in, by a rehearsal of the largest passes there are.
void StepLoop::TakeStepMemory() {
  const int32_t tokens = config_.max_batch_tokens;
  const int32_t seqs = config_.max_batch_seqs;
  be_.ReserveStep(
      {.seqs = seqs, .tokens = tokens, .choices = 2 * seqs * static_cast<int32_t>(models_.size())});
  for (size_t m = 0; m < models_.size(); ++m) {
    LoadedModel& model = *models_[m];
    int32_t blocks = BlockTable::BlocksFor(model.max_positions(), model.self_kv.layout.block_size);
    if (model.is_whisper()) {
      blocks = std::max(blocks, BlockTable::BlocksFor(model.whisper->config().audio_positions,
                                                      model.cross_kv.layout.block_size));
    }
    steps_[m].batch.Reserve(seqs, tokens, blocks);
    steps_[m].entries.reserve(seqs);
    // A row in the plan chooses once, and a window's first pass asks for one thing more.
    const size_t choices = 2 * static_cast<size_t>(seqs);
    const size_t asked = model.is_whisper() ? model.vocabulary->languages.size() + 1 : 0;
    steps_[m].chosen.Reserve(choices, choices * TokenChoice::kMostLikeliest, choices * asked);
    model.TakeStepMemory(config_.max_batch_seqs);
    Rehearse(model, memory_.SpaceForTrials(config_, be_), config_.max_encode_units);
  }
  copies_.reserve(seqs);
  encodes_.reserve(seqs);
  be_.ReserveMarks(2 * (seqs + static_cast<int32_t>(models_.size())));
}

void StepLoop::Calibrate() {
  for (size_t m = 0; m < models_.size(); ++m) {
    const Clock::time_point start = Clock::now();
    const std::vector<Sample> samples =
        MeasureModel(*models_[m], memory_.SpaceForTrials(config_, be_));
    costs_[m].Fit(samples);
    const Prices& p = costs_[m].prices();
    spdlog::info(
        "{}: measured in {:.2f} s: pass {:.2f} ms, prefill {:.1f} us a token, decode {:.1f} us a "
        "row, encode {:.2f} ms a {}",
        models_[m]->name, static_cast<double>(NanosSince(start)) / 1e9,
        static_cast<double>(p.forward_ps) / 1e9, static_cast<double>(p.prefill_token_ps) / 1e6,
        static_cast<double>(p.decode_row_ps) / 1e6, static_cast<double>(p.encode_unit_ps) / 1e9,
        models_[m]->is_whisper() ? "stage" : "crop");
  }
}

// ---- The thread
// ---------------------------------------------------------------------------------------

void StepLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

StepLoop::~StepLoop() {
  if (thread_.joinable()) {
    {
      std::lock_guard lock(mu_);
      stopping_ = cancel_all_ = true;
    }
    waker_->Wake();
    thread_.join();
  }
  jobs_.clear();
  if (trace_) {
    if (const absl::Status status = trace_->Close(); !status.ok()) {
      spdlog::error("the trace is not whole: {}", std::string(status.message()));
    }
  }
}

void StepLoop::Submit(std::unique_ptr<Job> job, int32_t tenant, Ticket ticket) {
  job->Attach(
      {.blocks = memory_.blocks.get(),
       .cache = memory_.cache.get(),
       .publisher = &publisher_,
       .preempts = config_.optimistic_admission});
  Jobs maker;  // of a place that the engine's thread need not make
  maker[0] = {.job = std::move(job), .ticket = std::move(ticket)};
  {
    std::lock_guard lock(mu_);
    submitted_.push_back({.place = maker.extract(0), .tenant = tenant});
  }
  waker_->Wake();
}

void StepLoop::CancelAll() {
  {
    std::lock_guard lock(mu_);
    cancel_all_ = true;
  }
  waker_->Wake();
}

int64_t StepLoop::Now() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count();
}

void StepLoop::Run() {
  while (true) {
    bool worked = false;
    try {
      TakeSubmissions();
      EndCancelled();
      Reap();
      worked = Step();
    } catch (const std::exception& e) {  // the device broke: nothing more can be computed
      spdlog::critical("the device failed: {}", e.what());
      FailAll(absl::UnavailableError(absl::StrCat("the device failed: ", e.what())));
    }
    Reap();
    PublishStats();
    if (worked) continue;
    {
      std::lock_guard lock(mu_);
      if (stopping_ && submitted_.empty()) return;
    }
    // Parked jobs have deadlines too.
    std::optional<Deadline> earliest;
    for (const auto& [id, running] : jobs_) {
      const std::optional<Deadline> last = LastMoment(running);
      if (last && (!earliest || *last < *earliest)) earliest = *last;
    }
    waker_->Wait(earliest);
  }
}

void StepLoop::TakeSubmissions() {
  std::vector<Submitted> taken;
  {
    std::lock_guard lock(mu_);
    taken.swap(submitted_);
  }
  for (Submitted& submitted : taken) TakeIn(std::move(submitted));
}

void StepLoop::TakeIn(Submitted submitted) {
  Job& job = *submitted.place.mapped().job;
  if (job.Cancelled()) return job.End(farewells_.cancelled);
  JobSpec spec = job.spec();
  spec.tenant = submitted.tenant;
  const int64_t now = Now();
  if (job.deadline()) {
    spec.deadline_us =
        std::chrono::duration_cast<std::chrono::microseconds>(*job.deadline() - start_).count();
  }
  const int64_t expected = models_[spec.model]->expected_tokens;
  if (expected > 0 && !models_[spec.model]->is_whisper()) {
    spec.decode_tokens = std::min(spec.decode_tokens, expected);
  }
  spec.expected_context = spec.prefill_tokens + spec.decode_tokens;
  {
    const NoAllocationScope scope;
    job.Foresee(spec);
    job.clock().Predicted(scheduler_->Predict(spec).end_us);
  }
  // Not inside the mark: a refusal's text takes memory.
  absl::StatusOr<JobId> id = scheduler_->Add(spec, now, job.request_id());
  if (!id.ok()) return job.End(std::move(id).status());
  const NoAllocationScope scope;
  submitted.place.key() = *id;
  CHECK(jobs_.insert(std::move(submitted.place)).inserted);
}

void StepLoop::EndCancelled() {
  const NoAllocationScope scope;
  bool cancel_all;
  {
    std::lock_guard lock(mu_);
    cancel_all = cancel_all_;
  }
  const Clock::time_point now = Clock::now();
  for (auto& [id, running] : jobs_) {
    Job& job = *running.job;
    if (job.Ended() || running.in_step) continue;
    if (cancel_all) {
      End(id, job, farewells_.shutdown);
    } else if (job.Cancelled()) {
      End(id, job, farewells_.cancelled);
    } else if (job.deadline() && *job.deadline() <= now) {
      End(id, job, farewells_.deadline);
    } else if (const auto last = LastMoment(running); last && *last <= now) {
      End(id, job, farewells_.unread);
    }
  }
}

// Early: with all that it has cost so far.
void StepLoop::End(JobId id, Job& job, const absl::Status& status) {
  job.clock().Charged(scheduler_->cost(id, Now()));
  job.End(status);
}

bool StepLoop::Step() {
  const Planned planned = PlanAndQueue();
  if (planned != Planned::kQueued) return planned == Planned::kOnlyEnds;
  // The device works, and its tokens are copied back behind that. Meanwhile the next step is
  // prepared: who comes is taken in, who finds room starts from what the caches have. Of the jobs
  // that the scheduler has admitted none may go before its Commit: who is ended here is reaped
  // behind the step.
  TakeSubmissions();
  EndCancelled();
  AdmitWaiting();
  Finish();
  return true;
}

void StepLoop::AdmitWaiting() {
  const NoAllocationScope scope;
  for (const JobId id : scheduler_->Admit(Now())) {
    Running& running = jobs_.at(id);
    running.admitted = true;
    // Who ended while the device works is in line until it is reaped, behind the step.
    if (!running.job->Ended()) running.job->Start();
  }
}

StepLoop::Planned StepLoop::PlanAndQueue() {
  const NoAllocationScope scope;
  bool ended = false;
  for (auto& [id, running] : jobs_) ended |= running.job->Poll();
  AdmitWaiting();  // those for whom the last step's ends have made room
  for (auto& [id, running] : jobs_) {
    if (!running.admitted) continue;
    running.job->Poll();  // it may have been admitted just now
    TellWork(id, running);
  }
  bool preempted = false;
  const StepPlan& plan = scheduler_->Schedule(Now(), [&](JobId id) {
    Running& running = jobs_.at(id);
    running.job->Preempt();
    running.admitted = false;
    running.parked_since.reset();
    preempted = true;
  });
  if (plan.items.empty()) return preempted || ended ? Planned::kOnlyEnds : Planned::kNothing;
  ++num_steps_;

  step_start_ = Clock::now();
  marks_taken_ = 0;
  encodes_.clear();
  for (ModelStep& step : steps_) {
    step.batch.Clear();
    step.entries.clear();
    step.work = {};
  }
  for (const PlanItem& item : plan.items) {
    Running& running = jobs_.at(item.job);
    running.in_step = true;
    Job& job = *running.job;
    if (item.kind == WorkKind::kEncode) {
      Encode(item, job);
    } else {
      AddToBatch(item, job);
    }
  }
  const int32_t num_models = static_cast<int32_t>(models_.size());
  for (int32_t m = 0; m < num_models; ++m) {
    if (!steps_[m].batch.empty()) Forward(m);
  }
  return Planned::kQueued;
}

void StepLoop::Finish() {
  const NoAllocationScope scope;
  for (auto& [id, running] : jobs_) {
    if (!running.in_step) running.job->Poll();
  }
  be_.Wait();
  Measure();
  scheduler_->Commit(NanosSince(step_start_) / 1000);
  for (auto& [id, running] : jobs_) running.in_step = false;
  for (int32_t m = 0; m < static_cast<int32_t>(models_.size()); ++m) Publish(m);
}

int32_t StepLoop::TakeMarks() {
  const int32_t mark = std::exchange(marks_taken_, marks_taken_ + 2);
  be_.Mark(mark);
  return mark;
}

void StepLoop::TellWork(JobId id, Running& running) {
  const JobWork work = running.job->Pending();
  if (work.kind != WorkKind::kParked) {
    running.parked_since.reset();
  } else if (!running.parked_since) {
    running.parked_since = Clock::now();
  }
  scheduler_->SetWork(id, work);
}

std::optional<Deadline> StepLoop::LastMoment(const Running& running) const {
  std::optional<Deadline> last = running.job->deadline();
  if (config_.reader_timeout > std::chrono::milliseconds(0) && running.parked_since) {
    const Deadline readers = *running.parked_since + config_.reader_timeout;
    if (!last || readers < *last) last = readers;
  }
  return last;
}

void StepLoop::Encode(const PlanItem& item, Job& job) {
  const EncodeStep step = {.job = &job, .units = item.amount, .mark = TakeMarks()};
  job.RunEncode(item.amount, memory_.EncoderState(item.encoder_slot), memory_.workspace);
  be_.Mark(step.mark + 1);
  encodes_.push_back(step);
}

void StepLoop::AddToBatch(const PlanItem& item, Job& job) {
  ModelStep& step = steps_[job.model().index];
  step.entries.push_back({.id = item.job,
                          .job = &job,
                          .kind = item.kind,
                          .first_choice = step.batch.choices().size()});
  const JobWork work = job.Pending();
  const int64_t n = item.amount, cross = job.spec().cross_len;
  step.work.forwards = 1;
  step.work.cross_positions += n * cross;
  if (item.kind == WorkKind::kPrefill) {
    step.work.prefill_tokens += n;
    step.work.prefill_context += n * work.context + n * (n + 1) / 2;
    job.AddPrefill(item.amount, step.batch);
  } else {
    step.work.decode_rows += n;
    step.work.decode_context += n * (work.context + 1);
    job.AddDecode(step.batch);
  }
}

void StepLoop::Forward(int32_t m) {
  LoadedModel& model = *models_[m];
  ModelStep& step = steps_[m];
  step.mark = TakeMarks();
  const int32_t rows = step.batch.logit_rows();
  CHECK_LE(rows, memory_.max_logit_rows);
  const TensorView logits = RunForward(
      be_, model, step.batch, {.logits = memory_.logits->data(), .workspace = memory_.workspace});
  be_.ChooseTokens(step.chosen, logits, step.batch.choices());
  be_.Mark(step.mark + 1);
}

// The device's own times: from one mark to the next, whatever the host did meanwhile.
void StepLoop::Measure() {
  for (const EncodeStep& step : encodes_) {
    const int64_t ns = be_.NanosBetween(step.mark, step.mark + 1);
    step.job->clock().Add(WorkKind::kEncode, ns / 1000);
    Observe(step.job->model().index, {.encode_units = step.units}, ns);
  }
  for (int32_t m = 0; m < static_cast<int32_t>(models_.size()); ++m) {
    const ModelStep& step = steps_[m];
    if (step.batch.empty()) continue;
    const int64_t ns = be_.NanosBetween(step.mark, step.mark + 1);
    for (const auto& entry : step.entries) entry.job->clock().Add(entry.kind, ns / 1000);
    Observe(m, step.work, ns);
  }
}

// What comes of the tokens. The step is charged by now, so that an answer that ends here knows its
// whole cost.
void StepLoop::Publish(int32_t m) {
  const ModelStep& step = steps_[m];
  if (step.batch.empty()) return;
  for (size_t i = 0; i < step.entries.size(); ++i) {
    const auto& entry = step.entries[i];
    const size_t end = i + 1 < step.entries.size() ? step.entries[i + 1].first_choice
                                                   : step.batch.choices().size();
    entry.job->clock().Charged(scheduler_->cost(entry.id, Now()));
    entry.job->OnForward(step.chosen.all().subspan(entry.first_choice, end - entry.first_choice),
                         copies_);
  }
  // Before any table grows, while the sources still hold what the forks are to have.
  for (const BlockCopy& copy : copies_) be_.CopyKvBlock(models_[m]->self_kv, copy.to, copy.from);
  copies_.clear();
}

void StepLoop::Observe(int32_t m, const Work& work, int64_t ns) {
  costs_[m].Observe(work, ns);
  scheduler_->SetPrices(m, costs_[m].prices());
}

void StepLoop::Reap() {
  const NoAllocationScope scope;
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    if (it->second.job->Ended()) {
      scheduler_->Remove(it->first);
      it = jobs_.erase(it);
    } else {
      ++it;
    }
  }
}

void StepLoop::FailAll(const absl::Status& status) {
  {
    std::lock_guard lock(mu_);
    stats_.broken = true;
  }
  for (auto& [id, running] : jobs_) End(id, *running.job, status);
}

// Owned is what is used: what jobs hold is what allocator and slots have given out. So a block that
// nobody will give back is found in the step that lost it.
void StepLoop::CheckInvariants() const {
  scheduler_->CheckInvariants();
  int64_t blocks = 0;
  for (const auto& [id, running] : jobs_) blocks += running.job->BlocksHeld();
  CHECK_EQ(blocks, memory_.blocks->references()) << "KV blocks that jobs hold, and that are held";
  for (const auto& model : models_) {
    if (!model->feature_cache) continue;
    int64_t holds = 0;
    for (const auto& [id, running] : jobs_) {
      if (&running.job->model() == model.get()) holds += running.job->FeaturesHeld();
    }
    CHECK_EQ(holds, model->feature_cache->holds())
        << "image slots that jobs hold, and that are held";
    model->feature_cache->CheckInvariants();
  }
}

void StepLoop::PublishStats() {
  const NoAllocationScope scope;
  CheckInvariants();
  const BlockCacheStats prefix = memory_.cache->stats(CacheClass::kPrefix);
  const BlockCacheStats audio = memory_.cache->stats(CacheClass::kEncoder);
  std::lock_guard lock(mu_);
  stats_.blocks_used = memory_.blocks->used();
  stats_.blocks_reserved = memory_.blocks->reserved();
  stats_.requests_running = scheduler_->running();
  stats_.requests_waiting = scheduler_->waiting();
  stats_.steps = num_steps_;
  stats_.preemptions = scheduler_->preemptions();
  stats_.prefix_hit_blocks = prefix.hits;
  stats_.prefix_miss_blocks = prefix.misses;
  stats_.audio_hit_blocks = audio.hits;
  stats_.audio_miss_blocks = audio.misses;
  stats_.image_hits = stats_.image_misses = 0;
  for (const auto& model : models_) {
    if (!model->feature_cache) continue;
    stats_.image_hits += model->feature_cache->stats().hits;
    stats_.image_misses += model->feature_cache->stats().misses;
  }
}

EngineStats StepLoop::Stats() const {
  std::lock_guard lock(mu_);
  return stats_;
}

}  // namespace sensorium
