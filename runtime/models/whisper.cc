#include "runtime/models/whisper.h"

#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/weights/json_fields.h"

namespace sensorium {

namespace {
constexpr float kNormEps = 1e-5f;  // torch's LayerNorm default; the config has no key for it
}  // namespace

absl::StatusOr<WhisperConfig> WhisperConfig::FromJson(const nlohmann::json& json,
                                                      const std::string& origin) {
  WhisperConfig c;
  const auto read = [&](int32_t& field, const char* key, int64_t max) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, RequiredInt(json, key, origin, 1, max));
    field = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(read(c.hidden, "d_model", 1 << 16));
  RETURN_IF_ERROR(read(c.encoder_layers, "encoder_layers", 1024));
  RETURN_IF_ERROR(read(c.decoder_layers, "decoder_layers", 1024));
  RETURN_IF_ERROR(read(c.encoder_heads, "encoder_attention_heads", 1024));
  RETURN_IF_ERROR(read(c.decoder_heads, "decoder_attention_heads", 1024));
  RETURN_IF_ERROR(read(c.encoder_ffn, "encoder_ffn_dim", 1 << 18));
  RETURN_IF_ERROR(read(c.decoder_ffn, "decoder_ffn_dim", 1 << 18));
  RETURN_IF_ERROR(read(c.mels, "num_mel_bins", 1024));
  RETURN_IF_ERROR(read(c.vocab, "vocab_size", 1 << 24));
  RETURN_IF_ERROR(read(c.audio_positions, "max_source_positions", 1 << 16));
  RETURN_IF_ERROR(read(c.text_positions, "max_target_positions", 1 << 16));
  for (const int32_t heads : {c.encoder_heads, c.decoder_heads}) {
    if (c.hidden % heads != 0 || (c.hidden / heads) % 16 != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          origin, ": d_model ", c.hidden, " over ", heads,
          " heads is not a head size that is a multiple of 16"));
    }
  }
  return c;
}

absl::StatusOr<std::unique_ptr<Whisper>> Whisper::Load(const WhisperConfig& config,
                                                       WeightLoader& loader) {
  auto model = std::unique_ptr<Whisper>(new Whisper(config, loader.backend()));
  Whisper& m = *model;
  const int64_t d = config.hidden;
  // Published files have the prefix, some fine-tunes do not.
  const std::string root =
      loader.checkpoint().Has("model.encoder.conv1.weight") ? "model." : "";
  const auto self_attention = [&](const std::string& layer) {
    const std::string p = layer + "self_attn.";
    return Attention{
        .norm = loader.Norm(layer + "self_attn_layer_norm", d),
        .qkv = loader.Linear(
            d, {{p + "q_proj", d, true}, {p + "k_proj", d, false}, {p + "v_proj", d, true}}),
        .q = nullptr,
        .kv = nullptr,
        .out = loader.Linear(d, {{p + "out_proj", d, true}})};
  };
  const auto mlp = [&](const std::string& layer, int64_t ffn) {
    return Mlp{.norm = loader.Norm(layer + "final_layer_norm", d),  // the one before the MLP
               .up = loader.Linear(d, {{layer + "fc1", ffn, true}}),
               .down = loader.Linear(ffn, {{layer + "fc2", d, true}})};
  };

  m.position_ids_.resize(config.audio_positions);
  std::iota(m.position_ids_.begin(), m.position_ids_.end(), 0);
  m.conv1_ = loader.Conv1d(root + "encoder.conv1", d, config.mels, 3);
  m.conv2_ = loader.Conv1d(root + "encoder.conv2", d, d, 3);
  m.audio_positions_ =
      loader.Table(d, {{root + "encoder.embed_positions.weight", config.audio_positions}});
  for (int32_t i = 0; i < config.encoder_layers && loader.status().ok(); ++i) {
    const std::string layer = absl::StrCat(root, "encoder.layers.", i, ".");
    m.encoder_.push_back({.self = self_attention(layer), .mlp = mlp(layer, config.encoder_ffn)});
  }
  m.encoder_norm_ = loader.Norm(root + "encoder.layer_norm", d);

  m.embedding_ = loader.Table(d, {{root + "decoder.embed_tokens.weight", config.vocab}});
  m.text_positions_ =
      loader.Table(d, {{root + "decoder.embed_positions.weight", config.text_positions}});
  for (int32_t i = 0; i < config.decoder_layers && loader.status().ok(); ++i) {
    const std::string layer = absl::StrCat(root, "decoder.layers.", i, ".");
    const std::string p = layer + "encoder_attn.";
    Attention cross{
        .norm = loader.Norm(layer + "encoder_attn_layer_norm", d),
        .qkv = nullptr,
        .q = loader.Linear(d, {{p + "q_proj", d, true}}),
        .kv = loader.Linear(d, {{p + "k_proj", d, false}, {p + "v_proj", d, true}}),
        .out = loader.Linear(d, {{p + "out_proj", d, true}})};
    m.decoder_.push_back({.self = self_attention(layer),
                          .cross = std::move(cross),
                          .mlp = mlp(layer, config.decoder_ffn)});
  }
  m.decoder_norm_ = loader.Norm(root + "decoder.layer_norm", d);
  if (ConstTensorView tied =
          loader.Get(root + "decoder.embed_tokens.weight", {config.vocab, d});
      loader.status().ok()) {
    const LinearSource source{.weight = tied, .bias = {}};
    m.head_ = loader.backend().PackLinear({&source, 1});
  }
  if (!loader.status().ok()) return loader.status();
  return model;
}

// x += fc2 gelu(fc1 LN(x)).
void Whisper::RunMlp(const Mlp& mlp, TensorView x, TensorView h, TensorView ffn) const {
  be_.LayerNorm(h, x, mlp.norm.weight.view(), mlp.norm.bias.view(), kNormEps);
  be_.Linear(ffn, h, *mlp.up, Activation::kGelu);
  be_.AddLinear(x, ffn, *mlp.down);
}

struct Whisper::EncodeScratch {
  TensorView mel;   // act [window_frames, mels]
  TensorView conv;  // act [window_frames, hidden]
  TensorView h;     // act [audio_positions, hidden]
  TensorView qkv;   // act [audio_positions, 3 hidden]; cross K and V use its first 2 hidden
  TensorView attn;  // act [audio_positions, hidden]
  TensorView ffn;   // act [audio_positions, encoder_ffn]
};

Whisper::EncodeScratch Whisper::LayEncode(Workspace& ws) const {
  const DType act = be_.dtype();
  const int64_t d = config_.hidden;
  const int64_t n = config_.audio_positions;
  return {.mel = ws.Take(act, {config_.window_frames(), config_.mels}),
          .conv = ws.Take(act, {config_.window_frames(), d}),
          .h = ws.Take(act, {n, d}),
          .qkv = ws.Take(act, {n, 3 * d}),
          .attn = ws.Take(act, {n, d}),
          .ffn = ws.Take(act, {n, config_.encoder_ffn})};
}

size_t Whisper::EncodeWorkspaceBytes() const {
  Workspace measure;
  measure.Take(DType::kFloat32, {config_.audio_positions, config_.hidden});  // Encode's x
  LayEncode(measure);
  return measure.peak();
}

void Whisper::Encode(std::span<const float> mel, const KvCacheView& cross_kv,
                     std::span<const int64_t> cross_slots, Workspace& ws,
                     const StageProbe* probe) const {
  WorkspaceScope scope(ws);
  const TensorView x = ws.Take(DType::kFloat32, {config_.audio_positions, config_.hidden});
  EncodeStages(0, encode_stages(), x, FromHost{be_, mel}, cross_kv, cross_slots, ws, probe);
}

void Whisper::EncodeStages(int32_t begin, int32_t end, TensorView x, FillInput mel,
                           const KvCacheView& cross_kv, std::span<const int64_t> cross_slots,
                           Workspace& ws, const StageProbe* probe) const {
  const int64_t d = config_.hidden;
  const int64_t n = config_.audio_positions;
  CHECK(0 <= begin && begin < end && end <= encode_stages()) << begin << " to " << end;
  WorkspaceScope scope(ws);
  const EncodeScratch s = LayEncode(ws);
  int32_t stage = begin;

  if (stage == 0) {
    mel(s.mel);
    be_.Conv1d(s.conv, s.mel, *conv1_, /*seqs=*/1, /*kernel=*/3, /*stride=*/1, Activation::kGelu);
    be_.Conv1d(x, s.conv, *conv2_, /*seqs=*/1, /*kernel=*/3, /*stride=*/2, Activation::kGelu);
    be_.Embed(x, *audio_positions_, position_ids_, /*add=*/true);
    ++stage;
  }

  const int64_t heads = config_.encoder_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d / heads));
  for (; stage < end && stage <= config_.encoder_layers; ++stage) {
    const EncoderLayer& layer = encoder_[stage - 1];
    be_.LayerNorm(s.h, x, layer.self.norm.weight.view(), layer.self.norm.bias.view(), kNormEps);
    be_.Linear(s.qkv, s.h, *layer.self.qkv);
    be_.EncoderAttention(s.attn.SplitColumns(heads), s.qkv.Columns(0, d).SplitColumns(heads),
                         s.qkv.Columns(d, 2 * d).SplitColumns(heads),
                         s.qkv.Columns(2 * d, 3 * d).SplitColumns(heads), /*seqs=*/1, scale);
    be_.AddLinear(x, s.attn, *layer.self.out);
    RunMlp(layer.mlp, x, s.h, s.ffn);
  }
  if (stage == end) return;

  // The decoder reads the window only through its layers' keys and values: computed once, shared by
  // every hypothesis. The norm is cheap enough to be done anew where the stages were cut.
  CHECK_EQ(static_cast<int64_t>(cross_slots.size()), n);
  be_.LayerNorm(s.h, x, encoder_norm_.weight.view(), encoder_norm_.bias.view(), kNormEps);
  if (probe) (*probe)("encoder", s.h);
  const int64_t decoder_heads = config_.decoder_heads;
  const TensorView kv = s.qkv.Columns(0, 2 * d);
  for (; stage < end; ++stage) {
    const int32_t i = stage - 1 - config_.encoder_layers;
    be_.Linear(kv, s.h, *decoder_[i].cross.kv);
    be_.StoreKv(cross_kv, i, kv.Columns(0, d).SplitColumns(decoder_heads),
                kv.Columns(d, 2 * d).SplitColumns(decoder_heads), cross_slots);
  }
}

struct Whisper::DecodeScratch {
  TensorView x;     // float32 [tokens, hidden], the residual stream
  TensorView h;     // act [tokens, hidden]
  TensorView qkv;   // act [tokens, 3 hidden]
  TensorView attn;  // act [tokens, hidden]
  TensorView ffn;   // act [tokens, decoder_ffn]
  TensorView last;  // float32 [tokens, hidden], the rows whose logits are wanted
};

Whisper::DecodeScratch Whisper::LayDecode(Workspace& ws, int64_t tokens) const {
  const DType act = be_.dtype();
  const int64_t d = config_.hidden;
  return {.x = ws.Take(DType::kFloat32, {tokens, d}),
          .h = ws.Take(act, {tokens, d}),
          .qkv = ws.Take(act, {tokens, 3 * d}),
          .attn = ws.Take(act, {tokens, d}),
          .ffn = ws.Take(act, {tokens, config_.decoder_ffn}),
          .last = ws.Take(DType::kFloat32, {tokens, d})};
}

size_t Whisper::ForwardWorkspaceBytes(int64_t tokens) const {
  Workspace measure;
  LayDecode(measure, tokens);
  return measure.peak();
}

void Whisper::Forward(TensorView logits, const DecoderBatch& batch, const KvCacheView& self_kv,
                      const AttentionBatch& cross, const KvCacheView& cross_kv,
                      Workspace& ws) const {
  const int64_t d = config_.hidden;
  const int64_t heads = config_.decoder_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim()));
  WorkspaceScope scope(ws);
  const DecodeScratch s = LayDecode(ws, batch.tokens());

  be_.Embed(s.x, *embedding_, batch.token_ids, /*add=*/false);
  be_.Embed(s.x, *text_positions_, batch.positions, /*add=*/true);
  for (size_t i = 0; i < decoder_.size(); ++i) {
    const DecoderLayer& layer = decoder_[i];
    const int32_t idx = static_cast<int32_t>(i);
    be_.LayerNorm(s.h, s.x, layer.self.norm.weight.view(), layer.self.norm.bias.view(), kNormEps);
    be_.Linear(s.qkv, s.h, *layer.self.qkv);
    be_.StoreKv(self_kv, idx, s.qkv.Columns(d, 2 * d).SplitColumns(heads),
                s.qkv.Columns(2 * d, 3 * d).SplitColumns(heads), batch.slot_mapping);
    be_.PagedAttention(s.attn.SplitColumns(heads), s.qkv.Columns(0, d).SplitColumns(heads),
                       self_kv, idx, batch.self, scale, /*causal=*/true);
    be_.AddLinear(s.x, s.attn, *layer.self.out);

    be_.LayerNorm(s.h, s.x, layer.cross.norm.weight.view(), layer.cross.norm.bias.view(),
                  kNormEps);
    const TensorView q = s.qkv.Columns(0, d);
    be_.Linear(q, s.h, *layer.cross.q);
    be_.PagedAttention(s.attn.SplitColumns(heads), q.SplitColumns(heads), cross_kv, idx, cross,
                       scale, /*causal=*/false);
    be_.AddLinear(s.x, s.attn, *layer.cross.out);
    RunMlp(layer.mlp, s.x, s.h, s.ffn);
  }
  if (batch.logit_rows.empty()) return;
  const int64_t rows = static_cast<int64_t>(batch.logit_rows.size());
  const TensorView last = s.last.Rows(0, rows);
  const TensorView normed = s.h.Rows(0, rows);
  be_.GatherRows(last, s.x, batch.logit_rows);
  be_.LayerNorm(normed, last, decoder_norm_.weight.view(), decoder_norm_.bias.view(), kNormEps);
  be_.Linear(logits, normed, *head_);
}

}  // namespace sensorium
