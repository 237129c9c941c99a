#include "runtime/engine/preparation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"

namespace sensorium {

namespace {
std::span<const uint8_t> Bytes(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}
}  // namespace

absl::StatusOr<MediaReservation> MediaBudget::Take(size_t bytes) {
  size_t used = used_.load();
  do {
    if (bytes > limit_ || used > limit_ - bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("decoded media would take ", bytes, " bytes; ", limit_ - std::min(used, limit_),
                       " of ", limit_, " are free"));
    }
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return MediaReservation([this, bytes] { used_.fetch_sub(bytes); });
}

absl::StatusOr<PreparedGenerate> PrepareGenerate(const LoadedModel& model,
                                                 const EngineConfig& config, MediaBudget& budget,
                                                 GenerateRequest request,
                                                 const std::vector<std::string>& heard) {
  PreparedGenerate p;
  const MolmoConfig& molmo = model.molmo->config;
  const std::string* image_bytes = nullptr;
  std::vector<MolmoPrompt::Turn> turns;
  size_t next_heard = 0;
  for (const Message& message : request.messages) {
    if (message.role == Role::kSystem) {
      return absl::InvalidArgumentError(
          absl::StrCat("model '", model.name, "' takes no system message"));
    }
    const bool user = message.role == Role::kUser;
    if (turns.empty() ? !user : turns.back().user == user) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", turns.size() + 1, " is the ", user ? "user" : "assistant",
                       "'s; turns must alternate, the user first"));
    }
    MolmoPrompt::Turn turn{.user = user, .text = ""};
    const auto say = [&](const std::string& text) {
      if (text.empty()) return;
      if (!turn.text.empty()) turn.text += ' ';
      turn.text += text;
    };
    for (const Part& part : message.parts) {
      switch (part.kind) {
        case Part::Kind::kText: say(part.text); break;
        case Part::Kind::kAudio: say(heard.at(next_heard++)); break;
        case Part::Kind::kImage:
          if (image_bytes || !turns.empty()) {
            return absl::InvalidArgumentError(
                "a request has one image at most, in its first message");
          }
          image_bytes = &part.data;
          break;
      }
    }
    turns.push_back(std::move(turn));
  }
  if (turns.empty() || !turns.back().user) {
    return absl::InvalidArgumentError("the last message must be the user's");
  }

  if (image_bytes) {
    ASSIGN_OR_RETURN(const ImageInfo info, ProbeImage(Bytes(*image_bytes), config.image_limits));
    ASSIGN_OR_RETURN(const MolmoImageLayout layout,
                     LayOutMolmoImage(info.width, info.height, molmo.image));
    const size_t decoded =
        size_t{3} * info.width * info.height +
        sizeof(float) * layout.crops * model.molmo->vision->config().patches() *
            (size_t(model.molmo->vision->config().patch_dim) + 1);
    ASSIGN_OR_RETURN(p.media, budget.Take(decoded));
    ASSIGN_OR_RETURN(const RgbImage image, DecodeImage(Bytes(*image_bytes), config.image_limits));
    p.image_width = image.width;
    p.image_height = image.height;
    ASSIGN_OR_RETURN(p.image, PreprocessMolmoImage(image, molmo.image));
  }
  p.prompt = model.prompt->Build(turns, p.image ? &p.image->layout : nullptr);
  const int32_t context = model.max_positions();
  const int32_t room = context - static_cast<int32_t>(p.prompt.size());
  if (room < 1) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", p.prompt.size(),
                                                   " tokens; the model's context is ", context));
  }
  if (request.max_tokens > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", request.max_tokens, " behind a prompt of ", p.prompt.size(),
                     " tokens; the model's context is ", context));
  }
  p.max_tokens = request.max_tokens ? request.max_tokens
                                    : std::min(config.default_max_tokens, room);
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id < 0 || id >= model.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias names token ", id,
                                                     "; the vocabulary has ", model.vocab_size()));
    }
  }
  for (size_t i = 0; i < heard.size(); ++i) absl::StrAppend(&p.heard, i ? " " : "", heard[i]);
  // The bytes are decoded: they need not be held while the answer is written.
  for (Message& message : request.messages) message.parts.clear();
  p.request = std::move(request);
  return p;
}

absl::StatusOr<PreparedTranscribe> PrepareTranscribe(const LoadedModel& model,
                                                     const EngineConfig& config,
                                                     MediaBudget& budget,
                                                     TranscribeRequest request) {
  PreparedTranscribe p;
  const TranscribeOptions& o = request.options;
  const WhisperVocabulary& vocabulary = *model.vocabulary;
  if (!vocabulary.multilingual) {
    if ((!o.language.empty() && o.language != "en" && o.language != "english") ||
        o.task == Task::kTranslate) {
      return absl::InvalidArgumentError(
          absl::StrCat("model '", model.name, "' transcribes English only"));
    }
  } else if (!o.language.empty()) {
    p.language_id = vocabulary.LanguageId(o.language);
    if (!p.language_id) {
      std::string known;
      for (const auto& [code, id] : vocabulary.languages) {
        absl::StrAppend(&known, known.empty() ? "" : " ", code);
      }
      return absl::InvalidArgumentError(absl::StrCat("language '", o.language, "' is unknown to '",
                                                     model.name, "'; it has: ", known));
    }
  }
  for (const int32_t id : o.suppress_tokens) {
    if (id < 0 || id >= model.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("suppress_tokens names token ", id,
                                                     "; the vocabulary has ", model.vocab_size()));
    }
  }
  const int32_t text = model.whisper->config().text_positions;
  if (o.max_tokens_per_window > text / 2) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens_per_window is ",
                                                   o.max_tokens_per_window, "; the limit is ",
                                                   text / 2));
  }
  // What a recording of the longest allowed duration would need is only known once it is decoded;
  // the decoder itself stops at the limits.
  ASSIGN_OR_RETURN(const std::vector<float> samples,
                   DecodeAudio(Bytes(request.audio), config.audio_limits));
  request.audio = {};
  const WhisperConfig& c = model.whisper->config();
  const int64_t window_samples = model.info.window_ms * kAudioSampleRate / 1000;
  const int64_t hop = window_samples / c.window_frames();
  const int64_t frames = (static_cast<int64_t>(samples.size()) + window_samples) / hop;
  ASSIGN_OR_RETURN(p.media, budget.Take(sizeof(float) * frames * c.mels));
  p.mel = model.log_mel->Compute(samples, window_samples);
  p.content_frames = p.mel.frames - c.window_frames();
  p.audio_ms = static_cast<int64_t>(samples.size()) * 1000 / kAudioSampleRate;
  p.request = std::move(request);
  return p;
}

}  // namespace sensorium
