#include "runtime/models/molmo.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/weights/json_fields.h"

namespace sensorium {

namespace {

absl::Status ReadInt(const nlohmann::json& json, std::string_view key, const std::string& origin,
                     int64_t min, int64_t max, int32_t& field) {
  ASSIGN_OR_RETURN(const int64_t value, RequiredInt(json, key, origin, min, max));
  field = static_cast<int32_t>(value);
  return absl::OkStatus();
}

absl::Status Unsupported(const std::string& origin, const char* key, const std::string& value,
                         const char* known) {
  return absl::UnimplementedError(
      absl::StrCat(origin, ": ", key, " is ", value, "; this build knows ", known));
}

// The short dialect of MolmoConfig and the full OLMo one of MolmoE name the same things.
absl::StatusOr<LlmConfig> ReadLlm(const nlohmann::json& json, const std::string& origin) {
  LlmConfig c;
  const bool full = json.contains("d_model");
  RETURN_IF_ERROR(
      ReadInt(json, full ? "d_model" : "hidden_size", origin, 16, 1 << 17, c.hidden));
  RETURN_IF_ERROR(
      ReadInt(json, full ? "n_layers" : "num_hidden_layers", origin, 1, 1024, c.layers));
  RETURN_IF_ERROR(
      ReadInt(json, full ? "n_heads" : "num_attention_heads", origin, 1, 1024, c.heads));
  const char* kv_key = full ? "n_kv_heads" : "num_key_value_heads";
  c.kv_heads = c.heads;  // null means one per query head
  if (json.contains(kv_key) && !json[kv_key].is_null()) {
    RETURN_IF_ERROR(ReadInt(json, kv_key, origin, 1, c.heads, c.kv_heads));
  }
  if (c.hidden % c.heads != 0 || (c.hidden / c.heads) % 16 != 0 || c.heads % c.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": hidden size ", c.hidden, " over ", c.heads, " heads and ",
                     c.kv_heads, " key-value heads is not a head size that is a multiple of 16 ",
                     "with whole groups"));
  }
  c.head_dim = c.hidden / c.heads;
  // The file gives the fused width of up and gate together.
  int32_t fused = 0;
  if (!full) {
    RETURN_IF_ERROR(ReadInt(json, "intermediate_size", origin, 2, 1 << 20, fused));
  } else if (json.contains("mlp_hidden_size") && !json["mlp_hidden_size"].is_null()) {
    RETURN_IF_ERROR(ReadInt(json, "mlp_hidden_size", origin, 2, 1 << 20, fused));
  } else {
    int32_t ratio = 0;
    RETURN_IF_ERROR(ReadInt(json, "mlp_ratio", origin, 1, 64, ratio));
    fused = ratio * c.hidden;
  }
  if (fused % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": the fused MLP width is ", fused, ", expected an even number"));
  }
  c.ffn = fused / 2;
  ASSIGN_OR_RETURN(const std::string block_type,
                   OptionalString(json, "block_type", origin, "sequential"));
  if (block_type == "moe") {
    RETURN_IF_ERROR(ReadInt(json, "moe_num_experts", origin, 1, 4096, c.experts));
    RETURN_IF_ERROR(ReadInt(json, "moe_top_k", origin, 1, c.experts, c.experts_per_token));
  } else if (block_type != "sequential" && block_type != "llama") {
    return Unsupported(origin, "block_type", block_type, "sequential and moe");
  }
  int32_t vocab = 0;
  RETURN_IF_ERROR(ReadInt(json, "vocab_size", origin, 1, 1 << 24, vocab));
  c.embedding_rows = vocab;
  if (json.contains("embedding_size") && !json["embedding_size"].is_null()) {
    RETURN_IF_ERROR(ReadInt(json, "embedding_size", origin, vocab, 1 << 24, c.embedding_rows));
  }
  ASSIGN_OR_RETURN(const int64_t extra,
                   OptionalInt(json, "additional_vocab_size", origin, 128, 0, 1 << 20));
  c.extra_rows = static_cast<int32_t>(extra);
  ASSIGN_OR_RETURN(const int64_t positions,
                   OptionalInt(json, "max_position_embeddings", origin, 4096, 1, 1 << 24));
  c.max_positions = static_cast<int32_t>(positions);
  ASSIGN_OR_RETURN(const double theta, OptionalFloat(json, "rope_theta", origin, 10000.0));
  ASSIGN_OR_RETURN(const double eps, OptionalFloat(json, "layer_norm_eps", origin, 1e-5));
  c.rope_theta = static_cast<float>(theta);
  c.norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(c.qkv_bias, OptionalBool(json, "qkv_bias", origin, false));
  ASSIGN_OR_RETURN(c.qk_norm, OptionalBool(json, "attention_layer_norm", origin, false));
  ASSIGN_OR_RETURN(c.norm_after, OptionalBool(json, "norm_after", origin, false));
  ASSIGN_OR_RETURN(const std::string norm,
                   OptionalString(json, "layer_norm_type", origin, "rms"));
  if (norm != "rms") return Unsupported(origin, "layer_norm_type", norm, "rms");
  ASSIGN_OR_RETURN(const bool tied, OptionalBool(json, "weight_tying", origin, false));
  if (tied) return Unsupported(origin, "weight_tying", "true", "false");
  if (c.experts && c.norm_after) {
    return Unsupported(origin, "norm_after with block_type moe", "true", "false");
  }
  return c;
}

absl::StatusOr<VisionConfig> ReadVision(const nlohmann::json& json, const std::string& origin) {
  const std::string in_vision = origin + " vision_backbone";
  VisionConfig c;
  nlohmann::json v = nlohmann::json::object();  // absent: the published encoder's sizes
  if (json.contains("vision_backbone") && json["vision_backbone"].is_object()) {
    v = json["vision_backbone"];
  }
  const auto read = [&](const char* key, int32_t& field, int64_t max) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, OptionalInt(v, key, in_vision, field, 1, max));
    field = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
  int32_t patch = 14;
  RETURN_IF_ERROR(read("image_patch_size", patch, 1024));
  RETURN_IF_ERROR(read("image_emb_dim", c.width, 1 << 16));
  RETURN_IF_ERROR(read("image_num_heads", c.heads, 1024));
  RETURN_IF_ERROR(read("image_head_dim", c.head_dim, 1024));
  RETURN_IF_ERROR(read("image_mlp_dim", c.mlp_dim, 1 << 18));
  RETURN_IF_ERROR(read("image_num_layers", c.layers, 1024));
  ASSIGN_OR_RETURN(const std::string type,
                   OptionalString(v, "image_model_type", in_vision, "openai"));
  if (type != "openai") return Unsupported(in_vision, "image_model_type", type, "openai");
  ASSIGN_OR_RETURN(const std::string activation,
                   OptionalString(v, "image_mlp_activations", in_vision, "quick_gelu"));
  if (activation != "quick_gelu") {
    return Unsupported(in_vision, "image_mlp_activations", activation, "quick_gelu");
  }
  int32_t positions = 577;
  RETURN_IF_ERROR(read("image_num_pos", positions, 1 << 20));
  while (c.patches_per_side * c.patches_per_side + 1 > positions) --c.patches_per_side;
  while ((c.patches_per_side + 1) * (c.patches_per_side + 1) + 1 <= positions) {
    ++c.patches_per_side;
  }
  if (c.positions() != positions) {
    return absl::InvalidArgumentError(absl::StrCat(in_vision, ": image_num_pos is ", positions,
                                                   ", expected a square plus one"));
  }
  ASSIGN_OR_RETURN(const double eps, OptionalFloat(v, "image_norm_eps", in_vision, 1e-5));
  c.norm_eps = static_cast<float>(eps);
  c.patch_dim = patch * patch * 3;
  std::vector<int64_t> layers = {-2, -9};
  if (json.contains("vit_layers") && json["vit_layers"].is_array()) {
    layers.clear();
    for (const auto& layer : json["vit_layers"]) {
      if (!layer.is_number_integer()) {
        return absl::InvalidArgumentError(absl::StrCat(origin, ": vit_layers holds ", layer.dump()));
      }
      layers.push_back(layer.get<int64_t>());
    }
  }
  for (const int64_t layer : layers) {
    const int64_t index = layer < 0 ? c.layers + layer : layer;
    if (index < 0 || index >= c.layers) {
      return absl::InvalidArgumentError(absl::StrCat(origin, ": vit_layers names layer ", layer,
                                                     " of ", c.layers));
    }
    c.feature_layers.push_back(static_cast<int32_t>(index));
  }
  if (c.feature_layers.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": vit_layers is empty"));
  }
  if (c.head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(in_vision, ": image_head_dim is ", c.head_dim, ", not a multiple of 16"));
  }
  return c;
}

}  // namespace

absl::StatusOr<MolmoConfig> MolmoConfig::FromJson(const nlohmann::json& json,
                                                  const std::string& preprocessor,
                                                  const std::string& origin) {
  MolmoConfig config;
  ASSIGN_OR_RETURN(config.llm, ReadLlm(json, origin));
  ASSIGN_OR_RETURN(config.vision, ReadVision(json, origin));
  if (!preprocessor.empty()) {
    ASSIGN_OR_RETURN(config.image,
                     MolmoImageConfig::FromJson(preprocessor, "preprocessor_config.json"));
  }
  config.vision.output_dim = config.llm.hidden;
  const int32_t side = config.image.crop_size / config.image.patch_size;
  const int32_t patch_dim = config.image.patch_size * config.image.patch_size * 3;
  if (side != config.vision.patches_per_side || patch_dim != config.vision.patch_dim) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": the encoder has ", config.vision.patches_per_side, " patches a side of ",
        config.vision.patch_dim, " values, the preprocessor makes ", side, " of ", patch_dim));
  }
  if (side % config.image.tokens_per_side != 0) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", side, " patches a side do not pool to ",
                                                   config.image.tokens_per_side, " tokens a side"));
  }
  config.vision.pool_side = side / config.image.tokens_per_side;
  return config;
}

absl::StatusOr<MolmoPrompt> MolmoPrompt::Create(const Tokenizer& tokenizer,
                                                const MolmoConfig& config,
                                                const nlohmann::json& json,
                                                const nlohmann::json& generation_config,
                                                const std::string& origin) {
  MolmoPrompt p;
  p.tokenizer_ = &tokenizer;
  const std::array<std::pair<const char*, int32_t*>, 4> specials = {{{"<im_start>", &p.start_},
                                                                     {"<im_end>", &p.end_},
                                                                     {"<im_patch>", &p.patch_},
                                                                     {"<im_col>", &p.col_}}};
  for (const auto& [literal, id] : specials) {
    const auto found = tokenizer.TokenToId(literal);
    if (!found) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": the tokenizer has no token ", literal));
    }
    *id = *found;
  }
  // An early revision of 7B-D had them elsewhere and in another order: such files are refused.
  if (p.end_ != p.start_ + 1 || p.patch_ != p.start_ + 2 || p.col_ != p.start_ + 3) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": <im_start>, <im_end>, <im_patch>, <im_col> have ids ", p.start_, ", ", p.end_,
        ", ", p.patch_, ", ", p.col_, ", expected four in a row"));
  }
  const int32_t rows = config.llm.embedding_rows + config.llm.extra_rows;
  // Any text can hold any token: one without a row would be found out in the middle of a step.
  if (tokenizer.vocab_size() > rows) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": the tokenizer's largest id is ",
                                                   tokenizer.vocab_size() - 1,
                                                   " but the embedding has ", rows, " rows"));
  }
  // End of answer: <|endoftext|> always, and what the files name besides.
  const auto end = tokenizer.TokenToId("<|endoftext|>");
  if (end) p.stop_ids_.push_back(*end);
  const auto add = [&](const nlohmann::json& id) {
    if (!id.is_number_integer()) return;
    const int32_t stop = id.get<int32_t>();
    if (std::find(p.stop_ids_.begin(), p.stop_ids_.end(), stop) == p.stop_ids_.end()) {
      p.stop_ids_.push_back(stop);
    }
  };
  for (const nlohmann::json* file : {&generation_config, &json}) {
    if (!file->is_object() || !file->contains("eos_token_id")) continue;
    const nlohmann::json& eos = (*file)["eos_token_id"];
    if (eos.is_array()) {
      for (const auto& id : eos) add(id);
    } else {
      add(eos);
    }
  }
  if (p.stop_ids_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": neither <|endoftext|> nor eos_token_id says how an answer ends"));
  }
  for (const int32_t id : p.stop_ids_) {
    if (id < 0 || id >= rows) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": eos_token_id is ", id, " but the embedding has ", rows, " rows"));
    }
  }
  p.bos_ = p.stop_ids_.front();  // BOS is the EOS token
  return p;
}

std::vector<int32_t> MolmoPrompt::Build(std::span<const Turn> turns,
                                        const MolmoImageLayout* image) const {
  std::vector<int32_t> ids = {bos_};
  if (image) {
    for (const ImageToken token : image->tokens) {
      switch (token) {
        case ImageToken::kStart: ids.push_back(start_); break;
        case ImageToken::kPatch: ids.push_back(patch_); break;
        case ImageToken::kCol: ids.push_back(col_); break;
        case ImageToken::kEnd: ids.push_back(end_); break;
      }
    }
  }
  const auto append = [&](const std::string& text) {
    const std::vector<int32_t> piece = tokenizer_->Encode(text);
    ids.insert(ids.end(), piece.begin(), piece.end());
  };
  for (const Turn& turn : turns) {
    if (turn.user) {
      append(absl::StrCat(" User: ", turn.text, " Assistant:"));
    } else {
      append(absl::StrCat(" ", turn.text));
      ids.push_back(bos_);
    }
  }
  return ids;
}

absl::StatusOr<std::unique_ptr<Molmo>> Molmo::Load(const MolmoConfig& config,
                                                   WeightLoader& loader) {
  auto model = std::make_unique<Molmo>();
  model->config = config;
  ASSIGN_OR_RETURN(model->vision, VisionEncoder::Load(config.vision, loader));
  ASSIGN_OR_RETURN(model->llm, LlmDecoder::LoadMolmo(config.llm, loader));
  return model;
}

}  // namespace sensorium
