// One served model: its files, tokenizer, weights and its share of the KV arena.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/request.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/kv_cache/encoder_cache.h"
#include "runtime/media/log_mel.h"
#include "runtime/models/molmo.h"
#include "runtime/models/whisper.h"
#include "runtime/models/whisper_vocabulary.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/weights/checkpoint.h"

namespace sensorium {

// A batch of decodes that was recorded on the backend: so many rows, of contexts up to so long.
struct DecodeShape {
  int32_t rows, context;
};

struct LoadedModel {
  std::string name;
  int32_t index = 0;  // in the engine's list: which batch of a step is its
  ModelInfo info;
  std::unique_ptr<Checkpoint> checkpoint;  // first: what follows may point into its mapping
  std::unique_ptr<Tokenizer> tokenizer;

  // Molmo
  std::unique_ptr<Molmo> molmo;
  std::optional<MolmoPrompt> prompt;

  // Whisper
  std::unique_ptr<Whisper> whisper;
  std::optional<WhisperVocabulary> vocabulary;
  std::unique_ptr<LogMelExtractor> log_mel;
  std::unique_ptr<LogMelTables> log_mel_tables;  // the same on the device; null without `media`
  KvCacheView cross_kv;                          // block_size encoder positions a block

  KvCacheView self_kv;

  // What makes model input of media on the device; null: preparation does it on the host. Engine
  // thread only.
  MediaOps* media = nullptr;
  void MakeMediaOn(MediaOps& ops);

  // Image features: slots of the device, each for one picture's vectors, float32
  // [max_features, hidden]. Taken at start; which slot holds what, feature_cache knows.
  std::unique_ptr<DeviceBuffer> feature_arena;
  std::optional<EncoderCache> feature_cache;  // engine thread only
  int64_t MaxFeatures() const;                // REQUIRES: !is_whisper()
  size_t FeatureSlotBytes() const;
  TensorView FeatureSlot(int32_t slot) const;

  // Engine thread only, taken by TakeStepMemory.
  std::vector<float> window_mel;  // [window_frames, mels]: what the host gives its first stage
  // Audio windows that are being encoded, and by whom: who wants the same one waits for it.
  std::vector<std::pair<ContentHash, const void*>> windows_in_encoder;
  void TakeStepMemory(int32_t max_running);

  // By rows, then by context; empty where the backend replays nothing. Set at start
  // (forward_pass.h).
  std::vector<DecodeShape> decode_shapes;

  int64_t expected_tokens =
      0;                   // of an answer, as they have been lately; engine thread only. 0: unknown
  ContentHash cache_root;  // of everything that is cached of this model: secret, model

  // Encode units are crops, or the stages of one audio window.
  int32_t UnitsPerWindow() const { return whisper->encode_stages(); }
  size_t EncoderStateBytes() const;  // what must survive between two stages or crops
  // INVALID_ARGUMENT with both numbers: more ids than the backend chooses among. `origin`: the file
  // that says so.
  static absl::Status FitsVocab(int64_t vocab, const Backend& backend, const std::string& origin);
  // A recording's part of it, behind the stages'. REQUIRES: Whisper, with `media`.
  std::byte* RecordingState(std::byte* encoder_state) const;

  bool is_whisper() const { return whisper != nullptr; }
  int32_t vocab_size() const {
    return is_whisper() ? whisper->config().vocab : molmo->config.llm.embedding_rows;
  }
  int32_t max_positions() const {
    return is_whisper() ? whisper->config().text_positions : molmo->config.llm.max_positions;
  }

  // What one token costs in the arena; block_size is left to the engine.
  KvLayout SelfLayout() const;
  KvLayout CrossLayout() const;  // REQUIRES: is_whisper()
  size_t WorkspaceBytes(int32_t tokens, int32_t crops) const;

  // Loads a checkpoint directory; the kind is what its config.json's model_type says.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(
      const std::string& name, const std::string& path, Backend& backend,
      const std::function<void(size_t done_bytes, size_t total_bytes)>& progress);
};

}  // namespace sensorium
