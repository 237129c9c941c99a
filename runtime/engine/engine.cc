#include "runtime/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/intake.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/step_loop.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace {

using Clock = std::chrono::steady_clock;

// Requests go in through Intake, are computed by StepLoop, and come out through their queues.
class EngineImpl : public Engine {
 public:
  EngineImpl(const EngineConfig& config, std::unique_ptr<Backend> backend)
      : config_(config), backend_(std::move(backend)) {}
  ~EngineImpl() override {
    if (intake_) Drain(Clock::now());
  }

  absl::Status Load(const Progress& progress);

  std::shared_ptr<GenerateQueue> Generate(GenerateRequest request) override {
    return intake_->Generate(std::move(request));
  }
  std::shared_ptr<TranscribeQueue> Transcribe(TranscribeRequest request) override {
    return intake_->Transcribe(std::move(request));
  }
  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request) const override {
    return intake_->Tokenize(request);
  }
  std::vector<ModelInfo> ListModels() const override;
  EngineStats Stats() const override;
  std::string device() const override { return backend_->description(); }
  void Drain(Deadline deadline) override;

 private:
  const EngineConfig config_;
  const std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<LoadedModel>> models_;  // constant after Load
  // In this order: preparation threads submit to the loop, and end first.
  std::unique_ptr<StepLoop> loop_;
  std::unique_ptr<Intake> intake_;
};

// The limits of every tenant there may be, by TenantDirectory's indices: the configured ones first.
absl::StatusOr<std::vector<TenantOptions>> LimitsOf(const EngineConfig& config) {
  std::vector<TenantOptions> tenants(
      std::max<size_t>(config.tenants.size(), std::max(1, config.max_tenants)) + 1);
  for (size_t t = 0; t < config.tenants.size(); ++t) {
    const TenantConfig& c = config.tenants[t];
    const double weight = std::round(c.weight * 1000);
    if (!(weight >= 1 && weight <= 1e6)) {
      return absl::InvalidArgumentError(absl::StrCat("tenant '", c.name, "': weight is ", c.weight,
                                                     "; allowed are 0.001 to 1000"));
    }
    tenants[t].weight = static_cast<int32_t>(weight);
    tenants[t].known = true;
    if (c.max_waiting > 0) tenants[t].max_waiting = c.max_waiting;
    if (c.max_running > 0) tenants[t].max_running = c.max_running;
    if (c.max_blocks > 0) tenants[t].max_blocks = c.max_blocks;
  }
  return tenants;
}

absl::Status EngineImpl::Load(const Progress& progress) {
  if (config_.models.empty()) return absl::InvalidArgumentError("the config names no model");
  MediaOps* const media = config_.media == MediaPlace::kHost ? nullptr : backend_->media_ops();
  if (config_.media == MediaPlace::kDevice && media == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("media are to be made on the device, and this one (", backend_->description(),
                     ") leaves them to the host; there are auto and host besides"));
  }
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
    if (media) model->MakeMediaOn(*media);
    spdlog::info("loaded {} ({}, {:.1f} M parameters, {}) in {:.2f} s", m.name, model->info.kind,
                 static_cast<double>(model->info.parameters) / 1e6, model->info.dtype,
                 std::chrono::duration<double>(Clock::now() - start).count());
    models_.push_back(std::move(model));
  }
  ASSIGN_OR_RETURN(std::vector<TenantOptions> tenants, LimitsOf(config_));
  ASSIGN_OR_RETURN(loop_, StepLoop::Create(config_, std::move(tenants), *backend_, models_));
  Intake::StepLoop seam{.submit =
                            [this](std::unique_ptr<Job> job, TicketPtr ticket) {
                              const int32_t tenant = ticket->tenant;
                              loop_->Submit(std::move(job), tenant, std::move(ticket));
                            },
                        .wake = loop_->WakeFunction(),
                        .broken = [this] { return loop_->Stats().broken; }};
  ASSIGN_OR_RETURN(intake_, Intake::Create(config_, models_, std::move(seam)));
  loop_->Start();
  return absl::OkStatus();
}

void EngineImpl::Drain(Deadline deadline) {
  intake_->StopAccepting();
  if (intake_->WaitUntilEmpty(deadline)) return;
  loop_->CancelAll();
  intake_->StopPreparing();
  intake_->WaitUntilEmpty(std::nullopt);
}

std::vector<ModelInfo> EngineImpl::ListModels() const {
  std::vector<ModelInfo> infos;
  for (const auto& model : models_) infos.push_back(model->info);
  return infos;
}

EngineStats EngineImpl::Stats() const {
  EngineStats stats = loop_->Stats();
  stats.media_bytes = intake_->media_bytes();
  return stats;
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
