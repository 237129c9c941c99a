#include "runtime/engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/status_payload.h"
#include "runtime/engine/intake.h"
#include "runtime/engine/job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/step_batch.h"
#include "runtime/kv_cache/block_allocator.h"
#include "runtime/scheduler/scheduler.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

int64_t MicrosSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

// What rings the engine's bell. Shared with the requests' queues, whose readers may outlive it.
class Waker {
 public:
  void Wake() {
    {
      std::lock_guard lock(mu_);
      rung_ = true;
    }
    bell_.notify_one();
  }
  // Waits for a Wake since the last return, at most until `until`.
  void Wait(const std::optional<Deadline>& until) {
    std::unique_lock lock(mu_);
    const auto rung = [&] { return rung_; };
    if (until) {
      bell_.wait_until(lock, *until, rung);
    } else {
      bell_.wait(lock, rung);
    }
    rung_ = false;
  }

 private:
  std::mutex mu_;
  std::condition_variable bell_;
  bool rung_ = false;  // guarded by mu_
};

class EngineImpl : public Engine {
 public:
  EngineImpl(const EngineConfig& config, std::unique_ptr<Backend> backend)
      : config_(config), backend_(std::move(backend)) {}
  ~EngineImpl() override;

  absl::Status Load(const Progress& progress);

  std::shared_ptr<GenerateQueue> Generate(GenerateRequest request) override;
  std::shared_ptr<TranscribeQueue> Transcribe(TranscribeRequest request) override;
  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request) const override;
  std::vector<ModelInfo> ListModels() const override;
  EngineStats Stats() const override;
  std::string device() const override { return backend_->description(); }
  void Drain(Deadline deadline) override;

 private:
  absl::Status TakeMemory();
  // Hands a prepared job to the engine thread.
  void Submit(std::unique_ptr<Job> job, TicketPtr ticket);

  // ---- Engine thread only
  struct Running {
    std::unique_ptr<Job> job;
    TicketPtr ticket;
    bool admitted = false;
  };
  void RunLoop();
  void TakeSubmissions();
  void EndCancelled();
  bool Step();  // false: nothing to do
  void Forward(int32_t model, const std::vector<std::pair<Job*, WorkKind>>& jobs,
               const std::vector<int32_t>& first_rows);
  void Reap();
  void FailAll(const absl::Status& status);
  void PublishStats();

  const EngineConfig config_;
  const std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<LoadedModel>> models_;  // constant after Load

  std::unique_ptr<DeviceBuffer> arena_, workspace_buffer_, logits_buffer_;
  Workspace workspace_;
  int32_t max_logit_rows_ = 0;

  // Engine thread only
  std::unique_ptr<BlockAllocator> blocks_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<JobId, Running> jobs_;
  std::vector<StepBatch> batches_;              // by model
  std::vector<BlockCopy> copies_;  // asked for by the forks of one forward pass
  std::vector<float> host_logits_;
  JobId next_job_ = 1;
  int64_t steps_ = 0;

  const std::shared_ptr<Waker> waker_ = std::make_shared<Waker>();
  mutable std::mutex mu_;
  bool stopping_ = false;  // guarded by mu_, as all below
  bool cancel_all_ = false;
  std::vector<std::pair<std::unique_ptr<Job>, TicketPtr>> submitted_;
  EngineStats stats_;

  std::unique_ptr<Intake> intake_;  // outlives the thread, whose jobs hold tickets
  std::thread thread_;
};

// ---- Start and end ----------------------------------------------------------------------------------

absl::Status EngineImpl::Load(const Progress& progress) {
  if (config_.models.empty()) return absl::InvalidArgumentError("the config names no model");
  for (const ModelConfig& m : config_.models) {
    for (const auto& other : models_) {
      if (other->name == m.name) {
        return absl::InvalidArgumentError(absl::StrCat("two models are called '", m.name, "'"));
      }
    }
    const Clock::time_point start = Clock::now();
    ASSIGN_OR_RETURN(auto model, LoadedModel::Load(m.name, m.path, *backend_,
                                                   [&](size_t done, size_t total) {
                                                     if (progress) progress(m.name, done, total);
                                                   }));
    model->index = static_cast<int32_t>(models_.size());
    spdlog::info("loaded {} ({}, {:.1f} M parameters, {}) in {:.2f} s", m.name, model->info.kind,
                 static_cast<double>(model->info.parameters) / 1e6, model->info.dtype,
                 static_cast<double>(MicrosSince(start)) / 1e6);
    models_.push_back(std::move(model));
  }
  Intake::StepLoop loop{.submit = [this](std::unique_ptr<Job> job,
                                         TicketPtr ticket) { Submit(std::move(job), std::move(ticket)); },
                        .wake = [waker = waker_] { waker->Wake(); },
                        .broken = [this] { return Stats().broken; }};
  ASSIGN_OR_RETURN(intake_, Intake::Create(config_, *backend_, models_, std::move(loop)));
  RETURN_IF_ERROR(TakeMemory());
  thread_ = std::thread([this] { RunLoop(); });
  return absl::OkStatus();
}

// One arena of equal blocks for every kind of KV. The kind with the widest tokens gets block_tokens
// of them in a block; the others as many (in sixteens) as fit.
absl::Status EngineImpl::TakeMemory() {
  if (config_.block_tokens < 16 || config_.block_tokens % 16 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("block_tokens is ", config_.block_tokens,
                                                   ", expected a multiple of 16"));
  }
  std::vector<std::pair<KvCacheView*, KvLayout>> kinds;
  for (const auto& model : models_) {
    kinds.push_back({&model->self_kv, model->SelfLayout()});
    if (model->is_whisper()) kinds.push_back({&model->cross_kv, model->CrossLayout()});
  }
  size_t block_bytes = 0;
  for (auto& [view, layout] : kinds) {
    layout.block_size = config_.block_tokens;
    block_bytes = std::max(block_bytes, backend_->KvBlockBytes(layout));
  }
  const int64_t num_blocks = static_cast<int64_t>(config_.kv_cache_bytes / block_bytes);
  if (num_blocks < 1 || num_blocks > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("kv_cache_bytes is ", config_.kv_cache_bytes,
                                                   "; one block takes ", block_bytes));
  }
  ASSIGN_OR_RETURN(arena_, backend_->Allocate(num_blocks * block_bytes));
  for (auto& [view, layout] : kinds) {
    while (true) {
      KvLayout larger = layout;
      larger.block_size += 16;
      if (backend_->KvBlockBytes(larger) > block_bytes) break;
      layout = larger;
    }
    *view = {.arena = arena_->data(),
             .block_stride_bytes = block_bytes,
             .num_blocks = static_cast<int32_t>(num_blocks),
             .layout = layout};
  }
  size_t workspace_bytes = 0;
  int32_t vocab = 0;
  for (const auto& model : models_) {
    workspace_bytes =
        std::max(workspace_bytes,
                 model->WorkspaceBytes(config_.max_batch_tokens, config_.max_encode_units));
    vocab = std::max(vocab, model->vocab_size());
  }
  ASSIGN_OR_RETURN(workspace_buffer_, backend_->Allocate(workspace_bytes));
  workspace_ = Workspace(workspace_buffer_->data(), workspace_bytes);
  // A decode row asks for one row of logits, the end of a prompt for two at most.
  max_logit_rows_ = 2 * config_.max_batch_seqs;
  ASSIGN_OR_RETURN(logits_buffer_, backend_->Allocate(sizeof(float) * max_logit_rows_ * vocab));
  host_logits_.resize(static_cast<size_t>(max_logit_rows_) * vocab);

  blocks_ = std::make_unique<BlockAllocator>(static_cast<int32_t>(num_blocks));
  scheduler_ = std::make_unique<Scheduler>(
      SchedulerOptions{.max_batch_tokens = config_.max_batch_tokens,
                       .max_batch_seqs = config_.max_batch_seqs,
                       .max_encode_units = config_.max_encode_units,
                       .chaos_seed = config_.chaos_seed},
      *blocks_);
  batches_.resize(models_.size());
  stats_.blocks_total = blocks_->total();
  spdlog::info("{}: {} KV blocks of {} KiB, workspace {} MiB", backend_->description(), num_blocks,
               block_bytes >> 10, workspace_bytes >> 20);
  return absl::OkStatus();
}

EngineImpl::~EngineImpl() {
  if (!thread_.joinable()) return;
  Drain(Clock::now());
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  waker_->Wake();
  thread_.join();
}

void EngineImpl::Drain(Deadline deadline) {
  intake_->StopAccepting();
  if (intake_->WaitUntilEmpty(deadline)) return;
  {
    std::lock_guard lock(mu_);
    cancel_all_ = true;
  }
  intake_->StopPreparing();
  waker_->Wake();
  intake_->WaitUntilEmpty(std::nullopt);
}

// ---- Requests in --------------------------------------------------------------------------------------

std::shared_ptr<GenerateQueue> EngineImpl::Generate(GenerateRequest request) {
  return intake_->Generate(std::move(request));
}

std::shared_ptr<TranscribeQueue> EngineImpl::Transcribe(TranscribeRequest request) {
  return intake_->Transcribe(std::move(request));
}

absl::StatusOr<TokenizeResult> EngineImpl::Tokenize(const TokenizeRequest& request) const {
  return intake_->Tokenize(request);
}

void EngineImpl::Submit(std::unique_ptr<Job> job, TicketPtr ticket) {
  if (!scheduler_->Fits(job->spec())) {  // reads constants only
    job->End(NeverFits(absl::StrCat(
        "the request needs ", job->spec().blocks, " KV blocks and ", job->spec().rows,
        " rows at worst; the server has ", blocks_->total(), " and ",
        std::min(config_.max_batch_seqs, config_.max_batch_tokens))));
    return;
  }
  {
    std::lock_guard lock(mu_);
    submitted_.emplace_back(std::move(job), std::move(ticket));
  }
  waker_->Wake();
}

// ---- The step loop ------------------------------------------------------------------------------------

void EngineImpl::RunLoop() {
  while (true) {
    bool worked = false;
    try {
      TakeSubmissions();
      EndCancelled();
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
      if (stopping_) return;
    }
    // Parked jobs have deadlines too.
    std::optional<Deadline> earliest;
    for (const auto& [id, running] : jobs_) {
      const auto& deadline = running.job->deadline();
      if (deadline && (!earliest || *deadline < *earliest)) earliest = *deadline;
    }
    waker_->Wait(earliest);
  }
}

void EngineImpl::TakeSubmissions() {
  std::vector<std::pair<std::unique_ptr<Job>, TicketPtr>> taken;
  {
    std::lock_guard lock(mu_);
    taken.swap(submitted_);
  }
  for (auto& [job, ticket] : taken) {
    job->set_id(next_job_++);
    scheduler_->Add(job->spec());
    const JobId id = job->spec().id;
    jobs_[id] = {.job = std::move(job), .ticket = std::move(ticket)};
  }
}

void EngineImpl::EndCancelled() {
  bool cancel_all;
  {
    std::lock_guard lock(mu_);
    cancel_all = cancel_all_;
  }
  const Clock::time_point now = Clock::now();
  for (auto& [id, running] : jobs_) {
    Job& job = *running.job;
    if (job.Ended()) continue;
    if (cancel_all) {
      job.End(absl::UnavailableError("the server is shutting down"));
    } else if (job.Cancelled()) {
      job.End(absl::CancelledError("cancelled by the client"));
    } else if (job.deadline() && *job.deadline() <= now) {
      job.End(absl::DeadlineExceededError("the deadline passed"));
    }
  }
  Reap();
}

bool EngineImpl::Step() {
  for (const JobId id : scheduler_->Admit()) {
    Running& running = jobs_.at(id);
    running.admitted = true;
    running.job->Start(*blocks_);
  }
  for (auto& [id, running] : jobs_) {
    if (!running.admitted) continue;
    const Job::Work work = running.job->Pending();
    scheduler_->SetWork(id, work.kind, work.amount);
  }
  const std::vector<PlanItem> items = scheduler_->Schedule();
  if (items.empty()) return false;
  ++steps_;

  // Rows of logits by job, in the order they entered their model's batch.
  std::vector<std::vector<std::pair<Job*, WorkKind>>> by_model(models_.size());
  std::vector<std::vector<int32_t>> first_rows(models_.size());
  for (StepBatch& batch : batches_) batch.Clear();
  for (const PlanItem& item : items) {
    Job& job = *jobs_.at(item.job).job;
    if (item.kind == WorkKind::kEncode) {
      const Clock::time_point start = Clock::now();
      job.RunEncode(item.amount, workspace_);
      job.clock().Add(WorkKind::kEncode, MicrosSince(start));
      continue;
    }
    const int32_t m = job.model().index;
    by_model[m].push_back({&job, item.kind});
    first_rows[m].push_back(batches_[m].logit_rows());
    if (item.kind == WorkKind::kPrefill) {
      job.AddPrefill(item.amount, batches_[m]);
    } else {
      job.AddDecode(batches_[m]);
    }
  }
  for (size_t m = 0; m < models_.size(); ++m) {
    if (!batches_[m].empty()) Forward(static_cast<int32_t>(m), by_model[m], first_rows[m]);
  }
  return true;
}

void EngineImpl::Forward(int32_t m, const std::vector<std::pair<Job*, WorkKind>>& jobs,
                         const std::vector<int32_t>& first_rows) {
  const Clock::time_point start = Clock::now();
  LoadedModel& model = *models_[m];
  StepBatch& batch = batches_[m];
  const int32_t rows = batch.logit_rows();
  const int32_t vocab = model.vocab_size();
  CHECK_LE(rows, max_logit_rows_);
  const TensorView logits(logits_buffer_->data(), DType::kFloat32, {rows, vocab});
  if (model.is_whisper()) {
    model.whisper->Forward(logits, batch.Decoder(), model.self_kv, batch.Cross(), model.cross_kv,
                           workspace_);
  } else {
    model.molmo->llm->Forward(logits, batch.Decoder(), batch.FeatureAdds(), model.self_kv,
                              workspace_);
  }
  const std::span<float> host =
      std::span(host_logits_).first(static_cast<size_t>(rows) * vocab);
  if (rows > 0) backend_->CopyToHost(host, logits);
  const int64_t us = MicrosSince(start);
  for (size_t i = 0; i < jobs.size(); ++i) {
    auto& [job, kind] = jobs[i];
    job->clock().Add(kind, us);
    const int32_t end = i + 1 < jobs.size() ? first_rows[i + 1] : rows;
    job->OnForward(host.subspan(static_cast<size_t>(first_rows[i]) * vocab,
                                static_cast<size_t>(end - first_rows[i]) * vocab),
                   copies_);
  }
  // At once, while the sources still hold what the forks are to have: nothing has been allocated or
  // written since.
  for (const BlockCopy& copy : copies_) backend_->CopyKvBlock(model.self_kv, copy.to, copy.from);
  copies_.clear();
}

void EngineImpl::Reap() {
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    if (it->second.job->Ended()) {
      scheduler_->Remove(it->first);
      it = jobs_.erase(it);
    } else {
      ++it;
    }
  }
}

void EngineImpl::FailAll(const absl::Status& status) {
  {
    std::lock_guard lock(mu_);
    stats_.broken = true;
  }
  for (auto& [id, running] : jobs_) running.job->End(status);
}

void EngineImpl::PublishStats() {
  scheduler_->CheckInvariants();
  std::lock_guard lock(mu_);
  stats_.blocks_used = blocks_->used();
  stats_.blocks_reserved = blocks_->reserved();
  stats_.requests_running = scheduler_->running();
  stats_.requests_waiting = scheduler_->waiting();
  stats_.steps = steps_;
}

EngineStats EngineImpl::Stats() const {
  std::lock_guard lock(mu_);
  EngineStats stats = stats_;
  stats.media_bytes = intake_->media_bytes();
  return stats;
}

// ---- The other calls ----------------------------------------------------------------------------------

std::vector<ModelInfo> EngineImpl::ListModels() const {
  std::vector<ModelInfo> infos;
  for (const auto& model : models_) infos.push_back(model->info);
  return infos;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config,
                                                       std::unique_ptr<Backend> backend,
                                                       Progress progress) {
  auto engine = std::make_unique<EngineImpl>(config, std::move(backend));
  RETURN_IF_ERROR(engine->Load(progress));
  return engine;
}

}  // namespace sensorium
