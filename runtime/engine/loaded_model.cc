#include "runtime/engine/loaded_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/device_media.h"
#include "runtime/media/audio.h"
#include "runtime/weights/bounded_json.h"
#include "runtime/weights/json_fields.h"

namespace sensorium {

namespace {

constexpr char kPreprocessorFile[] = "preprocessor_config.json";

// What the encoder has of a window between two of its stages: float32 [audio_positions, hidden].
size_t WindowStateBytes(const WhisperConfig& c) {
  return sizeof(float) * c.audio_positions * c.hidden;
}

// The file's text, checked to be a JSON object within bounds; "" when there is none.
absl::StatusOr<std::string> ReadPreprocessor(const Checkpoint& checkpoint) {
  auto text = checkpoint.ReadFile(kPreprocessorFile);
  if (absl::IsNotFound(text.status())) return std::string();
  if (!text.ok()) return text.status();
  RETURN_IF_ERROR(
      ParseJsonObject(*text, absl::StrCat(checkpoint.dir(), "/", kPreprocessorFile)).status());
  return text;
}

// How Whisper's samples become frames. Source: WhisperFeatureExtractor, whose field names these
// are.
struct FrontEnd {
  int64_t n_fft = 400, hop = 160;  // samples
};

absl::StatusOr<FrontEnd> ReadFrontEnd(const Checkpoint& checkpoint, const WhisperConfig& config) {
  FrontEnd front;
  ASSIGN_OR_RETURN(const std::string text, ReadPreprocessor(checkpoint));
  if (text.empty()) return front;
  const std::string file = absl::StrCat(checkpoint.dir(), "/", kPreprocessorFile);
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, file));
  ASSIGN_OR_RETURN(const int64_t mels,
                   OptionalInt(json, "feature_size", file, config.mels, 1, 1024));
  ASSIGN_OR_RETURN(const int64_t rate,
                   OptionalInt(json, "sampling_rate", file, kAudioSampleRate, 1, 1 << 20));
  // A transform made by a product has n_fft^2 coefficients.
  ASSIGN_OR_RETURN(front.n_fft, OptionalInt(json, "n_fft", file, front.n_fft, 2, 1 << 12));
  ASSIGN_OR_RETURN(front.hop, OptionalInt(json, "hop_length", file, front.hop, 1, front.n_fft));
  ASSIGN_OR_RETURN(const int64_t seconds, OptionalInt(json, "chunk_length", file, 0, 1, 1 << 16));
  if (mels != config.mels || rate != kAudioSampleRate) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, " has ", mels, " mels at ", rate, " Hz, config.json has ", config.mels,
                     " and this server's audio is ", kAudioSampleRate, " Hz"));
  }
  if (front.n_fft % 2 != 0) {
    return absl::UnimplementedError(
        absl::StrCat(file, ": n_fft is ", front.n_fft, "; this build knows even ones"));
  }
  const int64_t frames = seconds * kAudioSampleRate / front.hop;
  if (seconds > 0 && frames != config.window_frames()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": chunk_length ", seconds, " with hop_length ", front.hop, " makes ", frames,
        " frames a window; the encoder of config.json takes ", config.window_frames()));
  }
  return front;
}

absl::Status LoadMolmo(LoadedModel& m, WeightLoader& loader, const std::string& origin) {
  ASSIGN_OR_RETURN(const std::string preprocessor, ReadPreprocessor(*m.checkpoint));
  ASSIGN_OR_RETURN(const MolmoConfig config,
                   MolmoConfig::FromJson(m.checkpoint->config(), preprocessor, origin));
  ASSIGN_OR_RETURN(m.prompt, MolmoPrompt::Create(*m.tokenizer, config, m.checkpoint->config(),
                                                 m.checkpoint->generation_config(), origin));
  ASSIGN_OR_RETURN(m.molmo, Molmo::Load(config, loader));
  // The ViT's blocks behind the last feature are stored and never used.
  constexpr std::array<std::string_view, 1> kUnused = {
      "model.vision_backbone.image_vit.transformer.resblocks."};
  RETURN_IF_ERROR(m.checkpoint->CheckAllUsed(kUnused));
  m.info.kind = "molmo";
  m.info.text_in = m.info.image_in = true;
  return absl::OkStatus();
}

absl::Status LoadWhisper(LoadedModel& m, WeightLoader& loader, const std::string& origin) {
  ASSIGN_OR_RETURN(const WhisperConfig config,
                   WhisperConfig::FromJson(m.checkpoint->config(), origin));
  ASSIGN_OR_RETURN(m.vocabulary,
                   WhisperVocabulary::From(m.checkpoint->config(),
                                           m.checkpoint->generation_config(), *m.tokenizer));
  if (m.tokenizer->vocab_size() > config.vocab) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": the tokenizer's largest id is ",
                                                   m.tokenizer->vocab_size() - 1,
                                                   " but vocab_size is ", config.vocab));
  }
  ASSIGN_OR_RETURN(const FrontEnd front, ReadFrontEnd(*m.checkpoint, config));
  m.log_mel = std::make_unique<LogMelExtractor>(config.mels, static_cast<int32_t>(front.n_fft),
                                                static_cast<int32_t>(front.hop));
  ASSIGN_OR_RETURN(m.whisper, Whisper::Load(config, loader));
  constexpr std::array<std::string_view, 1> kTied = {"proj_out.weight"};
  RETURN_IF_ERROR(m.checkpoint->CheckAllUsed(kTied));
  m.info.kind = "whisper";
  m.info.audio_in = true;
  m.info.window_ms = config.window_frames() * front.hop * 1000 / kAudioSampleRate;
  for (const auto& [code, id] : m.vocabulary->languages) m.info.languages.push_back(code);
  if (!m.vocabulary->multilingual) m.info.languages = {"en"};
  return absl::OkStatus();
}

}  // namespace

KvLayout LoadedModel::SelfLayout() const {
  if (is_whisper()) {
    const WhisperConfig& c = whisper->config();
    return {.layers = c.decoder_layers, .kv_heads = c.decoder_heads, .head_dim = c.head_dim()};
  }
  const LlmConfig& c = molmo->config.llm;
  return {.layers = c.layers, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
}

KvLayout LoadedModel::CrossLayout() const { return SelfLayout(); }

void LoadedModel::TakeStepMemory(int32_t max_running) {
  if (!is_whisper()) return;
  const WhisperConfig& c = whisper->config();
  if (!media) window_mel.resize(static_cast<size_t>(c.window_frames()) * c.mels);
  windows_in_encoder.reserve(max_running);
}

size_t LoadedModel::WorkspaceBytes(int32_t tokens, int32_t crops) const {
  if (is_whisper()) {
    return std::max(whisper->EncodeWorkspaceBytes(), whisper->ForwardWorkspaceBytes(tokens));
  }
  return std::max(molmo->vision->WorkspaceBytes(crops), molmo->llm->WorkspaceBytes(tokens));
}

// The most vectors a picture can have: every token of every crop and of the global one.
int64_t LoadedModel::MaxFeatures() const {
  return int64_t{1 + molmo->config.image.max_crops} * molmo->vision->config().tokens_per_crop();
}

size_t LoadedModel::FeatureSlotBytes() const {
  const size_t bytes = sizeof(float) * MaxFeatures() * molmo->config.llm.hidden;
  return (bytes + 63) / 64 * 64;
}

TensorView LoadedModel::FeatureSlot(int32_t slot) const {
  return TensorView(feature_arena->data() + slot * FeatureSlotBytes(), DType::kFloat32,
                    {MaxFeatures(), molmo->config.llm.hidden});
}

void LoadedModel::MakeMediaOn(MediaOps& ops) {
  media = &ops;
  if (!is_whisper()) return;
  const std::span<const float> window = log_mel->window();
  const std::vector<float> filters =
      SlaneyMelFilters(log_mel->num_mels(), static_cast<int32_t>(window.size()));
  log_mel_tables = ops.MakeLogMel({.window = window, .filters = filters, .hop = log_mel->hop()});
}

size_t LoadedModel::EncoderStateBytes() const {
  // A crop is one unit, cut from a picture that was resized before the first.
  if (!is_whisper()) return media ? DevicePicture::StateBytes(molmo->config.image) : 0;
  return WindowStateBytes(whisper->config()) + (media ? DeviceRecording::kStateBytes : 0);
}

std::byte* LoadedModel::RecordingState(std::byte* encoder_state) const {
  return encoder_state + WindowStateBytes(whisper->config());
}

absl::Status LoadedModel::FitsVocab(int64_t vocab, const Backend& backend,
                                    const std::string& origin) {
  if (vocab <= backend.most_vocab()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(origin, ": a vocabulary of ", vocab, " ids; this device (",
                   backend.description(), ") chooses among ", backend.most_vocab(), " at most"));
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(
    const std::string& name, const std::string& path, Backend& backend,
    const std::function<void(size_t, size_t)>& progress) {
  auto model = std::make_unique<LoadedModel>();
  LoadedModel& m = *model;
  m.name = name;
  ASSIGN_OR_RETURN(m.checkpoint, Checkpoint::Open(path));
  const std::string origin = path + "/config.json";
  ASSIGN_OR_RETURN(m.tokenizer, Tokenizer::FromFile(path + "/tokenizer.json"));
  const nlohmann::json& config = m.checkpoint->config();
  ASSIGN_OR_RETURN(const std::string type, OptionalString(config, "model_type", origin, ""));
  size_t done = 0;
  const size_t total = m.checkpoint->total_bytes();
  WeightLoader loader(*m.checkpoint, backend, [&](size_t bytes) {
    done += bytes;
    if (progress) progress(done, total);
  });
  if (type == "molmo") {
    RETURN_IF_ERROR(LoadMolmo(m, loader, origin));
  } else if (type == "whisper") {
    RETURN_IF_ERROR(LoadWhisper(m, loader, origin));
  } else {
    return absl::UnimplementedError(
        absl::StrCat(origin, ": model_type is '", type, "'; this build serves molmo and whisper"));
  }
  RETURN_IF_ERROR(FitsVocab(m.vocab_size(), backend, origin));
  m.info.name = name;
  if (config.contains("architectures") && config["architectures"].is_array() &&
      !config["architectures"].empty() && config["architectures"][0].is_string()) {
    m.info.architecture = config["architectures"][0].get<std::string>();
  }
  m.info.dtype = std::string(Name(backend.dtype()));
  m.info.parameters = loader.parameters();
  m.info.context_tokens = m.max_positions();
  m.info.vocab_size = m.vocab_size();
  return model;
}

}  // namespace sensorium
