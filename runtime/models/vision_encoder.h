// Molmo's image encoder: CLIP ViT without its last block, two layers' features, padding embedding,
// 2x2 attention pooling, SwiGLU projector into the LLM's width. specs: allenai/molmo, image_vit.py
// and modeling_molmo.py (OLMoPretrainedVisionBackbone).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/models/fill_input.h"
#include "runtime/models/stage_probe.h"
#include "runtime/models/weight_loader.h"
#include "runtime/models/workspace.h"

namespace sensorium {

struct VisionConfig {
  int32_t patches_per_side = 24;  // of a crop
  int32_t patch_dim = 588;        // pixels of a patch x 3
  int32_t pool_side = 2;          // pooling window, patches
  int32_t width = 1024;
  int32_t heads = 16;
  int32_t head_dim = 64;
  int32_t mlp_dim = 4096;
  int32_t layers = 23;  // stored blocks; those behind the last one used are not loaded
  float norm_eps = 1e-5f;
  std::vector<int32_t> feature_layers;  // blocks whose outputs are concatenated, in this order
  int32_t output_dim = 0;               // the LLM's hidden

  int32_t patches() const { return patches_per_side * patches_per_side; }
  int32_t positions() const { return patches() + 1; }  // the class token first
  int32_t tokens_per_crop() const {
    const int32_t side = patches_per_side / pool_side;
    return side * side;
  }
};

class VisionEncoder {
 public:
  static absl::StatusOr<std::unique_ptr<VisionEncoder>> Load(const VisionConfig& config,
                                                             WeightLoader& loader);

  // Encodes crops of one image. `pixels` fills [crops * patches, patch_dim]; masks [crops, patches]
  // float32 on the host; token_index [crops, tokens_per_crop]: negative entries are dropped before
  // the projector. The kept vectors go to `features` float32 [kept, output_dim] on the device, in
  // crop order. Rows of one crop do not depend on which crops share the call. One caller at a time;
  // takes no memory.
  void Encode(TensorView features, FillInput pixels, std::span<const float> masks,
              std::span<const int32_t> token_index, Workspace& workspace,
              const StageProbe* probe = nullptr) const;
  // The same of pixels float32 [crops, patches, patch_dim] on the host.
  void Encode(TensorView features, std::span<const float> pixels, std::span<const float> masks,
              std::span<const int32_t> token_index, Workspace& workspace,
              const StageProbe* probe = nullptr) const {
    Encode(features, FromHost{be_, pixels}, masks, token_index, workspace, probe);
  }
  // Bytes of workspace that Encode needs for `crops` at once.
  size_t WorkspaceBytes(int64_t crops) const;

  const VisionConfig& config() const { return config_; }

 private:
  struct Block {
    LayerNormWeight attention_norm, ffn_norm;
    std::unique_ptr<LinearWeight> qkv, out, up, down;
  };
  struct Scratch;
  VisionEncoder(const VisionConfig& config, Backend& backend) : config_(config), be_(backend) {}
  Scratch Lay(Workspace& workspace, int64_t crops) const;
  void RunBlock(const Block& block, const Scratch& s, int64_t crops) const;

  const VisionConfig config_;
  Backend& be_;
  std::unique_ptr<LinearWeight> patch_embed_;
  std::unique_ptr<TableWeight> class_embed_;  // [1, width]
  std::unique_ptr<TableWeight> positions_;    // [positions, width]
  std::unique_ptr<TableWeight> pad_embed_;    // [2, features]
  LayerNormWeight pre_norm_;
  std::vector<Block> blocks_;
  std::unique_ptr<LinearWeight> pool_q_, pool_kv_, pool_out_;
  std::unique_ptr<LinearWeight> project_up_gate_, project_down_;
  int64_t feature_dim_ = 0;  // width * feature_layers
  int64_t pool_dim_ = 0;     // heads * head_dim of the pooling
  int64_t pool_out_dim_ = 0;
  int64_t project_dim_ = 0;
  // Of one crop, made by Load: [positions] 0, 1, ...; [positions] 0, -1, ...; [patches] of each
  // pooling window its members' patches.
  std::vector<int32_t> position_ids_, class_ids_, window_rows_;
  mutable std::vector<int32_t> crop_ids_;  // [patches] scratch of Encode
};

}  // namespace sensorium
