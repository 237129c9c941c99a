// A decoder-only language model: pre-norm or post-norm, with or without q/k norm, grouped queries,
// dense SwiGLU or a mixture of experts. One forward pass serves prefill chunks and decodes of many
// sequences. Covers the LLMs inside Molmo (Qwen2, OLMo, OLMoE).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/models/stage_probe.h"
#include "runtime/models/weight_loader.h"
#include "runtime/models/workspace.h"

namespace sensorium {

struct LlmConfig {
  int32_t layers = 0;
  int32_t hidden = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t ffn = 0;            // of the MLP or of one expert
  int32_t experts = 0;        // 0: dense
  int32_t experts_per_token = 0;
  int32_t embedding_rows = 0;  // rows of wte.embedding and of the head: the ids it can emit
  int32_t extra_rows = 0;      // wte.new_embedding, ids behind them
  int32_t max_positions = 0;
  float rope_theta = 10000;
  float norm_eps = 1e-5f;
  bool qkv_bias = false;
  bool qk_norm = false;    // over the whole projected vector, before RoPE
  bool norm_after = false;  // norms on the sublayers' outputs instead of their inputs
};

// Vectors added to token embeddings: image features of prompt positions in this batch.
struct FeatureAdd {
  ConstTensorView features;          // float32 [n, hidden] on the device
  std::span<const int32_t> from_rows;  // rows of features
  std::span<const int32_t> to_rows;    // rows of the batch, distinct
};

class LlmDecoder {
 public:
  // Molmo's tensor names: dense blocks as in MolmoForCausalLM, experts as in MolmoE's class.
  static absl::StatusOr<std::unique_ptr<LlmDecoder>> LoadMolmo(const LlmConfig& config,
                                                               WeightLoader& loader);

  // Computes the batch's tokens, stores their K and V and writes logits float32
  // [batch.logit_rows, embedding_rows] on the device.
  void Forward(TensorView logits, const DecoderBatch& batch, std::span<const FeatureAdd> adds,
               const KvCacheView& kv, Workspace& workspace,
               const StageProbe* probe = nullptr) const;
  // Bytes of workspace that a batch of `tokens` needs, the logits not counted.
  size_t WorkspaceBytes(int64_t tokens) const;

  const LlmConfig& config() const { return config_; }

 private:
  struct Layer {
    FloatWeight attn_norm, ffn_norm, q_norm, k_norm;
    std::unique_ptr<LinearWeight> qkv, out;
    std::unique_ptr<LinearWeight> up_gate, down;  // dense
    std::unique_ptr<LinearWeight> router;         // mixture
    std::vector<ExpertWeights> experts;
  };
  struct Scratch;
  LlmDecoder(const LlmConfig& config, Backend& backend) : config_(config), be_(backend) {}
  static Layer LoadDense(const LlmConfig& config, WeightLoader& loader, int32_t layer);
  static Layer LoadExperts(const LlmConfig& config, WeightLoader& loader, int32_t layer);
  Scratch Lay(Workspace& workspace, int64_t tokens) const;
  void Attend(const Layer& layer, int32_t layer_idx, const DecoderBatch& batch,
              const KvCacheView& kv, const Scratch& s) const;
  void FeedForward(const Layer& layer, const Scratch& s) const;

  const LlmConfig config_;
  Backend& be_;
  std::vector<float> inv_freq_;  // [head_dim / 2]
  std::unique_ptr<TableWeight> embedding_;
  std::vector<Layer> layers_;
  FloatWeight final_norm_;
  std::unique_ptr<LinearWeight> head_;
};

}  // namespace sensorium
