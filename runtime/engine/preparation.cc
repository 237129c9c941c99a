#include "runtime/engine/preparation.h"

#include <time.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/status_payload.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"

namespace sensorium {

namespace {
std::span<const uint8_t> Bytes(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

double ThreadCpuSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A decoder that was stopped does not know why.
absl::Status Explain(absl::Status status, const StopReason& stop, std::string_view field) {
  if (absl::IsCancelled(status)) {
    if (absl::Status why = stop.Check(); !why.ok()) return AboutField(why, field);
  }
  return AboutField(std::move(status), field);
}
}  // namespace

absl::Status AboutField(absl::Status status, std::string_view field) {
  if (absl::IsInvalidArgument(status) && !status.GetPayload("sensorium/field")) {
    status.SetPayload("sensorium/field", absl::Cord(std::string(field)));
  }
  return status;
}

StopReason::StopReason(std::function<bool()> cancelled, std::optional<Deadline> deadline,
                       const std::atomic<bool>& ending, double decode_seconds)
    : cancelled_(std::move(cancelled)),
      deadline_(deadline),
      ending_(ending),
      decode_seconds_(decode_seconds),
      began_(ThreadCpuSeconds()) {}

StopReason::Reason StopReason::Why() const {
  if (ending_.load(std::memory_order_relaxed)) return Reason::kEnding;
  if (cancelled_ && cancelled_()) return Reason::kCancelled;
  if (deadline_ && *deadline_ <= std::chrono::steady_clock::now()) return Reason::kDeadline;
  if (ThreadCpuSeconds() - began_ > decode_seconds_) return Reason::kDecodeTime;
  return Reason::kNone;
}

absl::Status StopReason::Check() const {
  switch (Why()) {
    case Reason::kNone: return absl::OkStatus();
    case Reason::kEnding: return absl::UnavailableError("the server is shutting down");
    case Reason::kCancelled: return absl::CancelledError("cancelled by the client");
    case Reason::kDeadline: return absl::DeadlineExceededError("the deadline passed");
    case Reason::kDecodeTime: break;
  }
  return absl::InvalidArgumentError(absl::StrCat("decoding took ", ThreadCpuSeconds() - began_,
                                                 " seconds of CPU time and was not done; the limit is ",
                                                 decode_seconds_));
}

absl::Status MediaBudget::Add(size_t more, size_t held) {
  if (more > limit_ || held > limit_ - more) {
    return NeverFits(absl::StrCat("the request's media would take ", held + more,
                                  " bytes; all requests together may have ", limit_));
  }
  size_t used = used_.load();
  do {
    if (used > limit_ - more) {
      return absl::ResourceExhaustedError(absl::StrCat("the request's media would take ", more,
                                                       " bytes more; ", limit_ - used, " of ",
                                                       limit_, " are free"));
    }
  } while (!used_.compare_exchange_weak(used, used + more));
  return absl::OkStatus();
}

absl::StatusOr<MediaReservation> MediaBudget::Take(size_t bytes) {
  RETURN_IF_ERROR(Add(bytes, 0));
  return MediaReservation([this, bytes] { used_.fetch_sub(bytes); });
}

absl::Status MediaHold::Resize(size_t bytes) {
  if (bytes > bytes_) {
    RETURN_IF_ERROR(budget_->Add(bytes - bytes_, bytes_));
  } else {
    budget_->used_.fetch_sub(bytes_ - bytes);
  }
  bytes_ = bytes;
  return absl::OkStatus();
}

MediaReservation MediaHold::Split(size_t bytes) {
  CHECK_LE(bytes, bytes_);
  MediaReservation part([budget = budget_, bytes] { budget->used_.fetch_sub(bytes); });
  bytes_ -= bytes;
  return part;
}

absl::StatusOr<std::vector<float>> DecodeWithin(const Preparation& preparation,
                                                const std::string& audio, MediaHold& hold) {
  auto samples = DecodeAudio(Bytes(audio), preparation.config.audio_limits,
                             preparation.stop.stop(), [&](size_t b) { return hold.Resize(b); });
  if (!samples.ok()) return Explain(samples.status(), preparation.stop, "audio");
  return samples;
}

absl::StatusOr<std::optional<PictureRoom>> MakeRoomForPicture(const LoadedModel& model,
                                                              const Preparation& preparation,
                                                              const GenerateRequest& request) {
  if (request.messages.empty()) return std::nullopt;
  const MolmoImageConfig& molmo = model.molmo->config.image;
  const std::vector<Part>& parts = request.messages[0].parts;
  const auto part = std::find_if(parts.begin(), parts.end(),
                                 [](const Part& p) { return p.kind == Part::Kind::kImage; });
  if (part == parts.end()) return std::nullopt;
  const std::string field = absl::StrCat("messages[0].parts[", part - parts.begin(), "].image");
  const auto info = ProbeImage(Bytes(part->data), preparation.config.image_limits);
  if (!info.ok()) return AboutField(info.status(), field);
  auto layout = LayOutMolmoImage(info->width, info->height, molmo);
  if (!layout.ok()) return AboutField(layout.status(), field);
  const size_t patches = size_t(layout->crops) * model.molmo->vision->config().patches();
  const size_t decoded =
      size_t{3} * info->width * info->height + sizeof(float) * patches +
      (model.media ? DevicePicture::FilterBytes(info->width, info->height, *layout, molmo)
                   : sizeof(float) * patches * model.molmo->vision->config().patch_dim);
  ASSIGN_OR_RETURN(MediaReservation place, preparation.budget.Take(decoded));
  return PictureRoom{.layout = *std::move(layout), .decoded = std::move(place)};
}

absl::StatusOr<PreparedGenerate> PrepareGenerate(const LoadedModel& model,
                                                 const Preparation& preparation,
                                                 GenerateRequest request,
                                                 std::optional<PictureRoom> picture,
                                                 const std::vector<std::string>& heard) {
  PreparedGenerate p;
  const EngineConfig& config = preparation.config;
  const MolmoConfig& molmo = model.molmo->config;
  const std::string* image_bytes = nullptr;
  std::string image_field;
  std::vector<MolmoPrompt::Turn> turns;
  size_t next_heard = 0;
  for (const Message& message : request.messages) {
    const std::string field = absl::StrCat("messages[", turns.size(), "]");
    if (message.role == Role::kSystem) {
      return FieldError(field, absl::StrCat("is the system's, and model '", model.name,
                                            "' takes no system message"));
    }
    const bool user = message.role == Role::kUser;
    if (turns.empty() ? !user : turns.back().user == user) {
      return FieldError(field, absl::StrCat("is the ", user ? "user" : "assistant",
                                            "'s; turns must alternate, the user first"));
    }
    MolmoPrompt::Turn turn{.user = user, .text = ""};
    const auto say = [&](const std::string& text) {
      if (text.empty()) return;
      if (!turn.text.empty()) turn.text += ' ';
      turn.text += text;
    };
    for (const Part& part : message.parts) {
      const std::string image_path =
          absl::StrCat(field, ".parts[", &part - message.parts.data(), "].image");
      switch (part.kind) {
        case Part::Kind::kText: say(part.text); break;
        case Part::Kind::kAudio: say(heard.at(next_heard++)); break;
        case Part::Kind::kImage:
          if (image_bytes || !turns.empty()) {
            return FieldError(image_path, "is not the only image of the first message; no other "
                                          "is looked at");
          }
          image_bytes = &part.data;
          image_field = image_path;
          break;
      }
    }
    turns.push_back(std::move(turn));
  }
  if (turns.empty() || !turns.back().user) {
    return FieldError(absl::StrCat("messages[", turns.empty() ? 0 : turns.size() - 1, "]"),
                      "must be the user's, being the last");
  }

  if (image_bytes) {
    CHECK(picture) << "its room was made before";
    p.media = std::move(picture->decoded);
    const Stop stop = preparation.stop.stop();
    auto image = DecodeImage(Bytes(*image_bytes), config.image_limits, stop);
    if (!image.ok()) return Explain(image.status(), preparation.stop, image_field);
    p.image_width = image->width;
    p.image_height = image->height;
    if (model.media) {
      p.image = DescribeMolmoImage(image->width, image->height, picture->layout, molmo.image);
      p.picture.emplace(*std::move(image), picture->layout, molmo.image);
    } else {
      auto inputs = PreprocessMolmoImage(*image, molmo.image, stop);
      if (!inputs.ok()) return Explain(inputs.status(), preparation.stop, image_field);
      p.image = *std::move(inputs);
    }
  }
  p.prompt = model.prompt->Build(turns, p.image ? &p.image->layout : nullptr);
  const int32_t context = model.max_positions();
  const int32_t room = context - static_cast<int32_t>(p.prompt.size());
  if (room < 1) {
    return FieldError("messages", absl::StrCat("make a prompt of ", p.prompt.size(),
                                               " tokens; the model's context is ", context));
  }
  if (request.max_tokens > room) {
    return FieldError(
        "max_tokens",
        absl::StrCat("is ", request.max_tokens, " behind a prompt of ", p.prompt.size(),
                     " tokens; the model's context is ", context));
  }
  p.max_tokens = request.max_tokens ? request.max_tokens
                                    : std::min(config.default_max_tokens, room);
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id < 0 || id >= model.vocab_size()) {
      return FieldError("sampling.logit_bias",
                        absl::StrCat("names token ", id, "; the vocabulary has ",
                                     model.vocab_size()));
    }
  }
  for (size_t i = 0; i < heard.size(); ++i) absl::StrAppend(&p.heard, i ? " " : "", heard[i]);
  // The bytes are decoded: they need not be held while the answer is written.
  for (Message& message : request.messages) message.parts.clear();
  p.request = std::move(request);
  return p;
}

absl::StatusOr<PreparedTranscribe> PrepareTranscribe(const LoadedModel& model,
                                                     const Preparation& preparation,
                                                     TranscribeRequest request,
                                                     MediaReservation undecoded) {
  PreparedTranscribe p;
  const TranscribeOptions& o = request.options;
  const WhisperVocabulary& vocabulary = *model.vocabulary;
  if (!vocabulary.multilingual) {
    if ((!o.language.empty() && o.language != "en" && o.language != "english") ||
        o.task == Task::kTranslate) {
      return FieldError(
          o.task == Task::kTranslate ? "options.task" : "options.language",
          absl::StrCat("asks for another language, and model '", model.name,
                       "' transcribes English only"));
    }
  } else if (!o.language.empty()) {
    p.language_id = vocabulary.LanguageId(o.language);
    if (!p.language_id) {
      std::string known;
      for (const auto& [code, id] : vocabulary.languages) {
        absl::StrAppend(&known, known.empty() ? "" : " ", code);
      }
      return FieldError("options.language", absl::StrCat("'", o.language, "' is unknown to '",
                                                         model.name, "'; it has: ", known));
    }
  }
  for (const int32_t id : o.suppress_tokens) {
    if (id < 0 || id >= model.vocab_size()) {
      return FieldError("options.suppress_tokens",
                        absl::StrCat("names token ", id, "; the vocabulary has ",
                                     model.vocab_size()));
    }
  }
  const int32_t text = model.whisper->config().text_positions;
  if (o.max_tokens_per_window > text / 2) {
    return FieldError("options.max_tokens_per_window",
                      absl::StrCat("is ", o.max_tokens_per_window, "; the limit is ", text / 2));
  }
  MediaHold hold(preparation.budget);
  ASSIGN_OR_RETURN(std::vector<float> samples, DecodeWithin(preparation, request.audio, hold));
  std::string().swap(request.audio);  // assigning "" would keep the memory
  undecoded.Reset();
  const WhisperConfig& c = model.whisper->config();
  const int64_t window_samples = model.info.window_ms * kAudioSampleRate / 1000;
  const int64_t frames =
      (static_cast<int64_t>(samples.size()) + window_samples) / model.log_mel->hop();
  p.content_frames = frames - c.window_frames();
  p.audio_ms = static_cast<int64_t>(samples.size()) * 1000 / kAudioSampleRate;
  if (model.media) {
    p.media = hold.SplitAll();
    p.recording.emplace(std::move(samples), window_samples, *model.log_mel_tables,
                        c.window_frames());
  } else {
    ASSIGN_OR_RETURN(p.media, preparation.budget.Take(sizeof(float) * frames * c.mels));
    p.mel = model.log_mel->Compute(samples, window_samples, preparation.stop.stop());
    if (p.mel.frames == 0) return Explain(StoppedError(), preparation.stop, "audio");
  }
  p.request = std::move(request);
  return p;
}

}  // namespace sensorium
