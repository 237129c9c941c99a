#include "runtime/simulator/device_profile.h"

#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/scheduler/field_reader.h"
#include "runtime/scheduler/price_fields.h"

namespace sensorium {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxFileBytes = 1 << 20;

// Timings of molmo-mini and whisper-mini, float32, one thread of a shared two-core x86 VM
// (`sensorium generate --timing`, `sensorium transcribe --timing`), rounded: good to a factor of
// two. 9 ms a crop, 0.12 ms a prompt token, 0.35 ms a decoded one, 100 ms a window of 8 s.
DeviceProfile CpuMini() {
  return {.name = "cpu-mini",
          .source =
              "molmo-mini and whisper-mini, float32, one thread of a shared two-core x86 VM; "
              "timings of single requests, rounded",
          .kv_blocks = 8192,
          .vision = {.prices = {.encode_unit_ps = 9'000'000'000,
                                .forward_ps = 250'000'000,
                                .prefill_token_ps = 115'000'000,
                                .prefill_context_ps = 40'000,
                                .decode_row_ps = 100'000'000,
                                .decode_context_ps = 60'000},
                     .crop_tokens = 36},
          .speech = {.prices = {.encode_unit_ps = 25'000'000'000,
                                .forward_ps = 200'000'000,
                                .prefill_token_ps = 100'000'000,
                                .prefill_context_ps = 40'000,
                                .decode_row_ps = 150'000'000,
                                .decode_context_ps = 60'000,
                                .cross_position_ps = 200'000},
                     .window_ms = 8000,
                     .window_stages = 4,
                     .max_encode_units = 4,
                     .cross_positions = 400}};
}

// Molmo-7B-D with Whisper large-v3 in bfloat16 on one A100 SXM 80 GB: computed, never measured.
//
// Sources  NVIDIA A100 Tensor Core GPU data sheet (nvidia-a100-datasheet-us-nvidia-1758950-r4-web),
//          A100 80GB SXM: 312 TFLOP/s of bfloat16 without sparsity, 2039 GB/s of HBM2e. The models:
//          Qwen2 report, arXiv:2407.10671, table 1; Molmo, arXiv:2409.17146; CLIP ViT-L/14-336; and
//          openai/whisper-large-v3's config.json.
// Shares   of those peaks, as good kernels come to (a guess): 80 % of the bandwidth, so 1631 GB/s;
//          of FLOP/s 60 % in large products, 187 T, 50 % in an encoder, 156 T, 40 % in attention,
//          125 T.
//   Qwen2-7B: 28 layers, hidden 3584, 28 heads and 4 KV heads of 128, ffn 18944, vocabulary 152064;
//     7.07e9 weights a token passes through. forward: 14.1 GB / 1631 GB/s = 8.7 ms. Prefill token:
//     14.1 GFLOP / 187 TFLOP/s = 75 us. KV: 57344 bytes a token / 1631 GB/s = 35 ns. Attention of
//     one token to one other: 4 x 3584 x 28 = 0.4 MFLOP / 125 TFLOP/s = 3.2 ns.
//   A crop: 577 positions through 23 layers of ViT-L/14, 0.37 TFLOP, pooling and projector, 0.04:
//     0.40 TFLOP / 156 TFLOP/s = 2.6 ms.
//   Whisper large-v3: a window of 1500 positions through 32 layers of width 1280, 2.3 TFLOP, and the
//     keys and values that 32 decoder layers read, 0.3: 2.6 TFLOP / 156 TFLOP/s = 16.6 ms, in 8
//     stages. Decoder: 0.8e9 weights a token: 0.98 ms, 8.6 us; its KV 163840 bytes a position:
//     100 ns.
// Time is their sum, where a device overlaps reading weights with arithmetic: on the slow side. A
// row that decodes costs its share of a product that is bound by weights, 10 us (a guess).
DeviceProfile PredictedA100() {
  return {.name = "predicted-a100-molmo-7b-d",
          .source =
              "computed, never measured: Molmo-7B-D and Whisper large-v3, bfloat16, on an A100 SXM "
              "80 GB, from the data sheet's FLOP/s and bandwidth and the published model shapes",
          .predicted = true,
          .kv_blocks = 54'000,  // of 917504 bytes: 50 GB, what weights and workspace leave
          .vision = {.prices = {.encode_unit_ps = 2'600'000'000,
                                .forward_ps = 8'700'000'000,
                                .prefill_token_ps = 75'000'000,
                                .prefill_context_ps = 3'200,
                                .decode_row_ps = 10'000'000,
                                .decode_context_ps = 35'000},
                     .crop_tokens = 144},
          .speech = {.prices = {.encode_unit_ps = 2'080'000'000,
                                .forward_ps = 980'000'000,
                                .prefill_token_ps = 8'600'000,
                                .prefill_context_ps = 1'300,
                                .decode_row_ps = 10'000'000,
                                .decode_context_ps = 100'000,
                                .cross_position_ps = 100'000},
                     .block_size = 5,
                     .window_stages = 8,
                     .max_encode_units = 8}};
}

constexpr int64_t kMaxCount = 1 << 26;

// Every field, in one order: f(name, field, low, high) for numbers.
template <typename T, typename F>
void ForEachVisionField(T& v, F&& f) {
  f("block_size", v.block_size, 1, kMaxCount);
  f("crop_tokens", v.crop_tokens, 0, 100'000);
  f("max_encode_units", v.max_encode_units, 1, kMaxCount);
  f("feature_slots", v.feature_slots, 0, 1 << 20);
}
template <typename T, typename F>
void ForEachSpeechField(T& s, F&& f) {
  f("block_size", s.block_size, 1, kMaxCount);
  f("window_ms", s.window_ms, 100, 10'000'000);
  f("window_stages", s.window_stages, 1, 10'000);
  f("max_encode_units", s.max_encode_units, 1, kMaxCount);
  f("cross_positions", s.cross_positions, 0, 1'000'000);
  f("prompt_tokens", s.prompt_tokens, 1, 100'000);
}

}  // namespace

std::vector<std::string> BuiltInProfiles() { return {CpuMini().name, PredictedA100().name}; }

absl::StatusOr<DeviceProfile> ParseDeviceProfile(const std::string& text,
                                                 const std::string& origin) {
  using Parsed = FieldReader::Json;
  // Five deep at most; a file of a megabyte that nests deeper is not worth a stack.
  const auto callback = [](int depth, Parsed::parse_event_t, Parsed&) { return depth <= 5; };
  const Parsed json = Parsed::parse(text, callback, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(origin, ": no JSON"));
  DeviceProfile profile;
  std::string wrong;
  FieldReader fields(json, &wrong);
  if (fields.Asked("name")) fields.Text("name", profile.name);
  if (fields.Asked("source")) fields.Text("source", profile.source);
  if (fields.Asked("predicted")) fields.Bool("predicted", profile.predicted);
  fields.Asked("kv_blocks");
  fields.Int("kv_blocks", profile.kv_blocks, 1, kMaxCount);
  const auto prices = [](FieldReader& model, Prices& out) {
    if (model.Asked("prices")) {
      FieldReader of = model.Object("prices");
      ForEachPrice(out, of.Optional());
      of.NoOthers();
    }
    model.NoOthers();
  };
  if (fields.Asked("vision")) {
    FieldReader vision = fields.Object("vision");
    ForEachVisionField(profile.vision, vision.Optional());
    prices(vision, profile.vision.prices);
  }
  if (fields.Asked("speech")) {
    FieldReader speech = fields.Object("speech");
    ForEachSpeechField(profile.speech, speech.Optional());
    prices(speech, profile.speech.prices);
  }
  fields.NoOthers();
  if (!wrong.empty()) return absl::InvalidArgumentError(absl::StrCat(origin, ": ", wrong));
  if (profile.name.empty()) profile.name = origin;
  return profile;
}

absl::StatusOr<DeviceProfile> LoadDeviceProfile(const std::string& name_or_path) {
  if (name_or_path == CpuMini().name) return CpuMini();
  if (name_or_path == PredictedA100().name) return PredictedA100();
  std::ifstream file(name_or_path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("'", name_or_path,
                                            "' is neither a file nor a profile; there are ",
                                            absl::StrJoin(BuiltInProfiles(), ", ")));
  }
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name_or_path, ": longer than ", kMaxFileBytes, " bytes"));
  }
  return ParseDeviceProfile(text, name_or_path);
}

std::string DeviceProfileJson(const DeviceProfile& profile) {
  const auto into = [](Json& json) {
    return [&json](const char* name, auto value, int64_t, int64_t) { json[name] = value; };
  };
  Json json;
  json["name"] = profile.name;
  json["source"] = profile.source;
  json["predicted"] = profile.predicted;
  json["kv_blocks"] = profile.kv_blocks;
  ForEachVisionField(profile.vision, into(json["vision"]));
  ForEachPrice(profile.vision.prices, into(json["vision"]["prices"]));
  ForEachSpeechField(profile.speech, into(json["speech"]));
  ForEachPrice(profile.speech.prices, into(json["speech"]["prices"]));
  return json.dump(2) + "\n";
}

}  // namespace sensorium
