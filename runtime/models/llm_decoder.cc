#include "runtime/models/llm_decoder.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace sensorium {

namespace {
// RoPE frequencies theta^(-2i/head_dim), float32 as the reference computes them.
std::vector<float> InverseFrequencies(float theta, int32_t head_dim) {
  std::vector<float> inv_freq(head_dim / 2);
  for (int32_t i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inv_freq[i] = 1.0f / std::pow(theta, exponent);
  }
  return inv_freq;
}
}  // namespace

LlmDecoder::Layer LlmDecoder::LoadDense(const LlmConfig& c, WeightLoader& loader, int32_t i) {
  const std::string block = absl::StrCat("model.transformer.blocks.", i, ".");
  const int64_t q = int64_t{c.heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  Layer layer;
  layer.attn_norm = loader.Vector(block + "attn_norm.weight", c.hidden);
  layer.ffn_norm = loader.Vector(block + "ff_norm.weight", c.hidden);
  if (c.qk_norm) {
    layer.q_norm = loader.Vector(block + "q_norm.weight", q);
    layer.k_norm = loader.Vector(block + "k_norm.weight", kv);
  }
  layer.qkv = loader.Linear(c.hidden, {{block + "att_proj", q + 2 * kv, c.qkv_bias}});
  layer.out = loader.Linear(q, {{block + "attn_out", c.hidden}});
  // Rows [0, ffn) are up and [ffn, 2 ffn) gate: the opposite of Llama's habit.
  layer.up_gate = loader.Linear(c.hidden, {{block + "ff_proj", 2 * int64_t{c.ffn}}});
  layer.down = loader.Linear(c.ffn, {{block + "ff_out", c.hidden}});
  return layer;
}

LlmDecoder::Layer LlmDecoder::LoadExperts(const LlmConfig& c, WeightLoader& loader, int32_t i) {
  const std::string block = absl::StrCat("model.transformer.blocks.", i, ".");
  const int64_t q = int64_t{c.heads} * c.head_dim;
  const int64_t kv = int64_t{c.kv_heads} * c.head_dim;
  Layer layer;
  layer.attn_norm = loader.Vector(block + "attn.attn_norm.weight", c.hidden);
  layer.ffn_norm = loader.Vector(block + "mlp.ff_norm.weight", c.hidden);
  if (c.qk_norm) {
    layer.q_norm = loader.Vector(block + "attn.q_norm.weight", q);
    layer.k_norm = loader.Vector(block + "attn.k_norm.weight", kv);
  }
  layer.qkv = loader.Linear(c.hidden, {{block + "attn.att_proj", q + 2 * kv, c.qkv_bias}});
  layer.out = loader.Linear(q, {{block + "attn.attn_out", c.hidden}});
  layer.router = loader.Linear(c.hidden, {{block + "mlp.gate", c.experts}});
  for (int32_t e = 0; e < c.experts && loader.status().ok(); ++e) {
    const std::string expert = absl::StrCat(block, "mlp.experts.", e, ".");
    layer.experts.push_back(
        {.up_gate = loader.Linear(
             c.hidden, {{expert + "up_proj", c.ffn}, {expert + "gate_proj", c.ffn}}),
         .down = loader.Linear(c.ffn, {{expert + "down_proj", c.hidden}})});
  }
  return layer;
}

absl::StatusOr<std::unique_ptr<LlmDecoder>> LlmDecoder::LoadMolmo(const LlmConfig& config,
                                                                  WeightLoader& loader) {
  auto decoder = std::unique_ptr<LlmDecoder>(new LlmDecoder(config, loader.backend()));
  LlmDecoder& d = *decoder;
  d.inv_freq_ = InverseFrequencies(config.rope_theta, config.head_dim);
  const std::string root = "model.transformer.";
  // One lookup table: the extra rows' ids follow the vocabulary's.
  d.embedding_ = loader.Table(config.hidden, {{root + "wte.embedding", config.embedding_rows},
                                              {root + "wte.new_embedding", config.extra_rows}});
  for (int32_t i = 0; i < config.layers && loader.status().ok(); ++i) {
    d.layers_.push_back(config.experts ? LoadExperts(config, loader, i)
                                       : LoadDense(config, loader, i));
  }
  d.final_norm_ = loader.Vector(root + "ln_f.weight", config.hidden);
  d.head_ = loader.Linear(config.hidden, {{root + "ff_out", config.embedding_rows}});
  if (!loader.status().ok()) return loader.status();
  return decoder;
}

struct LlmDecoder::Scratch {
  TensorView x;          // float32 [tokens, hidden], the residual stream
  TensorView h;          // act [tokens, hidden]
  TensorView qkv;        // act [tokens, (heads + 2 kv_heads) head_dim]
  TensorView attn;       // act [tokens, heads head_dim]
  TensorView sublayer;   // float32 [tokens, hidden], post-norm only
  TensorView up_gate;    // act [tokens, 2 ffn], dense only
  TensorView ffn;        // act [tokens, ffn], dense only
  TensorView router;     // float32 [tokens, experts], mixture only
  TensorView expert_ids;      // int32 [tokens, experts_per_token]
  TensorView expert_weights;  // float32 [tokens, experts_per_token]
};

LlmDecoder::Scratch LlmDecoder::Lay(Workspace& ws, int64_t tokens) const {
  const LlmConfig& c = config_;
  const DType act = be_.dtype();
  Scratch s;
  s.x = ws.Take(DType::kFloat32, {tokens, c.hidden});
  s.h = ws.Take(act, {tokens, c.hidden});
  s.qkv = ws.Take(act, {tokens, int64_t{c.heads + 2 * c.kv_heads} * c.head_dim});
  s.attn = ws.Take(act, {tokens, int64_t{c.heads} * c.head_dim});
  if (c.norm_after) s.sublayer = ws.Take(DType::kFloat32, {tokens, c.hidden});
  if (c.experts) {
    s.router = ws.Take(DType::kFloat32, {tokens, c.experts});
    s.expert_ids = ws.Take(DType::kInt32, {tokens, c.experts_per_token});
    s.expert_weights = ws.Take(DType::kFloat32, {tokens, c.experts_per_token});
  } else {
    s.up_gate = ws.Take(act, {tokens, 2 * int64_t{c.ffn}});
    s.ffn = ws.Take(act, {tokens, c.ffn});
  }
  return s;
}

size_t LlmDecoder::WorkspaceBytes(int64_t tokens) const {
  Workspace measure;
  Lay(measure, tokens);
  measure.Take(DType::kFloat32, {tokens, config_.hidden});  // gathered features or logit rows
  measure.Take(be_.dtype(), {tokens, config_.hidden});
  return measure.peak();
}

void LlmDecoder::Attend(const Layer& layer, int32_t layer_idx, const DecoderBatch& batch,
                        const KvCacheView& kv, const Scratch& s) const {
  const LlmConfig& c = config_;
  const int64_t q_dim = int64_t{c.heads} * c.head_dim;
  const int64_t kv_dim = int64_t{c.kv_heads} * c.head_dim;
  const TensorView q = s.qkv.Columns(0, q_dim);
  const TensorView k = s.qkv.Columns(q_dim, q_dim + kv_dim);
  const TensorView v = s.qkv.Columns(q_dim + kv_dim, q_dim + 2 * kv_dim);
  if (c.norm_after) {
    be_.Linear(s.qkv, s.x, *layer.qkv);
  } else {
    be_.RmsNorm(s.h, s.x, layer.attn_norm.view(), c.norm_eps);
    be_.Linear(s.qkv, s.h, *layer.qkv);
  }
  if (c.qk_norm) {
    be_.RmsNorm(q, q, layer.q_norm.view(), c.norm_eps);
    be_.RmsNorm(k, k, layer.k_norm.view(), c.norm_eps);
  }
  // q and k lie side by side: one call rotates the heads of both.
  be_.Rope(s.qkv.Columns(0, q_dim + kv_dim).SplitColumns(c.heads + c.kv_heads), batch.positions,
           inv_freq_);
  be_.StoreKv(kv, layer_idx, k.SplitColumns(c.kv_heads), v.SplitColumns(c.kv_heads),
              batch.slot_mapping);  // first: a token attends to itself
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  be_.PagedAttention(s.attn.SplitColumns(c.heads), q.SplitColumns(c.heads), kv, layer_idx,
                     batch.self, scale, /*causal=*/true);
  if (c.norm_after) {
    be_.Linear(s.sublayer, s.attn, *layer.out);
    be_.AddRmsNorm(s.x, s.sublayer, layer.attn_norm.view(), c.norm_eps);
  } else {
    be_.AddLinear(s.x, s.attn, *layer.out);
  }
}

void LlmDecoder::FeedForward(const Layer& layer, const Scratch& s) const {
  const LlmConfig& c = config_;
  if (!c.norm_after) be_.RmsNorm(s.h, s.x, layer.ffn_norm.view(), c.norm_eps);
  if (c.experts) {
    be_.Linear(s.router, s.h, *layer.router);
    be_.MoeRoute(s.expert_ids, s.expert_weights, s.router);
    be_.AddMoe(s.x, s.h, s.expert_ids, s.expert_weights, layer.experts);
    return;
  }
  be_.Linear(s.up_gate, c.norm_after ? s.x : s.h, *layer.up_gate);
  be_.SiluMul(s.ffn, s.up_gate.Columns(0, c.ffn), s.up_gate.Columns(c.ffn, 2 * int64_t{c.ffn}));
  if (c.norm_after) {
    be_.Linear(s.sublayer, s.ffn, *layer.down);
    be_.AddRmsNorm(s.x, s.sublayer, layer.ffn_norm.view(), c.norm_eps);
  } else {
    be_.AddLinear(s.x, s.ffn, *layer.down);
  }
}

void LlmDecoder::Forward(TensorView logits, const DecoderBatch& batch,
                         std::span<const FeatureAdd> adds, const KvCacheView& kv, Workspace& ws,
                         const StageProbe* probe) const {
  WorkspaceScope scope(ws);
  const Scratch s = Lay(ws, batch.tokens());
  be_.Embed(s.x, *embedding_, batch.token_ids, /*add=*/false);
  for (const FeatureAdd& add : adds) {
    WorkspaceScope gathered(ws);
    const TensorView rows = ws.Take(
        DType::kFloat32, {static_cast<int64_t>(add.from_rows.size()), config_.hidden});
    be_.GatherRows(rows, add.features, add.from_rows);
    be_.ScatterAddRows(s.x, rows, add.to_rows);
  }
  if (probe) (*probe)("embeddings", s.x);
  for (int32_t i = 0; i < config_.layers; ++i) {
    Attend(layers_[i], i, batch, kv, s);
    FeedForward(layers_[i], s);
    if (probe) (*probe)(absl::StrCat("block", i), s.x);
  }
  if (batch.logit_rows.empty()) return;
  const int64_t rows = static_cast<int64_t>(batch.logit_rows.size());
  const TensorView last = ws.Take(DType::kFloat32, {rows, config_.hidden});
  const TensorView normed = ws.Take(be_.dtype(), {rows, config_.hidden});
  be_.GatherRows(last, s.x, batch.logit_rows);
  be_.RmsNorm(normed, last, final_norm_.view(), config_.norm_eps);
  be_.Linear(logits, normed, *head_);
}

}  // namespace sensorium
