// Molmo: its configuration in both dialects, its vision encoder and LLM, its prompt. What the four
// published checkpoints differ in is in their config.json and tensors, nowhere else.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/media/molmo_image.h"
#include "runtime/models/llm_decoder.h"
#include "runtime/models/vision_encoder.h"
#include "runtime/tokenizer/tokenizer.h"

namespace sensorium {

struct MolmoConfig {
  LlmConfig llm;
  VisionConfig vision;
  MolmoImageConfig image;

  // `preprocessor` is the text of preprocessor_config.json, or empty: the published defaults.
  static absl::StatusOr<MolmoConfig> FromJson(const nlohmann::json& config,
                                              const std::string& preprocessor,
                                              const std::string& origin);
};

// Turns of a conversation into ids, as allenai/molmo's data formatter ("role" format, no system
// prompt): BOS, image tokens, then " User: q Assistant:", " a", EOS, " User: ...".
class MolmoPrompt {
 public:
  // Finds the special ids in the tokenizer and checks them against the embedding's rows.
  static absl::StatusOr<MolmoPrompt> Create(const Tokenizer& tokenizer, const MolmoConfig& config,
                                            const nlohmann::json& json,
                                            const nlohmann::json& generation_config,
                                            const std::string& origin);

  struct Turn {
    bool user = true;
    std::string text;
  };
  // The last turn is the user's; image tokens go directly behind BOS.
  std::vector<int32_t> Build(std::span<const Turn> turns, const MolmoImageLayout* image) const;
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 private:
  const Tokenizer* tokenizer_ = nullptr;
  int32_t bos_ = 0;
  int32_t start_ = 0, end_ = 0, patch_ = 0, col_ = 0;
  std::vector<int32_t> stop_ids_;
};

struct Molmo {
  MolmoConfig config;
  std::unique_ptr<VisionEncoder> vision;
  std::unique_ptr<LlmDecoder> llm;

  static absl::StatusOr<std::unique_ptr<Molmo>> Load(const MolmoConfig& config,
                                                     WeightLoader& loader);
};

}  // namespace sensorium
