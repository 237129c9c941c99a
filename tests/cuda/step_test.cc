// What the host does for one step of a model on the emulated CUDA device: launches, copies, waits,
// allocations; and the section of cuda/COSTS.md that says so. Executed by emulation.
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cuda/costs_file.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {
namespace {

const std::string kModels = SENSORIUM_MODELS;

// Sequences of one model that decode or prefill side by side.
class Steps {
 public:
  Steps(const std::string& model, int32_t seqs) : runner_(kModels + "/" + model, DType::kBFloat16) {
    for (int32_t s = 0; s < seqs; ++s) tables_.push_back(runner_.NewTable());
    if (!runner_.model().is_whisper()) return;
    cross_.emplace(runner_.NewTable());
    cross_->Grow(runner_.model().whisper->config().audio_positions);
  }
  // `tokens` more of each, the logits of the last ones.
  void Run(int32_t tokens) {
    const std::vector<int32_t> ids(tokens, 5);
    const int32_t last = tokens - 1;
    StepBatch batch;
    for (BlockTable& table : tables_) {
      table.Grow(position_ + tokens);
      batch.Add({.tokens = ids,
                 .first_position = position_,
                 .self = &table,
                 .cross = cross_ ? &*cross_ : nullptr,
                 .cross_len = cross_ ? runner_.model().whisper->config().audio_positions : 0,
                 .wanted = std::span(&last, 1),
                 .features = {},
                 .feature_rows = {},
                 .feature_offsets = {}});
    }
    position_ += tokens;
    runner_.Forward(batch);
  }

 private:
  ModelRunner runner_;
  std::vector<BlockTable> tables_;
  std::optional<BlockTable> cross_;
  int32_t position_ = 0;
};

TEST(StepTest, AStepAllocatesNothingWaitsOnceAndTheTableTellsTheRest) {
  struct Case {
    const char *model, *what;
    int32_t seqs, tokens;
  };
  std::string table =
      "Of one forward pass, bfloat16, counted by the emulated device (tests/cuda/step_test.cc). "
      "No\n"
      "step allocates, and each waits once, for its logits; the test fails otherwise.\n\n"
      "| model | step | launches | copies to the device | bytes | copies back | bytes | waits |\n"
      "|---|---|---|---|---|---|---|---|\n";
  for (const Case& c :
       {Case{"molmo-mini", "decode of 1", 1, 1}, Case{"molmo-mini", "decode of 8", 8, 1},
        Case{"molmo-mini", "prefill of 40", 1, 40}, Case{"whisper-mini", "decode of 1", 1, 1},
        Case{"whisper-mini", "decode of 8", 8, 1}}) {
    SCOPED_TRACE(std::string(c.model) + ", " + c.what);
    Steps steps(c.model, c.seqs);
    steps.Run(c.tokens);
    const cuda_emu::Counters before = cuda_emu::counters();
    steps.Run(c.tokens);
    const cuda_emu::Counters after = cuda_emu::counters();
    EXPECT_EQ(after.device_allocations, before.device_allocations);
    EXPECT_EQ(after.pinned_allocations, before.pinned_allocations);
    EXPECT_EQ(after.synchronisations - before.synchronisations, 1);
    EXPECT_EQ(after.copies_to_host - before.copies_to_host, 1);
    char row[300];
    std::snprintf(row, sizeof(row), "| %s | %s | %ld | %ld | %ld | %ld | %ld | %ld |\n", c.model,
                  c.what, after.launches - before.launches,
                  after.copies_to_device - before.copies_to_device,
                  after.copied_to_device_bytes - before.copied_to_device_bytes,
                  after.copies_to_host - before.copies_to_host,
                  after.copied_to_host_bytes - before.copied_to_host_bytes,
                  after.synchronisations - before.synchronisations);
    table += row;
  }
  CheckCostsSection("Host work of a step", table);
}

}  // namespace
}  // namespace sensorium
