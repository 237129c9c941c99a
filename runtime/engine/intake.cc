#include "runtime/engine/intake.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/status_payload.h"
#include "runtime/engine/generate_job.h"
#include "runtime/engine/transcribe_job.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"

namespace sensorium {

namespace {

constexpr size_t kMaxTokenizeBytes = 1 << 20;  // of text, as one text part of a prompt

// What one request's preparation throws is that request's end, never the process's.
absl::Status Guarded(const std::function<absl::Status()>& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("there is no memory to prepare the request");
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat("preparing the request failed: ", e.what()));
  } catch (...) {
    return absl::InternalError("preparing the request failed");
  }
}

// What one spoken part has come to, on top of those before it.
void AddHearing(const Usage& part, Usage& hearing) {
  hearing.audio_ms += part.audio_ms;
  hearing.kv_blocks_peak = std::max(hearing.kv_blocks_peak, part.kv_blocks_peak);
  AddCost(part, hearing);
}

// Of a spoken part, what PrepareTranscribe says of "audio" and "options.language".
absl::Status AboutPart(absl::Status status, const std::string& part) {
  const auto field = status.GetPayload("sensorium/field");
  if (field && *field == "audio") {
    status.SetPayload("sensorium/field", absl::Cord(absl::StrCat(part, ".audio")));
  } else if (field && *field == "options.language") {
    status.SetPayload("sensorium/field", absl::Cord(absl::StrCat(part, ".audio.language")));
  }
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Intake>> Intake::Create(
    const EngineConfig& config,
    std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop) {
  if (config.max_tenants <= static_cast<int64_t>(config.tenants.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tenants is ", config.max_tenants, " and ", config.tenants.size(),
                     " tenants are configured; all others share one more"));
  }
  std::unique_ptr<Intake> intake(new Intake(config, models, std::move(loop)));
  if (!config.speech_model.empty()) {
    ASSIGN_OR_RETURN(intake->speech_model_,
                     intake->FindModel(config.speech_model, /*whisper=*/true));
  } else if (auto found = intake->FindModel("", /*whisper=*/true); found.ok()) {
    intake->speech_model_ = *found;
  }
  return intake;
}

Intake::Intake(const EngineConfig& config,
               std::span<const std::unique_ptr<LoadedModel>> models, StepLoop loop)
    : config_(config),
      models_(models),
      loop_(std::move(loop)),
      media_budget_(config.max_media_bytes),
      tenants_(config_.tenants, config.max_tenants),
      preparation_(std::max(1, config.preparation_threads)) {}

// ---- Who is in ----------------------------------------------------------------------------------------

Ticket::~Ticket() { intake.Leave(tenant); }

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

absl::StatusOr<TicketPtr> Intake::Enter(const std::string& tenant) {
  std::unique_lock lock(mu_);
  if (loop_.broken()) return absl::UnavailableError("the device failed; the server is ending");
  if (!accepting_) return absl::UnavailableError("the server is draining");
  const int32_t limit = config_.max_waiting + config_.max_batch_seqs;
  if (accepted_ >= limit) {
    return absl::ResourceExhaustedError(
        absl::StrCat(accepted_, " requests run or wait; the limit is ", limit));
  }
  const TenantDirectory::Entered entered = tenants_.Enter(tenant);
  ++accepted_;
  auto ticket = std::make_shared<Ticket>(*this, entered.index);
  // As in the scheduler's line, but from the first byte on: uploads, too, can flood.
  const auto index = static_cast<size_t>(entered.index);
  const int32_t own = index < config_.tenants.size() ? config_.tenants[index].max_waiting : 0;
  const int32_t part =
      config_.max_batch_seqs + (own > 0 ? own : FairPart(config_.max_waiting, entered.known));
  if (entered.requests <= part) return ticket;
  lock.unlock();  // the ticket goes
  return absl::ResourceExhaustedError(absl::StrCat(
      entered.requests - 1, " requests of this tenant run or wait; the limit is ", part));
}

void Intake::Leave(int32_t tenant) {
  tenants_.Leave(tenant);
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

void Intake::Post(std::shared_ptr<TranscribeQueue> queue, std::function<absl::Status()> work) {
  preparation_.Post([queue = std::move(queue), work = std::move(work)] {
    absl::Status status = Guarded(work);
    if (!status.ok()) queue->Push(StreamEnd{std::move(status)});
  });
}

struct Intake::PendingGenerate {
  LoadedModel* model;
  GenerateRequest request;
  std::string request_id;
  std::shared_ptr<GenerateQueue> queue;
  TicketPtr ticket;
  Clock::time_point submitted;
  struct Spoken {
    Part* part;  // of request
    std::string field;
    MediaReservation undecoded;
  };
  std::vector<Spoken> spoken;  // the audio parts
  MediaReservation pictures;   // undecoded
  std::optional<PictureRoom> picture;  // what it will be decoded into
  std::vector<std::string> heard;
  Usage hearing;             // of the parts heard
  std::mutex mu;             // two preparation threads may take events of one part
  std::string hearing_text;  // of the part in progress
};

void Intake::PostFor(std::shared_ptr<PendingGenerate> pending,
                     std::function<absl::Status()> work) {
  preparation_.Post([pending = std::move(pending), work = std::move(work)] {
    absl::Status status = Guarded(work);
    if (status.ok()) return;
    pending->queue->Push(StreamEnd{.status = std::move(status), .usage = pending->hearing});
  });
}

std::shared_ptr<GenerateQueue> Intake::Generate(GenerateRequest request) {
  auto queue = std::make_shared<GenerateQueue>(config_.event_queue_limit);
  const auto refuse = [&](const absl::Status& status) {
    queue->Push(StreamEnd{status});
    return queue;
  };
  const auto model = FindModel(request.model, /*whisper=*/false);
  if (!model.ok()) return refuse(model.status());
  if (request.max_tokens > config_.max_tokens_limit) {
    return refuse(FieldError(
        "max_tokens",
        absl::StrCat("is ", request.max_tokens, "; the limit is ", config_.max_tokens_limit)));
  }
  auto pending = std::make_shared<PendingGenerate>();
  pending->model = *model;
  pending->request = std::move(request);
  pending->queue = queue;
  pending->submitted = Clock::now();
  size_t picture_bytes = 0, spoken_bytes = 0;
  std::vector<Message>& messages = pending->request.messages;
  for (size_t m = 0; m < messages.size(); ++m) {
    for (size_t p = 0; p < messages[m].parts.size(); ++p) {
      Part& part = messages[m].parts[p];
      if (part.kind == Part::Kind::kImage) picture_bytes += part.data.size();
      if (part.kind != Part::Kind::kAudio) continue;
      spoken_bytes += part.data.size();
      pending->spoken.push_back({.part = &part,
                                 .field = absl::StrCat("messages[", m, "].parts[", p, "]"),
                                 .undecoded = {}});
    }
  }
  if (!pending->spoken.empty() && !speech_model_) {
    return refuse(FieldError(pending->spoken[0].field, "is spoken and no speech model is served"));
  }
  auto ticket = Enter(pending->request.tenant);
  if (!ticket.ok()) return refuse(ticket.status());
  pending->ticket = *std::move(ticket);
  MediaHold undecoded(media_budget_);
  const absl::Status fits = undecoded.Resize(picture_bytes + spoken_bytes);
  if (!fits.ok()) return refuse(fits);
  pending->pictures = undecoded.Split(picture_bytes);
  for (auto& spoken : pending->spoken) {
    spoken.undecoded = undecoded.Split(spoken.part->data.size());
  }
  pending->request_id = NextRequestId("gen");
  queue->SetOnRoom(loop_.wake);
  PostFor(pending, [this, pending] {
    if (config_.before_preparation) config_.before_preparation();
    // Before a spoken part takes the device's time: what has no room is refused for nothing.
    const StopReason stop([&] { return pending->queue->cancelled(); }, pending->request.deadline,
                          ending_, config_.decode_seconds);
    RETURN_IF_ERROR(stop.Check());
    ASSIGN_OR_RETURN(pending->picture,
                     MakeRoomForPicture(*pending->model, {config_, media_budget_, stop},
                                        pending->request));
    return TranscribeNextPart(pending);
  });
  return queue;
}

absl::Status Intake::TranscribeNextPart(std::shared_ptr<PendingGenerate> pending) {
  if (pending->heard.size() == pending->spoken.size()) return FinishGenerate(std::move(pending));
  PendingGenerate::Spoken& spoken = pending->spoken[pending->heard.size()];
  Part& part = *spoken.part;
  TranscribeRequest request;
  request.model = speech_model_->name;
  request.audio = std::move(part.data);
  request.options.language = part.language;
  request.options.timestamps = Timestamps::kNone;
  request.deadline = pending->request.deadline;
  request.priority = pending->request.priority;
  request.tenant = pending->request.tenant;
  auto hearing = std::make_shared<TranscribeQueue>(config_.event_queue_limit);
  // Drains the transcript's events as they come; at the end the next part has its turn. The closure
  // keeps both alive until it is taken off the queue.
  hearing->SetOnReady([this, pending, hearing] {
    PostFor(pending, [this, pending, hearing] { return TakeHeard(pending, hearing); });
  });
  hearing->SetOnRoom(loop_.wake);
  const absl::Status status = Guarded([&] {
    return SubmitTranscribe(*speech_model_, std::move(request), std::move(spoken.undecoded),
                            hearing, pending->ticket, pending->request_id, pending->submitted,
                            [queue = pending->queue] { return queue->cancelled(); });
  });
  if (status.ok()) return status;
  hearing->SetOnReady(nullptr);
  return AboutPart(status, spoken.field);
}

absl::Status Intake::TakeHeard(std::shared_ptr<PendingGenerate> pending,
                               const std::shared_ptr<TranscribeQueue>& hearing) {
  std::optional<absl::Status> ended;
  {
    std::lock_guard lock(pending->mu);
    while (auto event = hearing->TryPop()) {
      if (auto* finished = std::get_if<TranscribeFinished>(&*event)) {
        pending->hearing_text = finished->text;
        AddHearing(finished->usage, pending->hearing);
      } else if (auto* end = std::get_if<StreamEnd>(&*event)) {
        if (end->usage) AddHearing(*end->usage, pending->hearing);
        ended = end->status;
      }
    }
  }
  if (!ended) return absl::OkStatus();  // of several threads here, one takes the end
  hearing->SetOnReady(nullptr);
  if (!ended->ok()) return *ended;
  const std::string& text = pending->hearing_text;
  const size_t begin = text.find_first_not_of(' ');
  pending->heard.push_back(begin == std::string::npos ? "" : text.substr(begin));
  return TranscribeNextPart(std::move(pending));
}

absl::Status Intake::FinishGenerate(std::shared_ptr<PendingGenerate> pending) {
  const StopReason stop([&] { return pending->queue->cancelled(); }, pending->request.deadline,
                        ending_, config_.decode_seconds);
  RETURN_IF_ERROR(stop.Check());
  const std::string tenant = pending->request.tenant;
  ASSIGN_OR_RETURN(PreparedGenerate prepared,
                   PrepareGenerate(*pending->model, {config_, media_budget_, stop},
                                   std::move(pending->request), std::move(pending->picture),
                                   pending->heard));
  pending->pictures.Reset();
  prepared.request_id = pending->request_id;
  prepared.submitted = pending->submitted;
  prepared.hearing = pending->hearing;
  auto job = std::make_unique<GenerateJob>(*pending->model, std::move(prepared), pending->queue,
                                           tenant, config_.event_queue_limit, loop_.wake);
  loop_.submit(std::move(job), std::move(pending->ticket));
  return absl::OkStatus();
}

std::shared_ptr<TranscribeQueue> Intake::Transcribe(TranscribeRequest request) {
  auto queue = std::make_shared<TranscribeQueue>(config_.event_queue_limit);
  const auto model = FindModel(request.model, /*whisper=*/true);
  if (!model.ok()) {
    queue->Push(StreamEnd{model.status()});
    return queue;
  }
  auto ticket = Enter(request.tenant);
  if (!ticket.ok()) {
    queue->Push(StreamEnd{ticket.status()});
    return queue;
  }
  auto undecoded = media_budget_.Take(request.audio.size());
  if (!undecoded.ok()) {
    queue->Push(StreamEnd{undecoded.status()});
    return queue;
  }
  queue->SetOnRoom(loop_.wake);
  struct Waiting {
    TranscribeRequest request;
    MediaReservation undecoded;
    TicketPtr ticket;
  };
  auto waiting = std::make_shared<Waiting>(
      Waiting{std::move(request), *std::move(undecoded), *std::move(ticket)});
  Post(queue, [this, queue, waiting, model = *model, submitted = Clock::now()] {
    if (config_.before_preparation) config_.before_preparation();
    return SubmitTranscribe(*model, std::move(waiting->request), std::move(waiting->undecoded),
                            queue, waiting->ticket, NextRequestId("asr"), submitted,
                            nullptr);
  });
  return queue;
}

absl::Status Intake::SubmitTranscribe(LoadedModel& model, TranscribeRequest request,
                                      MediaReservation undecoded,
                                      std::shared_ptr<TranscribeQueue> queue,
                                      TicketPtr ticket, const std::string& request_id,
                                      Clock::time_point submitted,
                                      std::function<bool()> also_cancelled) {
  const StopReason stop(
      [&] { return queue->cancelled() || (also_cancelled && also_cancelled()); }, request.deadline,
      ending_, config_.decode_seconds);
  RETURN_IF_ERROR(stop.Check());
  const std::string tenant = request.tenant;
  ASSIGN_OR_RETURN(PreparedTranscribe prepared,
                   PrepareTranscribe(model, {config_, media_budget_, stop}, std::move(request),
                                     std::move(undecoded)));
  prepared.request_id = request_id;
  prepared.submitted = submitted;
  loop_.submit(std::make_unique<TranscribeJob>(model, std::move(prepared), std::move(queue), tenant,
                                               loop_.wake, std::move(also_cancelled)),
         std::move(ticket));
  return absl::OkStatus();
}

// ---- Tokenize --------------------------------------------------------------------------------------

absl::StatusOr<TokenizeResult> Intake::Tokenize(const TokenizeRequest& request) {
  absl::StatusOr<TokenizeResult> result = absl::InternalError("not run");
  const absl::Status status = Guarded([&] {
    result = TokenizeNow(request);
    return result.status();
  });
  if (!status.ok()) return status;
  return result;
}

absl::StatusOr<TokenizeResult> Intake::TokenizeNow(const TokenizeRequest& request) {
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
  if (request.text.size() > kMaxTokenizeBytes) {
    return FieldError("text", absl::StrCat("has ", request.text.size(), " bytes; the limit is ",
                                           kMaxTokenizeBytes));
  }
  ASSIGN_OR_RETURN(const TicketPtr ticket, Enter(request.tenant));
  ASSIGN_OR_RETURN(const MediaReservation undecoded,
                   media_budget_.Take(request.image.size() + request.audio.size()));
  if (config_.before_preparation) config_.before_preparation();
  const StopReason stop(request.cancelled, request.deadline, ending_, config_.decode_seconds);
  RETURN_IF_ERROR(stop.Check());
  TokenizeResult result;
  std::optional<MolmoImageLayout> layout;
  if (!request.image.empty()) {
    if (model->is_whisper()) {
      return FieldError("image", absl::StrCat("is given and model '", model->name,
                                              "' sees no images"));
    }
    const auto info = ProbeImage(bytes(request.image), config_.image_limits);
    if (!info.ok()) return AboutField(info.status(), "image");
    auto laid_out = LayOutMolmoImage(info->width, info->height, model->molmo->config.image);
    if (!laid_out.ok()) return AboutField(laid_out.status(), "image");
    layout = *std::move(laid_out);
    result.image_tokens = static_cast<int32_t>(layout->tokens.size());
    result.image_crops = layout->crops;
  }
  if (!request.audio.empty()) {
    if (!model->is_whisper()) {
      return FieldError("audio", absl::StrCat("is given and model '", model->name,
                                              "' hears no audio"));
    }
    MediaHold hold(media_budget_);
    ASSIGN_OR_RETURN(const std::vector<float> samples,
                     DecodeWithin({config_, media_budget_, stop}, request.audio, hold));
    result.audio_ms = static_cast<int64_t>(samples.size()) * 1000 / kAudioSampleRate;
    result.audio_windows = static_cast<int32_t>(
        (result.audio_ms + model->info.window_ms - 1) / model->info.window_ms);
  }
  if (request.chat) {
    if (model->is_whisper()) {
      return FieldError("chat", absl::StrCat("is set and model '", model->name,
                                             "' has no chat form"));
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
