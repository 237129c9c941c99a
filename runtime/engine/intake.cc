#include "runtime/engine/intake.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/generate_job.h"
#include "runtime/engine/transcribe_job.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"

namespace sensorium {

absl::StatusOr<std::unique_ptr<Intake>> Intake::Create(
    const EngineConfig& config, Backend& backend,
    std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop) {
  std::unique_ptr<Intake> intake(new Intake(config, backend, models, std::move(loop)));
  if (!config.speech_model.empty()) {
    ASSIGN_OR_RETURN(intake->speech_model_,
                     intake->FindModel(config.speech_model, /*whisper=*/true));
  } else if (auto found = intake->FindModel("", /*whisper=*/true); found.ok()) {
    intake->speech_model_ = *found;
  }
  return intake;
}

Intake::Intake(const EngineConfig& config, Backend& backend,
               std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop)
    : config_(config),
      backend_(backend),
      models_(models),
      loop_(std::move(loop)),
      media_budget_(config.max_media_bytes),
      preparation_(std::max(1, config.preparation_threads)) {}

// ---- Who is in ----------------------------------------------------------------------------------------

Ticket::~Ticket() { intake.Leave(); }

void Intake::StopAccepting() {
  std::lock_guard lock(mu_);
  accepting_ = false;
}

bool Intake::WaitUntilEmpty(std::optional<Deadline> deadline) {
  std::unique_lock lock(mu_);
  const auto empty = [&] { return accepted_ == 0; };
  if (deadline) return empty_.wait_until(lock, *deadline, empty);
  empty_.wait(lock, empty);
  return true;
}

absl::StatusOr<TicketPtr> Intake::Enter() {
  std::lock_guard lock(mu_);
  if (loop_.broken()) return absl::UnavailableError("the device failed; the server is ending");
  if (!accepting_) return absl::UnavailableError("the server is draining");
  const int32_t limit = config_.max_waiting + config_.max_batch_seqs;
  if (accepted_ >= limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat(accepted_, " requests run or wait; the limit is ", limit));
  }
  ++accepted_;
  return std::make_shared<Ticket>(*this);
}

void Intake::Leave() {
  std::lock_guard lock(mu_);
  if (--accepted_ == 0) empty_.notify_all();
}

std::string Intake::NextRequestId(const char* kind) {
  return absl::StrCat(kind, "-", next_request_.fetch_add(1));
}

absl::StatusOr<LoadedModel*> Intake::FindModel(const std::string& name, bool whisper) const {
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

struct Intake::PendingGenerate {
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

std::shared_ptr<GenerateQueue> Intake::Generate(GenerateRequest request) {
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
  queue->SetOnRoom(loop_.wake);
  preparation_.Post([this, pending] { TranscribeNextPart(pending); });
  return queue;
}

void Intake::TranscribeNextPart(std::shared_ptr<PendingGenerate> pending) {
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
    preparation_.Post([this, pending, hearing] { TakeHeard(pending, hearing); });
  });
  hearing->SetOnRoom(loop_.wake);
  const absl::Status status = SubmitTranscribe(
      *speech_model_, std::move(request), hearing, pending->ticket, pending->request_id,
      pending->submitted, [queue = pending->queue] { return queue->cancelled(); });
  if (!status.ok()) {
    hearing->SetOnReady(nullptr);
    pending->queue->Push(StreamEnd{status});
  }
}

void Intake::TakeHeard(std::shared_ptr<PendingGenerate> pending,
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

void Intake::FinishGenerate(std::shared_ptr<PendingGenerate> pending) {
  auto prepared = PrepareGenerate(*pending->model, config_, media_budget_,
                                  std::move(pending->request), pending->heard);
  if (!prepared.ok()) {
    pending->queue->Push(StreamEnd{prepared.status()});
    return;
  }
  prepared->request_id = pending->request_id;
  prepared->submitted = pending->submitted;
  prepared->audio_ms = pending->audio_ms;
  auto job = std::make_unique<GenerateJob>(*pending->model, backend_, *std::move(prepared),
                                           pending->queue);
  loop_.submit(std::move(job), std::move(pending->ticket));
}

std::shared_ptr<TranscribeQueue> Intake::Transcribe(TranscribeRequest request) {
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
  queue->SetOnRoom(loop_.wake);
  auto shared = std::make_shared<TranscribeRequest>(std::move(request));
  preparation_.Post([this, queue, shared, model = *model, ticket = *std::move(ticket),
                      submitted = Clock::now()] {
    const absl::Status status = SubmitTranscribe(*model, std::move(*shared), queue, ticket,
                                                 NextRequestId("asr"), submitted, nullptr);
    if (!status.ok()) queue->Push(StreamEnd{status});
  });
  return queue;
}

absl::Status Intake::SubmitTranscribe(LoadedModel& model, TranscribeRequest request,
                                          std::shared_ptr<TranscribeQueue> queue,
                                          TicketPtr ticket, const std::string& request_id,
                                          Clock::time_point submitted,
                                          std::function<bool()> also_cancelled) {
  ASSIGN_OR_RETURN(PreparedTranscribe prepared,
                   PrepareTranscribe(model, config_, media_budget_, std::move(request)));
  prepared.request_id = request_id;
  prepared.submitted = submitted;
  loop_.submit(std::make_unique<TranscribeJob>(model, std::move(prepared), std::move(queue),
                                         std::move(also_cancelled)),
         std::move(ticket));
  return absl::OkStatus();
}

// ---- Tokenize --------------------------------------------------------------------------------------

absl::StatusOr<TokenizeResult> Intake::Tokenize(const TokenizeRequest& request) {
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

}  // namespace sensorium
