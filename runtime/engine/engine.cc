#include "runtime/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/generate_job.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/preparation.h"
#include "runtime/engine/task_pool.h"
#include "runtime/engine/step_batch.h"
#include "runtime/engine/transcribe_job.h"
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
      : config_(config), backend_(std::move(backend)), media_budget_(config.max_media_bytes) {}
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
  // A request's place in the count of accepted requests; gives it back when it goes.
  struct Ticket {
    explicit Ticket(EngineImpl& e) : engine(e) {}
    ~Ticket() { engine.Leave(); }
    EngineImpl& engine;
  };
  using TicketPtr = std::shared_ptr<Ticket>;

  absl::Status TakeMemory();
  absl::StatusOr<TicketPtr> Enter();
  void Leave();
  absl::StatusOr<LoadedModel*> FindModel(const std::string& name, bool whisper) const;
  std::string NextRequestId(const char* kind);

  // Spoken parts first, one behind the other; then the prompt. Runs on the preparation threads.
  struct PendingGenerate;
  void TranscribeNextPart(std::shared_ptr<PendingGenerate> pending);
  void TakeHeard(std::shared_ptr<PendingGenerate> pending,
                 const std::shared_ptr<TranscribeQueue>& hearing);
  void FinishGenerate(std::shared_ptr<PendingGenerate> pending);
  absl::Status SubmitTranscribe(LoadedModel& model, TranscribeRequest request,
                                std::shared_ptr<TranscribeQueue> queue, TicketPtr ticket,
                                const std::string& request_id, Clock::time_point submitted,
                                std::function<bool()> also_cancelled);
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
  LoadedModel* speech_model_ = nullptr;
  mutable MediaBudget media_budget_;

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
  std::condition_variable idle_;
  bool stopping_ = false;  // guarded by mu_, as all below
  bool draining_ = false;
  bool cancel_all_ = false;
  std::vector<std::pair<std::unique_ptr<Job>, TicketPtr>> submitted_;
  int32_t accepted_ = 0;  // requests that hold a ticket
  EngineStats stats_;
  std::atomic<int64_t> next_request_{1};

  std::unique_ptr<TaskPool> preparation_;
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
  if (!config_.speech_model.empty()) {
    ASSIGN_OR_RETURN(speech_model_, FindModel(config_.speech_model, /*whisper=*/true));
  } else if (auto found = FindModel("", /*whisper=*/true); found.ok()) {
    speech_model_ = *found;
  }
  RETURN_IF_ERROR(TakeMemory());
  preparation_ = std::make_unique<TaskPool>(std::max(1, config_.preparation_threads));
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
  preparation_.reset();
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
  }
  waker_->Wake();
  thread_.join();
}

void EngineImpl::Drain(Deadline deadline) {
  std::unique_lock lock(mu_);
  draining_ = true;
  const auto all_gone = [&] { return accepted_ == 0; };
  if (idle_.wait_until(lock, deadline, all_gone)) return;
  cancel_all_ = true;
  waker_->Wake();
  idle_.wait(lock, all_gone);
}

// ---- Requests in --------------------------------------------------------------------------------------

absl::StatusOr<EngineImpl::TicketPtr> EngineImpl::Enter() {
  std::lock_guard lock(mu_);
  if (stats_.broken) return absl::UnavailableError("the device failed; the server is ending");
  if (draining_) return absl::UnavailableError("the server is draining");
  const int32_t limit = config_.max_waiting + config_.max_batch_seqs;
  if (accepted_ >= limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat(accepted_, " requests run or wait; the limit is ", limit));
  }
  ++accepted_;
  return std::make_shared<Ticket>(*this);
}

void EngineImpl::Leave() {
  std::lock_guard lock(mu_);
  if (--accepted_ == 0) idle_.notify_all();
}

std::string EngineImpl::NextRequestId(const char* kind) {
  return absl::StrCat(kind, "-", next_request_.fetch_add(1));
}

absl::StatusOr<LoadedModel*> EngineImpl::FindModel(const std::string& name, bool whisper) const {
  const char* does = whisper ? "transcribes" : "generates";
  LoadedModel* found = nullptr;
  std::string names;
  for (const auto& model : models_) {
    if (model->is_whisper() == whisper) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", model->name);
      if (model->name == name) return model.get();
      if (name.empty()) {
        if (found) {
          return absl::InvalidArgumentError(
              absl::StrCat("several models are served: say which one ", does));
        }
        found = model.get();
      }
    } else if (model->name == name) {
      return absl::InvalidArgumentError(absl::StrCat("model '", name, "' is a ",
                                                     model->info.kind, ": it does not ",
                                                     whisper ? "transcribe" : "generate"));
    }
  }
  if (found) return found;
  return absl::NotFoundError(name.empty() ? absl::StrCat("no model here ", does)
                                          : absl::StrCat("no model '", name, "' ", does,
                                                         " here; there is: ", names));
}

struct EngineImpl::PendingGenerate {
  LoadedModel* model;
  GenerateRequest request;
  std::string request_id;
  std::shared_ptr<GenerateQueue> queue;
  TicketPtr ticket;
  Clock::time_point submitted;
  std::vector<Part*> spoken;  // audio parts of request
  std::vector<std::string> heard;
  int64_t audio_ms = 0;
  std::mutex mu;             // two preparation threads may take events of one part
  std::string hearing_text;  // of the part in progress
};

std::shared_ptr<GenerateQueue> EngineImpl::Generate(GenerateRequest request) {
  auto queue = std::make_shared<GenerateQueue>(config_.event_queue_limit);
  const auto refuse = [&](const absl::Status& status) {
    queue->Push(StreamEnd{status});
    return queue;
  };
  const auto model = FindModel(request.model, /*whisper=*/false);
  if (!model.ok()) return refuse(model.status());
  if (request.max_tokens > config_.max_tokens_limit) {
    return refuse(absl::InvalidArgumentError(absl::StrCat(
        "max_tokens is ", request.max_tokens, "; the limit is ", config_.max_tokens_limit)));
  }
  auto pending = std::make_shared<PendingGenerate>();
  pending->model = *model;
  pending->request = std::move(request);
  pending->queue = queue;
  pending->submitted = Clock::now();
  for (Message& message : pending->request.messages) {
    for (Part& part : message.parts) {
      if (part.kind == Part::Kind::kAudio) pending->spoken.push_back(&part);
    }
  }
  if (!pending->spoken.empty() && !speech_model_) {
    return refuse(absl::InvalidArgumentError(
        "the request has a spoken part and no speech model is served"));
  }
  auto ticket = Enter();
  if (!ticket.ok()) return refuse(ticket.status());
  pending->ticket = *std::move(ticket);
  pending->request_id = NextRequestId("gen");
  queue->SetOnRoom([waker = waker_] { waker->Wake(); });
  preparation_->Post([this, pending] { TranscribeNextPart(pending); });
  return queue;
}

void EngineImpl::TranscribeNextPart(std::shared_ptr<PendingGenerate> pending) {
  if (pending->heard.size() == pending->spoken.size()) {
    FinishGenerate(pending);
    return;
  }
  Part& part = *pending->spoken[pending->heard.size()];
  TranscribeRequest request;
  request.model = speech_model_->name;
  request.audio = std::move(part.data);
  request.options.language = part.language;
  request.options.timestamps = Timestamps::kNone;
  request.deadline = pending->request.deadline;
  auto hearing = std::make_shared<TranscribeQueue>(config_.event_queue_limit);
  // Drains the transcript's events as they come; at the end the next part has its turn. The closure
  // keeps both alive until it is taken off the queue.
  hearing->SetOnReady([this, pending, hearing] {
    preparation_->Post([this, pending, hearing] { TakeHeard(pending, hearing); });
  });
  hearing->SetOnRoom([waker = waker_] { waker->Wake(); });
  const absl::Status status = SubmitTranscribe(
      *speech_model_, std::move(request), hearing, pending->ticket, pending->request_id,
      pending->submitted, [queue = pending->queue] { return queue->cancelled(); });
  if (!status.ok()) {
    hearing->SetOnReady(nullptr);
    pending->queue->Push(StreamEnd{status});
  }
}

void EngineImpl::TakeHeard(std::shared_ptr<PendingGenerate> pending,
                           const std::shared_ptr<TranscribeQueue>& hearing) {
  std::optional<absl::Status> ended;
  {
    std::lock_guard lock(pending->mu);
    while (auto event = hearing->TryPop()) {
      if (auto* finished = std::get_if<TranscribeFinished>(&*event)) {
        pending->hearing_text = finished->text;
        pending->audio_ms += finished->usage.audio_ms;
      } else if (auto* end = std::get_if<StreamEnd>(&*event)) {
        ended = end->status;
      }
    }
  }
  if (!ended) return;  // of several threads here, one takes the end
  hearing->SetOnReady(nullptr);
  if (!ended->ok()) {
    pending->queue->Push(StreamEnd{*ended});
    return;
  }
  const std::string& text = pending->hearing_text;
  const size_t begin = text.find_first_not_of(' ');
  pending->heard.push_back(begin == std::string::npos ? "" : text.substr(begin));
  TranscribeNextPart(std::move(pending));
}

void EngineImpl::FinishGenerate(std::shared_ptr<PendingGenerate> pending) {
  auto prepared = PrepareGenerate(*pending->model, config_, media_budget_,
                                  std::move(pending->request), pending->heard);
  if (!prepared.ok()) {
    pending->queue->Push(StreamEnd{prepared.status()});
    return;
  }
  prepared->request_id = pending->request_id;
  prepared->submitted = pending->submitted;
  prepared->audio_ms = pending->audio_ms;
  auto job = std::make_unique<GenerateJob>(*pending->model, *backend_, *std::move(prepared),
                                           pending->queue);
  Submit(std::move(job), std::move(pending->ticket));
}

std::shared_ptr<TranscribeQueue> EngineImpl::Transcribe(TranscribeRequest request) {
  auto queue = std::make_shared<TranscribeQueue>(config_.event_queue_limit);
  const auto model = FindModel(request.model, /*whisper=*/true);
  if (!model.ok()) {
    queue->Push(StreamEnd{model.status()});
    return queue;
  }
  auto ticket = Enter();
  if (!ticket.ok()) {
    queue->Push(StreamEnd{ticket.status()});
    return queue;
  }
  queue->SetOnRoom([waker = waker_] { waker->Wake(); });
  auto shared = std::make_shared<TranscribeRequest>(std::move(request));
  preparation_->Post([this, queue, shared, model = *model, ticket = *std::move(ticket),
                      submitted = Clock::now()] {
    const absl::Status status = SubmitTranscribe(*model, std::move(*shared), queue, ticket,
                                                 NextRequestId("asr"), submitted, nullptr);
    if (!status.ok()) queue->Push(StreamEnd{status});
  });
  return queue;
}

absl::Status EngineImpl::SubmitTranscribe(LoadedModel& model, TranscribeRequest request,
                                          std::shared_ptr<TranscribeQueue> queue,
                                          TicketPtr ticket, const std::string& request_id,
                                          Clock::time_point submitted,
                                          std::function<bool()> also_cancelled) {
  ASSIGN_OR_RETURN(PreparedTranscribe prepared,
                   PrepareTranscribe(model, config_, media_budget_, std::move(request)));
  prepared.request_id = request_id;
  prepared.submitted = submitted;
  Submit(std::make_unique<TranscribeJob>(model, std::move(prepared), std::move(queue),
                                         std::move(also_cancelled)),
         std::move(ticket));
  return absl::OkStatus();
}

void EngineImpl::Submit(std::unique_ptr<Job> job, TicketPtr ticket) {
  if (!scheduler_->Fits(job->spec())) {  // reads constants only
    job->End(absl::ResourceExhaustedError(absl::StrCat(
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
  stats.media_bytes = media_budget_.used();
  return stats;
}

// ---- The other calls ----------------------------------------------------------------------------------

std::vector<ModelInfo> EngineImpl::ListModels() const {
  std::vector<ModelInfo> infos;
  for (const auto& model : models_) infos.push_back(model->info);
  return infos;
}

absl::StatusOr<TokenizeResult> EngineImpl::Tokenize(const TokenizeRequest& request) const {
  const LoadedModel* model = nullptr;
  for (const auto& m : models_) {
    if (m->name == request.model || (request.model.empty() && models_.size() == 1)) model = m.get();
  }
  if (!model) {
    ASSIGN_OR_RETURN(model, FindModel(request.model, /*whisper=*/!request.audio.empty()));
  }
  const auto bytes = [](const std::string& s) {
    return std::span(reinterpret_cast<const uint8_t*>(s.data()), s.size());
  };
  TokenizeResult result;
  std::optional<MolmoImageLayout> layout;
  if (!request.image.empty()) {
    if (model->is_whisper()) {
      return absl::InvalidArgumentError(absl::StrCat("model '", model->name, "' sees no images"));
    }
    ASSIGN_OR_RETURN(const ImageInfo info, ProbeImage(bytes(request.image), config_.image_limits));
    ASSIGN_OR_RETURN(layout,
                     LayOutMolmoImage(info.width, info.height, model->molmo->config.image));
    result.image_tokens = static_cast<int32_t>(layout->tokens.size());
    result.image_crops = layout->crops;
  }
  if (!request.audio.empty()) {
    if (!model->is_whisper()) {
      return absl::InvalidArgumentError(absl::StrCat("model '", model->name, "' hears no audio"));
    }
    ASSIGN_OR_RETURN(const std::vector<float> samples,
                     DecodeAudio(bytes(request.audio), config_.audio_limits));
    result.audio_ms = static_cast<int64_t>(samples.size()) * 1000 / kAudioSampleRate;
    result.audio_windows = static_cast<int32_t>(
        (result.audio_ms + model->info.window_ms - 1) / model->info.window_ms);
  }
  if (request.chat) {
    if (model->is_whisper()) {
      return absl::InvalidArgumentError(absl::StrCat("model '", model->name, "' has no chat form"));
    }
    const MolmoPrompt::Turn turn{.user = true, .text = request.text};
    result.token_ids = model->prompt->Build({&turn, 1}, layout ? &*layout : nullptr);
  } else {
    result.token_ids = model->tokenizer->Encode(request.text);
  }
  for (const int32_t& id : result.token_ids) {
    result.tokens.push_back(model->tokenizer->Decode({&id, 1}));
  }
  return result;
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
