// What a model's work takes on this device, measured before the first request: the cost model's
// first samples. Runs each kind of work at a few sizes over borrowed blocks, for a second or two at
// most.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/kv_cache/block_allocator.h"
#include "runtime/models/workspace.h"
#include "runtime/scheduler/cost_model.h"

namespace sensorium {

// From the sizes alone, as if the device did 50 GFLOP/s: right to a factor of a hundred on anything
// from a laptop to a GPU, which is what a cost model wants to begin with.
Prices GuessPrices(const LoadedModel& model);

struct CalibrationSpace {
  Backend& backend;
  Workspace& workspace;
  std::byte* logits;         // float32 [max_logit_rows, vocab]
  std::byte* encoder_state;  // LoadedModel::EncoderStateBytes(), null where that is 0
  BlockAllocator& blocks;    // nobody uses it yet
  int32_t max_batch_tokens;
  int32_t max_batch_seqs;
  int32_t max_logit_rows;
};

// Runs the largest passes that a step may ask for: backends that take scratch memory as calls grow
// have all of it afterwards. Before that it records the decodes, where the backend replays passes.
void Rehearse(LoadedModel& model, const CalibrationSpace& space, int32_t max_crops);

// Samples of encodes and forward passes: a window's stages or a crop, prefills and decodes of
// several lengths, as far as blocks and positions reach. Stops after `limit_ms` between two of
// them.
std::vector<Sample> MeasureModel(LoadedModel& model, const CalibrationSpace& space,
                                 int64_t limit_ms = 1500);

}  // namespace sensorium
