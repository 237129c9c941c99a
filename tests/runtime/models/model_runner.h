// Runs one loaded model without the engine: the forward passes a test wants, one sequence or
// several at a time, on the backend that the test's binary is linked with.
#pragma once

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/forward_pass.h"
#include "runtime/engine/loaded_model.h"
#include "runtime/engine/step_batch.h"
#include "tests/sanitized.h"

namespace sensorium {

// cpu_model_backend.cc or cuda_emulated_model_backend.cc.
std::unique_ptr<Backend> MakeModelBackend(DType dtype, const std::string& variant);
// Further ways this backend computes on this machine, beside its default "": the CPU's levels.
std::vector<std::string> ModelBackendVariants();
// An emulated device takes a hundred times as long: the same tests run on fewer cases.
extern const bool kModelBackendIsEmulated;
// Under the sanitizers it takes one picture and one window through each family whole, with a few
// tokens behind them.
inline const bool kModelRunsAreShort = kModelBackendIsEmulated && kSanitized;

class ModelRunner {
 public:
  explicit ModelRunner(const std::string& dir, DType dtype = DType::kFloat32,
                       const std::string& variant = "")
      : backend_(MakeModelBackend(dtype, variant)) {
    auto model = LoadedModel::Load("test", dir, *backend_, nullptr);
    CHECK(model.ok()) << model.status();
    model_ = *std::move(model);
    LoadedModel& m = *model_;
    KvLayout layout = m.SelfLayout();
    layout.block_size = 16;
    const size_t block_bytes = backend_->KvBlockBytes(layout);
    constexpr int32_t kBlocks = 400;
    arena_ = *backend_->Allocate(block_bytes * kBlocks);
    // Unwritten slots must never matter.
    const std::vector<float> nan(block_bytes / 4, NAN);
    for (int32_t b = 0; b < kBlocks; ++b) {
      backend_->CopyFromHost({arena_->data() + b * block_bytes,
                              DType::kFloat32,
                              {1, static_cast<int64_t>(nan.size())}},
                             nan);
    }
    m.self_kv = {arena_->data(), block_bytes, kBlocks, layout};
    m.cross_kv = m.self_kv;
    blocks_ = std::make_unique<BlockAllocator>(kBlocks);
    CHECK(blocks_->Reserve(kBlocks));
    workspace_buffer_ = *backend_->Allocate(m.WorkspaceBytes(kMaxTokens, kMaxCrops));
    workspace_ = Workspace(workspace_buffer_->data(), workspace_buffer_->size_bytes());
    logits_buffer_ = *backend_->Allocate(size_t{4} * kMaxTokens * m.vocab_size());
  }

  static constexpr int32_t kMaxTokens = 1600;
  static constexpr int32_t kMaxCrops = 16;

  LoadedModel& model() { return *model_; }
  Backend& backend() { return *backend_; }
  Workspace& workspace() { return workspace_; }
  BlockAllocator& blocks() { return *blocks_; }
  BlockTable NewTable() { return BlockTable(*blocks_, model_->self_kv.layout.block_size); }
  PassMemory pass_memory() { return {.logits = logits_buffer_->data(), .workspace = workspace_}; }
  int32_t vocab() const { return model_->vocab_size(); }

  // What came of the batch's choices; good until the next call.
  std::span<const ChosenToken> ForwardAndChoose(StepBatch& batch) {
    backend_->ChooseTokens(chosen_, Queue(batch, nullptr), batch.choices());
    backend_->Wait();
    return chosen_.all();
  }
  // Logits of the rows asked for, [rows, vocab].
  std::vector<float> Forward(StepBatch& batch, const StageProbe* probe = nullptr) {
    const TensorView logits = Queue(batch, probe);
    std::vector<float> host(logits.elements());
    if (!host.empty()) backend_->CopyToHost(host, logits);
    return host;
  }

  // One sequence's tokens from `first` on, with the logits of the offsets `wanted`.
  std::vector<float> Run(std::span<const int32_t> tokens, int64_t first, BlockTable& table,
                         std::span<const int32_t> wanted, const BlockTable* cross = nullptr) {
    table.Grow(first + static_cast<int64_t>(tokens.size()));
    StepBatch batch;
    batch.Add({.tokens = tokens,
               .first_position = first,
               .self = &table,
               .cross = cross,
               .cross_len = cross ? model_->whisper->config().audio_positions : 0,
               .wanted = wanted,
               .features = {},
               .feature_rows = {},
               .feature_offsets = {}});
    return Forward(batch);
  }

 private:
  TensorView Queue(StepBatch& batch, const StageProbe* probe) {
    for (const BlockCopy& c : batch.copies()) backend_->CopyKvBlock(model_->self_kv, c.to, c.from);
    return RunForward(*backend_, *model_, batch, pass_memory(), probe);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<DeviceBuffer> arena_, workspace_buffer_, logits_buffer_;
  std::unique_ptr<BlockAllocator> blocks_;
  Workspace workspace_;
  ChosenTokens chosen_;
};

// The rows of a float32 array, one behind the other.
std::vector<float> Floats(Backend& backend, ConstTensorView x);

// Reads a test file; fails the test when it is missing.
std::string ReadTestFile(const std::string& path);
nlohmann::json ReadTestJson(const std::string& path);
// A float32 tensor of a stages file, with its shape; int8 copies are not needed here.
struct StageTensor {
  std::vector<int64_t> shape;
  std::vector<float> data;
};
std::map<std::string, StageTensor> ReadStages(const std::string& path);

// Largest difference over the largest magnitude; NaN is infinitely far.
double RelativeError(std::span<const float> got, std::span<const float> want);

}  // namespace sensorium
