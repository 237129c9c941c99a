#include "runtime/engine/engine_memory.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

// Of a model's in the image cache: each step of the engine counts them all.
constexpr size_t kMostPictures = 512;

// 32 random bytes: nobody outside can compute what the caches call a prompt.
ContentHash RandomSecret() {
  ContentHash secret;
  std::random_device random;
  for (uint8_t& byte : secret.bytes) byte = static_cast<uint8_t>(random());
  return secret;
}

}  // namespace

absl::StatusOr<EngineMemory> EngineMemory::Take(const EngineConfig& config, Backend& backend,
                                                Models models) {
  EngineMemory m;
  RETURN_IF_ERROR(m.TakeBlocks(config, backend, models));
  RETURN_IF_ERROR(m.TakeSlots(config, backend, models));
  size_t workspace_bytes = 0;
  int32_t vocab = 0;
  for (const auto& model : models) {
    workspace_bytes = std::max(
        workspace_bytes, model->WorkspaceBytes(config.max_batch_tokens, config.max_encode_units));
    vocab = std::max(vocab, model->vocab_size());
  }
  ASSIGN_OR_RETURN(m.workspace_buffer, backend.Allocate(workspace_bytes));
  m.workspace = Workspace(m.workspace_buffer->data(), workspace_bytes);
  // A decode row asks for one row of logits, the end of a prompt for two at most.
  m.max_logit_rows = 2 * config.max_batch_seqs;
  ASSIGN_OR_RETURN(m.logits, backend.Allocate(sizeof(float) * m.max_logit_rows * vocab));
  return m;
}

// One arena of equal blocks for every kind of KV. The kind with the widest tokens gets block_tokens
// of them in a block; the others as many (in sixteens) as fit.
absl::Status EngineMemory::TakeBlocks(const EngineConfig& config, Backend& backend, Models models) {
  if (config.block_tokens < 16 || config.block_tokens % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_tokens is ", config.block_tokens, ", expected a multiple of 16"));
  }
  std::vector<std::pair<KvCacheView*, KvLayout>> kinds;
  for (const auto& model : models) {
    kinds.push_back({&model->self_kv, model->SelfLayout()});
    if (model->is_whisper()) kinds.push_back({&model->cross_kv, model->CrossLayout()});
  }
  for (auto& [view, layout] : kinds) {
    layout.block_size = config.block_tokens;
    block_bytes = std::max(block_bytes, backend.KvBlockBytes(layout));
  }
  const int64_t num_blocks = static_cast<int64_t>(config.kv_cache_bytes / block_bytes);
  if (num_blocks < 1 || num_blocks > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("kv_cache_bytes is ", config.kv_cache_bytes,
                                                   "; one block takes ", block_bytes));
  }
  ASSIGN_OR_RETURN(arena, backend.Allocate(num_blocks * block_bytes));
  for (auto& [view, layout] : kinds) {
    while (true) {
      KvLayout larger = layout;
      larger.block_size += 16;
      if (backend.KvBlockBytes(larger) > block_bytes) break;
      layout = larger;
    }
    *view = {.arena = arena->data(),
             .block_stride_bytes = block_bytes,
             .num_blocks = static_cast<int32_t>(num_blocks),
             .layout = layout};
  }
  blocks = std::make_unique<BlockAllocator>(static_cast<int32_t>(num_blocks));
  cache = std::make_unique<BlockCache>(
      BlockCacheOptions{
          .max_idle_prefix_blocks = config.prefix_cache ? blocks->total() : 0,
          .max_idle_encoder_blocks = static_cast<int32_t>(std::min<size_t>(
              config.encoder_cache_bytes / block_bytes, static_cast<size_t>(num_blocks)))},
      *blocks);
  return absl::OkStatus();
}

// Image features, and what encoders keep between two stages.
absl::Status EngineMemory::TakeSlots(const EngineConfig& config, Backend& backend, Models models) {
  if (config.encoder_slots < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoder_slots is ", config.encoder_slots, "; it must be at least 1"));
  }
  const ContentHash secret = RandomSecret();
  for (const auto& model : models) {
    model->cache_root =
        ContentHasher().Update(std::span<const uint8_t>(secret.bytes)).Update(model->name).Finish();
    state_bytes = std::max(state_bytes, (model->EncoderStateBytes() + 63) / 64 * 64);
    if (model->is_whisper()) continue;
    const size_t slot_bytes = model->FeatureSlotBytes();
    const auto slots = static_cast<int32_t>(
        std::min<size_t>(config.image_cache_bytes / slot_bytes, kMostPictures));
    if (slots < 1) {
      return absl::InvalidArgumentError(absl::StrCat("image_cache_bytes is ",
                                                     config.image_cache_bytes, "; one picture of ",
                                                     model->name, " takes ", slot_bytes));
    }
    ASSIGN_OR_RETURN(model->feature_arena, backend.Allocate(slots * slot_bytes));
    // Preempted ones in line keep their hold.
    model->feature_cache.emplace(slots, config.max_batch_seqs + config.max_waiting);
  }
  if (state_bytes > 0) {
    ASSIGN_OR_RETURN(encoder_state, backend.Allocate(config.encoder_slots * state_bytes));
  }
  return absl::OkStatus();
}

TensorView EngineMemory::EncoderState(int32_t slot) const {
  if (!encoder_state) return {};
  return {encoder_state->data() + slot * state_bytes,
          DType::kFloat32,
          {static_cast<int64_t>(state_bytes / sizeof(float))}};
}

CalibrationSpace EngineMemory::SpaceForTrials(const EngineConfig& config, Backend& backend) {
  return {.backend = backend,
          .workspace = workspace,
          .logits = logits->data(),
          .encoder_state = encoder_state ? encoder_state->data() : nullptr,
          .blocks = *blocks,
          .max_batch_tokens = config.max_batch_tokens,
          .max_batch_seqs = config.max_batch_seqs,
          .max_logit_rows = max_logit_rows};
}

}  // namespace sensorium
