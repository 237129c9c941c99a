// One model's forward pass over a step's batch; and where the backend replays passes, the shapes
// that batches of decodes are filled up to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/backend.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/step_batch.h"
#include "runtime/kv_cache/block_table.h"
#include "runtime/models/stage_probe.h"
#include "runtime/models/workspace.h"

namespace sensorium {

struct PassMemory {
  std::byte* logits;  // float32 [the batch's rows of logits, or the most of a shape's, vocab]
  Workspace& workspace;
};

// Queues the pass; its logits [batch.logit_rows(), vocab], float32. A batch of decodes that fits
// one of the model's shapes is filled up to it. `probe` (Molmo's stages): never a recorded pass.
TensorView RunForward(Backend& backend, const LoadedModel& model, StepBatch& batch,
                      const PassMemory& memory, const StageProbe* probe = nullptr);

// Start-up, where the backend replays passes: records the decodes of 1, 2, 4, ... and `max_rows`
// rows, each with contexts of at most 512, 2048, 8192, ... and `max_context` tokens, as
// model.decode_shapes; what cannot be recorded is left out. Each number of rows is run plainly
// first, over a context of one: what a device loads or sets up when a kernel or a library is first
// asked for must not come while a pass is recorded. What is first asked for by a longer context is
// the caller's to run before. `self` and `cross` (Whisper) have room for one token, which is
// overwritten.
void RecordDecodes(Backend& backend, LoadedModel& model, int32_t max_rows, int32_t max_context,
                   const BlockTable& self, const BlockTable* cross, const PassMemory& memory);

}  // namespace sensorium
