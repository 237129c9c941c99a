// OpenAI Whisper: convolution stem and encoder over one window of log-mel, decoder with paged self-
// and cross-attention. Radford et al. 2022 (arXiv:2212.04356); openai/whisper, model.py; weights in
// Hugging Face's names. Covers every size, turbo, Distil-Whisper.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/backend/backend.h"
#include "runtime/models/fill_input.h"
#include "runtime/models/stage_probe.h"
#include "runtime/models/weight_loader.h"
#include "runtime/models/workspace.h"

namespace sensorium {

struct WhisperConfig {
  int32_t hidden = 0;
  int32_t encoder_layers = 0, decoder_layers = 0;
  int32_t encoder_heads = 0, decoder_heads = 0;
  int32_t encoder_ffn = 0, decoder_ffn = 0;
  int32_t mels = 0;
  int32_t vocab = 0;
  int32_t audio_positions = 0;  // encoder positions of a window: half its mel frames
  int32_t text_positions = 0;

  int32_t window_frames() const { return 2 * audio_positions; }
  int32_t head_dim() const { return hidden / decoder_heads; }

  static absl::StatusOr<WhisperConfig> FromJson(const nlohmann::json& config,
                                                const std::string& origin);
};

class Whisper {
 public:
  static absl::StatusOr<std::unique_ptr<Whisper>> Load(const WhisperConfig& config,
                                                       WeightLoader& loader);

  // Encodes one window, mel float32 [window_frames, mels] on the host, and writes every decoder
  // layer's cross-attention keys and values into the slots of `cross_slots` [audio_positions].
  void Encode(std::span<const float> mel, const KvCacheView& cross_kv,
              std::span<const int64_t> cross_slots, Workspace& workspace,
              const StageProbe* probe = nullptr) const;

  // The same in stages, so that a scheduler can stop between two: the convolutions, one per encoder
  // layer, one per decoder layer's cross-attention. Runs [begin, end); what lies between two calls
  // is in `x` float32 [audio_positions, hidden] on the device, the caller's. `mel` fills
  // [window_frames, mels] for the first stage, the cross slots are read by the last ones.
  int32_t encode_stages() const {
    return 1 + config_.encoder_layers + config_.decoder_layers;
  }
  void EncodeStages(int32_t begin, int32_t end, TensorView x, FillInput mel,
                    const KvCacheView& cross_kv, std::span<const int64_t> cross_slots,
                    Workspace& workspace, const StageProbe* probe = nullptr) const;

  // Decodes a ragged batch; `cross` names the same sequences with their window's blocks. Writes
  // logits float32 [batch.logit_rows, vocab].
  void Forward(TensorView logits, const DecoderBatch& batch, const KvCacheView& self_kv,
               const AttentionBatch& cross, const KvCacheView& cross_kv, Workspace& workspace) const;

  size_t EncodeWorkspaceBytes() const;
  size_t ForwardWorkspaceBytes(int64_t tokens) const;
  const WhisperConfig& config() const { return config_; }
  Backend& backend() const { return be_; }

 private:
  struct Attention {
    LayerNormWeight norm;
    std::unique_ptr<LinearWeight> qkv;  // self-attention: q, k, v stacked; k has no bias
    std::unique_ptr<LinearWeight> q, kv;  // cross-attention
    std::unique_ptr<LinearWeight> out;
  };
  struct Mlp {
    LayerNormWeight norm;
    std::unique_ptr<LinearWeight> up, down;
  };
  struct EncoderLayer {
    Attention self;
    Mlp mlp;
  };
  struct DecoderLayer {
    Attention self, cross;
    Mlp mlp;
  };
  struct EncodeScratch;
  struct DecodeScratch;
  Whisper(const WhisperConfig& config, Backend& backend) : config_(config), be_(backend) {}
  EncodeScratch LayEncode(Workspace& workspace) const;
  DecodeScratch LayDecode(Workspace& workspace, int64_t tokens) const;
  void RunMlp(const Mlp& mlp, TensorView x, TensorView h, TensorView ffn) const;

  const WhisperConfig config_;
  Backend& be_;
  std::vector<int32_t> position_ids_;  // [audio_positions] 0, 1, ...
  std::unique_ptr<LinearWeight> conv1_, conv2_;
  std::unique_ptr<TableWeight> audio_positions_, text_positions_, embedding_;
  std::vector<EncoderLayer> encoder_;
  LayerNormWeight encoder_norm_;
  std::vector<DecoderLayer> decoder_;
  LayerNormWeight decoder_norm_;
  std::unique_ptr<LinearWeight> head_;  // tied to the token embedding
};

}  // namespace sensorium
