#include "server/convert.h"

#include <cmath>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/status_payload.h"

namespace sensorium {

namespace {

constexpr char kErrorDomain[] = "sensorium";  // of google.rpc.ErrorInfo
constexpr int kMaxMessages = 256;
constexpr int kMaxParts = 64;  // of one message
constexpr int kMaxStops = 16;
constexpr int kMaxStopBytes = 256;
constexpr int kMaxAnswers = 16;
constexpr int kMaxAlternatives = 20;
constexpr int kMaxBeams = 16;
constexpr int kMaxBestOf = 16;
constexpr int kMaxTextBytes = 1 << 20;  // one text part; more is no prompt
constexpr int kRetrySeconds = 1;

// INVALID_ARGUMENT unless value is in [low, high]; NaN is in no range.
template <typename T>
absl::Status InRange(const std::string& field, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return FieldError(field, absl::StrCat("is ", value, "; allowed are ", low, " to ", high));
}

absl::Status NotYet(const std::string& what) {
  return absl::UnimplementedError(absl::StrCat(what, " is not in this version"));
}

absl::Status CheckText(const std::string& field, const std::string& text,
                       size_t limit = kMaxTextBytes) {
  if (text.size() <= limit) return absl::OkStatus();
  return FieldError(field, absl::StrCat("has ", text.size(), " bytes; the limit is ", limit));
}

absl::StatusOr<Part> ConvertPart(v1::Part& in, const std::string& field) {
  Part part;
  switch (in.part_case()) {
    case v1::Part::kText:
      RETURN_IF_ERROR(CheckText(field + ".text", in.text()));
      part.kind = Part::Kind::kText;
      part.text = std::move(*in.mutable_text());
      return part;
    case v1::Part::kImage:
      if (in.image().data().empty()) return FieldError(field + ".image.data", "is empty");
      part.kind = Part::Kind::kImage;
      part.data = std::move(*in.mutable_image()->mutable_data());
      return part;
    case v1::Part::kAudio:
      if (in.audio().data().empty()) return FieldError(field + ".audio.data", "is empty");
      part.kind = Part::Kind::kAudio;
      part.data = std::move(*in.mutable_audio()->mutable_data());
      part.language = std::move(*in.mutable_audio()->mutable_language());
      return part;
    case v1::Part::PART_NOT_SET:
      break;
  }
  return FieldError(field, "has neither text nor image nor audio");
}

absl::StatusOr<SamplingParams> ConvertSampling(const v1::Sampling& in) {
  RETURN_IF_ERROR(InRange("sampling.temperature", in.temperature(), 0.0f, 10.0f));
  RETURN_IF_ERROR(InRange("sampling.top_k", in.top_k(), 0, INT32_MAX));
  RETURN_IF_ERROR(InRange("sampling.top_p", in.top_p(), 0.0f, 1.0f));
  RETURN_IF_ERROR(InRange("sampling.min_p", in.min_p(), 0.0f, std::nextafter(1.0f, 0.0f)));
  RETURN_IF_ERROR(InRange("sampling.repetition_penalty", in.repetition_penalty(), 0.0f, 10.0f));
  RETURN_IF_ERROR(InRange("sampling.presence_penalty", in.presence_penalty(), -10.0f, 10.0f));
  RETURN_IF_ERROR(InRange("sampling.frequency_penalty", in.frequency_penalty(), -10.0f, 10.0f));
  SamplingParams out;
  out.temperature = in.temperature();
  out.top_k = in.top_k();
  if (in.top_p() > 0) out.top_p = in.top_p();
  out.min_p = in.min_p();
  if (in.repetition_penalty() > 0) out.repetition_penalty = in.repetition_penalty();
  out.presence_penalty = in.presence_penalty();
  out.frequency_penalty = in.frequency_penalty();
  out.seed = in.seed();
  for (const auto& [id, bias] : in.logit_bias()) {
    RETURN_IF_ERROR(InRange(absl::StrCat("sampling.logit_bias[", id, "]"), bias, -100.0f, 100.0f));
    out.logit_bias[id] = bias;
  }
  return out;
}

absl::StatusOr<TranscribeOptions> ConvertOptions(v1::TranscribeOptions& in) {
  if (in.timestamps() == v1::WORD) return NotYet("options.timestamps WORD");
  if (!in.hotwords().empty()) return NotYet("options.hotwords");
  if (in.vad()) return NotYet("options.vad");
  if (in.temperatures_size() > 1) return NotYet("options.temperatures with more than one value");
  if (in.has_compression_ratio_threshold()) return NotYet("options.compression_ratio_threshold");
  if (!v1::Task_IsValid(in.task())) {
    return FieldError("options.task", absl::StrCat("is ", int{in.task()}, ", which names no task"));
  }
  if (!v1::Timestamps_IsValid(in.timestamps())) {
    return FieldError("options.timestamps",
                      absl::StrCat("is ", int{in.timestamps()}, ", which names no kind"));
  }
  RETURN_IF_ERROR(CheckText("options.prompt", in.prompt()));
  RETURN_IF_ERROR(CheckText("options.prefix", in.prefix()));
  RETURN_IF_ERROR(InRange("options.beam_size", in.beam_size(), 0, kMaxBeams));
  RETURN_IF_ERROR(InRange("options.best_of", in.best_of(), 0, kMaxBestOf));
  RETURN_IF_ERROR(InRange("options.patience", in.patience(), 0.0f, 10.0f));
  RETURN_IF_ERROR(
      InRange("options.max_tokens_per_window", in.max_tokens_per_window(), 0, INT32_MAX));
  RETURN_IF_ERROR(
      InRange<int64_t>("options.clip_start_ms", in.clip_start_ms(), 0, int64_t{1} << 40));
  RETURN_IF_ERROR(InRange<int64_t>("options.clip_end_ms", in.clip_end_ms(), 0, int64_t{1} << 40));
  if (in.clip_end_ms() && in.clip_end_ms() <= in.clip_start_ms()) {
    return FieldError(
        "options.clip_end_ms",
        absl::StrCat("is ", in.clip_end_ms(), "; clip_start_ms is ", in.clip_start_ms()));
  }
  TranscribeOptions out;
  for (const float t : in.temperatures()) {
    RETURN_IF_ERROR(InRange("options.temperatures", t, 0.0f, 10.0f));
    out.temperatures.push_back(t);
  }
  const bool samples = !out.temperatures.empty() && out.temperatures[0] > 0;
  if (in.beam_size() > 0 && samples) {
    return FieldError("options.beam_size",
                      absl::StrCat("is ", in.beam_size(), " at temperature ", out.temperatures[0],
                                   "; a beam search needs temperature 0"));
  }
  if (in.best_of() > 1 && !samples) {
    return FieldError("options.best_of",
                      absl::StrCat("is ", in.best_of(), " at temperature 0; it needs one above 0"));
  }
  if (in.patience() > 0 && in.beam_size() == 0) {
    return FieldError("options.patience",
                      absl::StrCat("is ", in.patience(), " without a beam_size"));
  }
  if (in.has_length_penalty()) {
    RETURN_IF_ERROR(InRange("options.length_penalty", in.length_penalty(), 0.0f, 1.0f));
    out.length_penalty = in.length_penalty();
  }
  if (in.has_logprob_threshold()) {
    RETURN_IF_ERROR(InRange("options.logprob_threshold", in.logprob_threshold(), -1e9f, 0.0f));
    out.logprob_threshold = in.logprob_threshold();
  }
  if (in.has_no_speech_threshold()) {
    RETURN_IF_ERROR(InRange("options.no_speech_threshold", in.no_speech_threshold(), 0.0f, 1.0f));
    out.no_speech_threshold = in.no_speech_threshold();
  }
  if (in.has_max_initial_timestamp()) {
    RETURN_IF_ERROR(
        InRange("options.max_initial_timestamp", in.max_initial_timestamp(), 0.0f, 1e6f));
    out.max_initial_timestamp = in.max_initial_timestamp();
  }
  out.language = std::move(*in.mutable_language());
  out.task = in.task() == v1::TRANSLATE ? Task::kTranslate : Task::kTranscribe;
  out.timestamps = in.timestamps() == v1::NONE ? Timestamps::kNone : Timestamps::kSegment;
  out.prompt = std::move(*in.mutable_prompt());
  out.prefix = std::move(*in.mutable_prefix());
  out.beam_size = in.beam_size();
  out.best_of = in.best_of();
  out.patience = in.patience();
  out.seed = in.seed();
  if (in.has_condition_on_previous_text()) {
    out.condition_on_previous_text = in.condition_on_previous_text();
  }
  out.suppress_tokens.assign(in.suppress_tokens().begin(), in.suppress_tokens().end());
  if (in.has_suppress_default()) out.suppress_default = in.suppress_default();
  out.clip_start_ms = in.clip_start_ms();
  out.clip_end_ms = in.clip_end_ms();
  out.max_tokens_per_window = in.max_tokens_per_window();
  return out;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::STOP;
    case FinishReason::kLength:
      return v1::LENGTH;
    case FinishReason::kStopString:
      return v1::STOP_STRING;
    case FinishReason::kCancelled:
      return v1::CANCELLED;
    case FinishReason::kDeadline:
      return v1::DEADLINE;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void Fill(v1::Usage& out, const Usage& in) {
  out.set_prompt_tokens(in.prompt_tokens);
  out.set_cached_tokens(in.cached_tokens);
  out.set_image_tokens(in.image_tokens);
  out.set_completion_tokens(in.completion_tokens);
  out.set_audio_ms(in.audio_ms);
  out.set_kv_blocks_peak(in.kv_blocks_peak);
}

void Fill(v1::Timing& out, const Timing& in) {
  out.set_queued_us(in.queued_us);
  out.set_encode_us(in.encode_us);
  out.set_prefill_us(in.prefill_us);
  out.set_decode_us(in.decode_us);
  out.set_time_to_first_token_us(in.time_to_first_token_us);
  out.set_predicted_us(in.predicted_us);
}

void Fill(v1::GenerateResponse& out, const GenerateStarted& in) {
  v1::Started& started = *out.mutable_started();
  started.set_request_id(in.request_id);
  started.set_model(in.model);
  started.set_prompt_tokens(in.prompt_tokens);
  started.set_image_tokens(in.image_tokens);
  started.set_cached_tokens(in.cached_tokens);
  started.set_heard(in.heard);
  started.mutable_prompt_token_ids()->Add(in.prompt_token_ids.begin(), in.prompt_token_ids.end());
}

void Fill(v1::GenerateResponse& out, const GenerateDelta& in) {
  out.set_index(in.index);
  v1::Delta& delta = *out.mutable_delta();
  delta.set_text(in.text);
  delta.mutable_token_ids()->Add(in.token_ids.begin(), in.token_ids.end());
  for (const TokenLogprob& token : in.logprobs) {
    v1::TokenLogprob& logprob = *delta.add_logprobs();
    logprob.set_token_id(token.token_id);
    logprob.set_logprob(token.logprob);
    for (const auto& [id, value] : token.alternatives) {
      auto& alternative = *logprob.add_alternatives();
      alternative.set_token_id(id);
      alternative.set_logprob(value);
    }
  }
}

void Fill(v1::GenerateResponse& out, const GeneratePoint& in) {
  out.set_index(in.index);
  v1::Point& point = *out.mutable_point();
  point.set_x(in.x);
  point.set_y(in.y);
  point.set_label(in.label);
  point.set_ordinal(in.ordinal);
}

void Fill(v1::GenerateResponse& out, const GenerateFinished& in) {
  out.set_index(in.index);
  v1::Finished& finished = *out.mutable_finished();
  finished.set_reason(ToProto(in.reason));
  finished.set_text(in.text);
  Fill(*finished.mutable_usage(), in.usage);
  Fill(*finished.mutable_timing(), in.timing);
}

void Fill(v1::TranscribeResponse& out, const TranscribeStarted& in) {
  auto& started = *out.mutable_started();
  started.set_request_id(in.request_id);
  started.set_model(in.model);
  started.set_duration_ms(in.duration_ms);
  started.set_language(in.language);
  started.set_language_probability(in.language_probability);
}

void Fill(v1::TranscribeResponse& out, const TranscribeSegment& in) {
  v1::Segment& segment = *out.mutable_segment();
  segment.set_id(in.id);
  segment.set_start_ms(in.start_ms);
  segment.set_end_ms(in.end_ms);
  segment.set_text(in.text);
  segment.mutable_tokens()->Add(in.tokens.begin(), in.tokens.end());
  segment.set_avg_logprob(in.avg_logprob);
  segment.set_compression_ratio(in.compression_ratio);
  segment.set_no_speech_probability(in.no_speech_probability);
  segment.set_temperature(in.temperature);
}

void Fill(v1::TranscribeResponse& out, const TranscribeProgress& in) {
  out.mutable_progress()->set_done_ms(in.done_ms);
  out.mutable_progress()->set_total_ms(in.total_ms);
}

void Fill(v1::TranscribeResponse& out, const TranscribeFinished& in) {
  auto& finished = *out.mutable_finished();
  finished.set_text(in.text);
  finished.set_language(in.language);
  Fill(*finished.mutable_usage(), in.usage);
  Fill(*finished.mutable_timing(), in.timing);
}

// Response with one Fill per kind of event; nullopt for the stream's end.
template <typename Response, typename Event>
std::optional<Response> Convert(const Event& event) {
  std::optional<Response> response(std::in_place);
  std::visit(
      [&](const auto& e) {
        if constexpr (std::is_same_v<std::decay_t<decltype(e)>, StreamEnd>) {
          response.reset();
        } else {
          Fill(*response, e);
        }
      },
      event);
  return response;
}

}  // namespace

absl::StatusOr<GenerateRequest> FromProto(v1::GenerateRequest&& in, const CallContext& call) {
  RETURN_IF_ERROR(InRange("max_tokens", in.max_tokens(), 0, INT32_MAX));
  RETURN_IF_ERROR(InRange("logprobs", in.logprobs(), 0, kMaxAlternatives));
  RETURN_IF_ERROR(InRange("n", in.n(), 0, kMaxAnswers));
  if (in.stop_size() > kMaxStops) {
    return FieldError("stop",
                      absl::StrCat("has ", in.stop_size(), " strings; the limit is ", kMaxStops));
  }
  GenerateRequest out;
  for (int i = 0; i < in.stop_size(); ++i) {
    const std::string field = absl::StrCat("stop[", i, "]");
    if (in.stop(i).empty()) return FieldError(field, "is empty");
    RETURN_IF_ERROR(CheckText(field, in.stop(i), kMaxStopBytes));
    out.stop.push_back(std::move(*in.mutable_stop(i)));
  }
  if (in.messages_size() == 0) return FieldError("messages", "is empty");
  if (in.messages_size() > kMaxMessages) {
    return FieldError("messages", absl::StrCat("has ", in.messages_size(),
                                               " messages; the limit is ", kMaxMessages));
  }
  for (int m = 0; m < in.messages_size(); ++m) {
    v1::Message& message = *in.mutable_messages(m);
    const std::string field = absl::StrCat("messages[", m, "]");
    Message converted;
    switch (message.role()) {
      case v1::USER:
        converted.role = Role::kUser;
        break;
      case v1::ASSISTANT:
        converted.role = Role::kAssistant;
        break;
      case v1::SYSTEM:
        converted.role = Role::kSystem;
        break;
      default:
        return FieldError(field + ".role", absl::StrCat("is ", int{message.role()},
                                                        "; it must be USER, ASSISTANT or SYSTEM"));
    }
    if (message.parts_size() > kMaxParts) {
      return FieldError(field + ".parts", absl::StrCat("has ", message.parts_size(),
                                                       " parts; the limit is ", kMaxParts));
    }
    for (int p = 0; p < message.parts_size(); ++p) {
      ASSIGN_OR_RETURN(Part part, ConvertPart(*message.mutable_parts(p),
                                              absl::StrCat(field, ".parts[", p, "]")));
      converted.parts.push_back(std::move(part));
    }
    if (converted.parts.empty()) return FieldError(field + ".parts", "is empty");
    out.messages.push_back(std::move(converted));
  }
  ASSIGN_OR_RETURN(out.sampling, ConvertSampling(in.sampling()));
  out.model = std::move(*in.mutable_model());
  out.max_tokens = in.max_tokens();
  out.logprobs = in.logprobs();
  out.n = in.n() ? in.n() : 1;
  out.priority = in.priority();
  out.echo_token_ids = in.echo_token_ids();
  out.tenant = call.tenant;
  out.deadline = call.deadline;
  return out;
}

absl::StatusOr<TranscribeRequest> FromProto(v1::TranscribeRequest&& in, const CallContext& call) {
  if (in.audio().empty()) return FieldError("audio", "is empty");
  TranscribeRequest out;
  ASSIGN_OR_RETURN(out.options, ConvertOptions(*in.mutable_options()));
  out.model = std::move(*in.mutable_model());
  out.audio = std::move(*in.mutable_audio());
  out.priority = in.priority();
  out.tenant = call.tenant;
  out.deadline = call.deadline;
  return out;
}

TokenizeRequest FromProto(v1::TokenizeRequest&& in) {
  TokenizeRequest out;
  out.model = std::move(*in.mutable_model());
  out.text = std::move(*in.mutable_text());
  out.image = std::move(*in.mutable_image());
  out.audio = std::move(*in.mutable_audio());
  out.chat = in.chat();
  return out;
}

std::optional<v1::GenerateResponse> ToProto(const GenerateEvent& event) {
  return Convert<v1::GenerateResponse>(event);
}

std::optional<v1::TranscribeResponse> ToProto(const TranscribeEvent& event) {
  return Convert<v1::TranscribeResponse>(event);
}

v1::TokenizeResponse ToProto(const TokenizeResult& in) {
  v1::TokenizeResponse out;
  out.mutable_token_ids()->Add(in.token_ids.begin(), in.token_ids.end());
  for (const std::string& token : in.tokens) out.add_tokens(token);
  out.set_image_tokens(in.image_tokens);
  out.set_image_crops(in.image_crops);
  out.set_audio_ms(in.audio_ms);
  out.set_audio_windows(in.audio_windows);
  return out;
}

v1::ListModelsResponse ToProto(const std::vector<ModelInfo>& models) {
  v1::ListModelsResponse out;
  for (const ModelInfo& in : models) {
    v1::Model& model = *out.add_models();
    model.set_name(in.name);
    model.set_kind(in.kind);
    model.set_architecture(in.architecture);
    model.set_dtype(in.dtype);
    model.set_parameters(in.parameters);
    model.set_context_tokens(in.context_tokens);
    model.set_vocab_size(in.vocab_size);
    model.set_text_in(in.text_in);
    model.set_image_in(in.image_in);
    model.set_audio_in(in.audio_in);
    for (const std::string& language : in.languages) model.add_languages(language);
    model.set_window_ms(in.window_ms);
  }
  return out;
}

std::string StatusDetails(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(std::string(status.message()));
  google::rpc::ErrorInfo info;
  info.set_domain(kErrorDomain);
  const auto reason = status.GetPayload(kReasonPayload);
  info.set_reason(reason ? std::string(*reason) : absl::StatusCodeToString(status.code()));
  out.add_details()->PackFrom(info);
  if (const auto field = status.GetPayload(kFieldPayload)) {
    google::rpc::BadRequest bad;
    auto& violation = *bad.add_field_violations();
    violation.set_field(std::string(*field));
    violation.set_description(std::string(status.message()));
    out.add_details()->PackFrom(bad);
  }
  if ((absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) &&
      !status.GetPayload(kNoRetryPayload)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(kRetrySeconds);
    out.add_details()->PackFrom(retry);
  }
  return out.SerializeAsString();
}

}  // namespace sensorium
