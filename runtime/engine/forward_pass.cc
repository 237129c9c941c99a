#include "runtime/engine/forward_pass.h"

#include <span>
#include <utility>
#include <vector>

namespace sensorium {
namespace {

// An attention's launch grows with the longest context of its shape, so one shape for all would
// make short contexts pay; four times as much from one to the next keeps them few.
constexpr int32_t kFirstContext = 512, kContextFactor = 4;

// first, first * factor, ... below `most`, and `most`.
std::vector<int32_t> Sizes(int64_t first, int64_t factor, int32_t most) {
  std::vector<int32_t> sizes;
  for (int64_t size = first; size < most; size *= factor) {
    sizes.push_back(static_cast<int32_t>(size));
  }
  sizes.push_back(most);
  return sizes;
}

void Fill(const LoadedModel& model, const DecodeShape& shape, StepBatch& batch) {
  const auto blocks = [](int32_t tokens, const KvCacheView& kv) {
    return BlockTable::BlocksFor(tokens, kv.layout.block_size);
  };
  batch.FillUp(
      shape.rows, blocks(shape.context, model.self_kv),
      model.is_whisper() ? blocks(model.whisper->config().audio_positions, model.cross_kv) : 0);
}

// The least one that holds the batch; null: none, or the batch is not one of decodes.
const DecodeShape* ShapeFor(const LoadedModel& model, const StepBatch& batch) {
  if (!batch.only_decodes()) return nullptr;
  for (const DecodeShape& shape : model.decode_shapes) {
    if (batch.rows() <= shape.rows && batch.max_context() <= shape.context) return &shape;
  }
  return nullptr;
}

void QueueForward(const LoadedModel& model, StepBatch& batch, TensorView logits,
                  const DecoderBatch& decoder, const AttentionBatch& cross, Workspace& workspace,
                  const StageProbe* probe) {
  if (model.is_whisper()) {
    model.whisper->Forward(logits, decoder, model.self_kv, cross, model.cross_kv, workspace);
  } else {
    model.molmo->llm->Forward(logits, decoder, batch.FeatureAdds(), model.self_kv, workspace,
                              probe);
  }
}

}  // namespace

TensorView RunForward(Backend& backend, const LoadedModel& model, StepBatch& batch,
                      const PassMemory& memory, const StageProbe* probe) {
  const int32_t rows = batch.logit_rows();
  const DecodeShape* shape = probe == nullptr ? ShapeFor(model, batch) : nullptr;
  if (shape != nullptr) Fill(model, *shape, batch);
  const DecoderBatch decoder = batch.Decoder();
  const AttentionBatch cross = model.is_whisper() ? batch.Cross() : AttentionBatch{};
  const TensorView logits(memory.logits, DType::kFloat32,
                          {static_cast<int64_t>(decoder.logit_rows.size()), model.vocab_size()});
  const auto ops = [&] {
    QueueForward(model, batch, logits, decoder, cross, memory.workspace, probe);
  };
  if (shape != nullptr) {
    backend.Pass({.model = &model, .rows = shape->rows, .context = shape->context}, ops);
  } else {
    ops();
  }
  return logits.Rows(0, rows);
}

void RecordDecodes(Backend& backend, LoadedModel& model, int32_t max_rows, int32_t max_context,
                   const BlockTable& self, const BlockTable* cross, const PassMemory& memory) {
  if (!backend.replays_passes()) return;
  const int32_t token = 0, wanted = 0;
  for (const int32_t rows : Sizes(1, 2, max_rows)) {
    bool rehearsed = false;
    for (const int32_t context : Sizes(kFirstContext, kContextFactor, max_context)) {
      const DecodeShape shape = {.rows = rows, .context = context};
      StepBatch batch;
      batch.Add({.tokens = std::span(&token, 1),
                 .first_position = 0,
                 .self = &self,
                 .cross = cross,
                 .cross_len = cross != nullptr ? 1 : 0,
                 .wanted = std::span(&wanted, 1),
                 .features = {},
                 .feature_rows = {},
                 .feature_offsets = {}});
      Fill(model, shape, batch);
      const DecoderBatch decoder = batch.Decoder();
      const AttentionBatch cross_batch = cross != nullptr ? batch.Cross() : AttentionBatch{};
      const TensorView logits(memory.logits, DType::kFloat32, {shape.rows, model.vocab_size()});
      const auto ops = [&] {
        QueueForward(model, batch, logits, decoder, cross_batch, memory.workspace, nullptr);
      };
      if (!std::exchange(rehearsed, true)) {
        ops();
        backend.Wait();
      }
      const bool recorded =
          backend.RecordPass({.model = &model, .rows = shape.rows, .context = shape.context}, ops);
      if (recorded) model.decode_shapes.push_back(shape);
    }
  }
}

}  // namespace sensorium
