// All that the engine takes of the device, at once and at start: KV blocks, the models' workspace,
// logits, pictures' features and half-encoded audio. Nobody asks for more later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/calibration.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/kv_cache/block_allocator.h"
#include "runtime/kv_cache/block_cache.h"
#include "runtime/models/workspace.h"

namespace sensorium {

struct EngineMemory {
  using Models = std::span<const std::unique_ptr<LoadedModel>>;

  // Sets up the models' KV views, feature slots and cache names too. INVALID_ARGUMENT names the
  // config key, RESOURCE_EXHAUSTED both numbers. `backend` outlives it.
  static absl::StatusOr<EngineMemory> Take(const EngineConfig& config, Backend& backend,
                                           Models models);

  std::unique_ptr<DeviceBuffer> arena;  // [blocks] of block_bytes
  size_t block_bytes = 0;
  std::unique_ptr<BlockAllocator> blocks;
  std::unique_ptr<BlockCache> cache;  // over `blocks`

  std::unique_ptr<DeviceBuffer> workspace_buffer;
  Workspace workspace;
  std::unique_ptr<DeviceBuffer> logits;  // float32 [max_logit_rows, the largest vocab]
  int32_t max_logit_rows = 0;

  // What an audio encoder keeps from one stage to the next; empty where no model has stages.
  TensorView EncoderState(int32_t slot) const;
  std::unique_ptr<DeviceBuffer> encoder_state;  // [encoder_slots] of state_bytes
  size_t state_bytes = 0;

  // For trials before the first request.
  CalibrationSpace SpaceForTrials(const EngineConfig& config, Backend& backend);

 private:
  absl::Status TakeBlocks(const EngineConfig& config, Backend& backend, Models models);
  absl::Status TakeSlots(const EngineConfig& config, Backend& backend, Models models);
};

}  // namespace sensorium
