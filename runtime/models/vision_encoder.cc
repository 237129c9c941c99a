#include "runtime/models/vision_encoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"

namespace sensorium {

absl::StatusOr<std::unique_ptr<VisionEncoder>> VisionEncoder::Load(const VisionConfig& config,
                                                                   WeightLoader& loader) {
  auto encoder = std::unique_ptr<VisionEncoder>(new VisionEncoder(config, loader.backend()));
  VisionEncoder& e = *encoder;
  const std::string root = "model.vision_backbone.";
  const std::string vit = root + "image_vit.";
  const int64_t width = config.width;
  const int64_t attn = int64_t{config.heads} * config.head_dim;

  e.patch_embed_ = loader.Linear(config.patch_dim, {{vit + "patch_embedding", width}});
  // Stored as a vector: one row of a table.
  if (ConstTensorView view = loader.Get(vit + "class_embedding", {width}); loader.status().ok()) {
    const ConstTensorView row = view.Reshape({1, width});
    e.class_embed_ = loader.backend().MakeTable({&row, 1});
  }
  e.positions_ = loader.Table(width, {{vit + "positional_embedding", config.positions()}});
  e.pre_norm_ = loader.Norm(vit + "pre_ln", width);
  const int32_t used =
      *std::max_element(config.feature_layers.begin(), config.feature_layers.end()) + 1;
  for (int32_t i = 0; i < used && loader.status().ok(); ++i) {
    const std::string block = absl::StrCat(vit, "transformer.resblocks.", i, ".");
    e.blocks_.push_back({
        .attention_norm = loader.Norm(block + "attention_norm", width),
        .ffn_norm = loader.Norm(block + "ffn_norm", width),
        .qkv = loader.Linear(width, {{block + "attention.wq", attn, true},
                                     {block + "attention.wk", attn, true},
                                     {block + "attention.wv", attn, true}}),
        .out = loader.Linear(attn, {{block + "attention.wo", width, true}}),
        .up = loader.Linear(width, {{block + "feed_forward.w1", config.mlp_dim, true}}),
        .down = loader.Linear(config.mlp_dim, {{block + "feed_forward.w2", width, true}}),
    });
  }
  e.feature_dim_ = width * static_cast<int64_t>(config.feature_layers.size());
  e.pad_embed_ = loader.Table(e.feature_dim_, {{root + "pad_embed", 2}});

  const std::string pool = root + "image_pooling_2d.";
  e.pool_dim_ = attn;
  e.pool_out_dim_ = loader.Dim(pool + "wo.weight", 0);
  e.pool_q_ = loader.Linear(e.feature_dim_, {{pool + "wq", attn, true}});
  e.pool_kv_ = loader.Linear(e.feature_dim_, {{pool + "wk", attn, true}, {pool + "wv", attn, true}});
  e.pool_out_ = loader.Linear(attn, {{pool + "wo", e.pool_out_dim_, true}});

  const std::string project = root + "image_projector.";
  e.project_dim_ = loader.Dim(project + "w1.weight", 0);
  // y = w2(silu(w1 x) * w3 x): w1 is the gate, w3 the up half.
  e.project_up_gate_ = loader.Linear(
      e.pool_out_dim_, {{project + "w3", e.project_dim_}, {project + "w1", e.project_dim_}});
  e.project_down_ = loader.Linear(e.project_dim_, {{project + "w2", config.output_dim}});
  if (!loader.status().ok()) return loader.status();
  e.position_ids_.resize(config.positions());
  std::iota(e.position_ids_.begin(), e.position_ids_.end(), 0);
  e.class_ids_.assign(config.positions(), -1);
  e.class_ids_[0] = 0;
  const int32_t side = config.patches_per_side, window = config.pool_side;
  for (int32_t r = 0; r < side; r += window)
    for (int32_t q = 0; q < side; q += window)
      for (int32_t dr = 0; dr < window; ++dr)
        for (int32_t dq = 0; dq < window; ++dq)
          e.window_rows_.push_back((r + dr) * side + q + dq);
  e.crop_ids_.resize(config.patches());
  return encoder;
}

// Buffers of one Encode; the pooling's reuse nothing of the ViT's, which keeps this list flat.
struct VisionEncoder::Scratch {
  TensorView pixels;    // act [crops * patches, patch_dim]
  TensorView x;         // float32 [crops * positions, width], the residual stream
  TensorView h;         // act [crops * positions, width]
  TensorView qkv;       // act [crops * positions, 3 * heads * head_dim]
  TensorView attn;      // act [crops * positions, heads * head_dim]
  TensorView mlp;       // act [crops * positions, mlp_dim]
  TensorView features;  // float32 [crops * patches, feature_dim]
  TensorView windows;   // float32 [crops * patches, feature_dim], window members side by side
  TensorView query_in;  // float32 [crops * tokens, feature_dim]
  TensorView pool_q;    // act [crops * tokens, pool_dim]
  TensorView pool_kv;   // act [crops * patches, 2 * pool_dim]
  TensorView pool_attn;  // act [crops * tokens, pool_dim]
  TensorView pooled;    // act [crops * tokens, pool_out_dim]
  TensorView kept;      // act [crops * tokens, pool_out_dim]
  TensorView up_gate;   // act [crops * tokens, 2 * project_dim]
  TensorView ffn;       // act [crops * tokens, project_dim]
};

VisionEncoder::Scratch VisionEncoder::Lay(Workspace& ws, int64_t crops) const {
  const DType act = be_.dtype();
  const int64_t rows = crops * config_.positions();
  const int64_t patches = crops * config_.patches();
  const int64_t tokens = crops * config_.tokens_per_crop();
  const int64_t attn = int64_t{config_.heads} * config_.head_dim;
  return {
      .pixels = ws.Take(act, {patches, config_.patch_dim}),
      .x = ws.Take(DType::kFloat32, {rows, config_.width}),
      .h = ws.Take(act, {rows, config_.width}),
      .qkv = ws.Take(act, {rows, 3 * attn}),
      .attn = ws.Take(act, {rows, attn}),
      .mlp = ws.Take(act, {rows, config_.mlp_dim}),
      .features = ws.Take(DType::kFloat32, {patches, feature_dim_}),
      .windows = ws.Take(DType::kFloat32, {patches, feature_dim_}),
      .query_in = ws.Take(DType::kFloat32, {tokens, feature_dim_}),
      .pool_q = ws.Take(act, {tokens, pool_dim_}),
      .pool_kv = ws.Take(act, {patches, 2 * pool_dim_}),
      .pool_attn = ws.Take(act, {tokens, pool_dim_}),
      .pooled = ws.Take(act, {tokens, pool_out_dim_}),
      .kept = ws.Take(act, {tokens, pool_out_dim_}),
      .up_gate = ws.Take(act, {tokens, 2 * project_dim_}),
      .ffn = ws.Take(act, {tokens, project_dim_}),
  };
}

size_t VisionEncoder::WorkspaceBytes(int64_t crops) const {
  Workspace measure;
  Lay(measure, crops);
  return measure.peak();
}

// Pre-norm block of CLIP: x += wo Attn(LN(x)); x += w2 quick_gelu(w1 LN(x)).
void VisionEncoder::RunBlock(const Block& block, const Scratch& s, int64_t crops) const {
  const int64_t attn = s.attn.dim(1);
  const int64_t heads = config_.heads;
  be_.LayerNorm(s.h, s.x, block.attention_norm.weight.view(), block.attention_norm.bias.view(),
                config_.norm_eps);
  be_.Linear(s.qkv, s.h, *block.qkv);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  be_.EncoderAttention(s.attn.SplitColumns(heads), s.qkv.Columns(0, attn).SplitColumns(heads),
                       s.qkv.Columns(attn, 2 * attn).SplitColumns(heads),
                       s.qkv.Columns(2 * attn, 3 * attn).SplitColumns(heads), crops, scale);
  be_.AddLinear(s.x, s.attn, *block.out);
  be_.LayerNorm(s.h, s.x, block.ffn_norm.weight.view(), block.ffn_norm.bias.view(),
                config_.norm_eps);
  be_.Linear(s.mlp, s.h, *block.up, Activation::kQuickGelu);
  be_.AddLinear(s.x, s.mlp, *block.down);
}

void VisionEncoder::Encode(TensorView features, FillInput pixels, std::span<const float> masks,
                           std::span<const int32_t> token_index, Workspace& ws,
                           const StageProbe* probe) const {
  const int64_t patches = config_.patches();
  const int64_t positions = config_.positions();
  const int64_t tokens = config_.tokens_per_crop();
  const int64_t crops = static_cast<int64_t>(masks.size()) / patches;
  CHECK_EQ(static_cast<int64_t>(masks.size()), crops * patches);
  CHECK_EQ(static_cast<int64_t>(token_index.size()), crops * tokens);
  WorkspaceScope scope(ws);
  const Scratch s = Lay(ws, crops);

  // Class token, patches and their positions: x[0] = class + pos[0], x[1 + p] = W patch_p + pos.
  pixels(s.pixels);
  for (int64_t c = 0; c < crops; ++c) {
    const TensorView x = s.x.Rows(c * positions, (c + 1) * positions);
    be_.Embed(x, *positions_, position_ids_, /*add=*/false);
    be_.Embed(x, *class_embed_, class_ids_, /*add=*/true);
    be_.AddLinear(s.x.Rows(c * positions + 1, (c + 1) * positions),
                  s.pixels.Rows(c * patches, (c + 1) * patches), *patch_embed_);
  }
  be_.LayerNorm(s.x, s.x, pre_norm_.weight.view(), pre_norm_.bias.view(), config_.norm_eps);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    RunBlock(blocks_[i], s, crops);
    for (size_t f = 0; f < config_.feature_layers.size(); ++f) {
      if (config_.feature_layers[f] != static_cast<int32_t>(i)) continue;
      const int64_t column = static_cast<int64_t>(f) * config_.width;
      for (int64_t c = 0; c < crops; ++c) {
        be_.Copy(s.features.Rows(c * patches, (c + 1) * patches)
                     .Columns(column, column + config_.width),
                 s.x.Rows(c * positions + 1, (c + 1) * positions));
      }
    }
  }
  // "pad_and_partial_pad": row 0 where a patch is all padding, row 1 where it is partly (or -1).
  for (int64_t c = 0; c < crops; ++c) {
    for (int64_t p = 0; p < patches; ++p) {
      const float mask = masks[c * patches + p];
      crop_ids_[p] = mask == 0.0f ? 0 : mask < 1.0f ? 1 : -1;
    }
    be_.Embed(s.features.Rows(c * patches, (c + 1) * patches), *pad_embed_, crop_ids_,
              /*add=*/true);
  }
  if (probe) (*probe)("vit_features", s.features);

  // Pooling, "attention-meanq": the mean of a 2x2 window asks, its four members answer.
  const int64_t pool = config_.pool_side;
  for (int64_t c = 0; c < crops; ++c) {
    be_.GatherRows(s.windows.Rows(c * patches, (c + 1) * patches),
                   s.features.Rows(c * patches, (c + 1) * patches), window_rows_);
  }
  be_.MeanRows(s.query_in, s.windows, pool * pool);
  be_.Linear(s.pool_q, s.query_in, *pool_q_);
  be_.Linear(s.pool_kv, s.windows, *pool_kv_);
  const int64_t heads = config_.heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  be_.EncoderAttention(s.pool_attn.SplitColumns(heads), s.pool_q.SplitColumns(heads),
                       s.pool_kv.Columns(0, pool_dim_).SplitColumns(heads),
                       s.pool_kv.Columns(pool_dim_, 2 * pool_dim_).SplitColumns(heads),
                       crops * tokens, scale);
  be_.Linear(s.pooled, s.pool_attn, *pool_out_);
  if (probe) (*probe)("pooled", s.pooled);

  // Vectors that no prompt position wants are dropped before the projector.
  int64_t kept = 0;
  for (int64_t c = 0; c < crops; ++c) {
    int64_t of_crop = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (token_index[c * tokens + t] >= 0) crop_ids_[of_crop++] = static_cast<int32_t>(t);
    }
    if (of_crop == 0) continue;
    be_.GatherRows(s.kept.Rows(kept, kept + of_crop), s.pooled.Rows(c * tokens, (c + 1) * tokens),
                   std::span(crop_ids_).first(of_crop));
    kept += of_crop;
  }
  CHECK_EQ(features.rows(), kept);
  if (kept == 0) return;
  const TensorView kept_in = s.kept.Rows(0, kept);
  const TensorView up_gate = s.up_gate.Rows(0, kept);
  const TensorView ffn = s.ffn.Rows(0, kept);
  be_.Linear(up_gate, kept_in, *project_up_gate_);
  be_.SiluMul(ffn, up_gate.Columns(0, project_dim_),
              up_gate.Columns(project_dim_, 2 * project_dim_));
  be_.Linear(features, ffn, *project_down_);
  if (probe) (*probe)("image_features", features);
}

}  // namespace sensorium
