// What the host does for one step of a model on the emulated CUDA device: launches, copies, waits,
// allocations; and the section of cuda/COSTS.md that says so. Executed by emulation.
#include <cstdio>
#include <optional>
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
  // replay: the decodes are recorded.
  Steps(const std::string& model, int32_t seqs, bool replay)
      : runner_(kModels + "/" + model, DType::kBFloat16) {
    for (int32_t s = 0; s < seqs; ++s) tables_.push_back(runner_.NewTable());
    LoadedModel& m = runner_.model();
    if (m.is_whisper()) {
      cross_.emplace(runner_.NewTable());
      cross_->Grow(m.whisper->config().audio_positions);
    }
    if (!replay) return;
    tables_[0].Grow(1);
    RecordDecodes(runner_.backend(), m, seqs, tables_[0], cross_ ? &*cross_ : nullptr,
                  runner_.pass_memory());
  }
  // `tokens` more of each, and what comes of the last ones' logits.
  void Run(int32_t tokens) {
    const std::vector<int32_t> ids(tokens, 5);
    const int32_t last = tokens - 1;
    StepBatch batch;
    for (BlockTable& table : tables_) {
      table.Grow(position_ + tokens);
      const int32_t row =
          batch.Add({.tokens = ids,
                     .first_position = position_,
                     .self = &table,
                     .cross = cross_ ? &*cross_ : nullptr,
                     .cross_len = cross_ ? runner_.model().whisper->config().audio_positions : 0,
                     .wanted = std::span(&last, 1),
                     .features = {},
                     .feature_rows = {},
                     .feature_offsets = {}});
      TokenChoice choice;
      if (cross_) {
        choice.banned[0] = runner_.model().vocabulary->suppress_tokens;
        choice.timestamp_begin = runner_.model().vocabulary->timestamp_begin;
      }
      batch.Choose(row, choice);
    }
    position_ += tokens;
    runner_.ForwardAndChoose(batch);
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
    bool replay;
  };
  std::string table =
      "Of one forward pass, bfloat16, counted by the emulated device (tests/cuda/step_test.cc). "
      "No\n"
      "step allocates, and each waits once, for its tokens; the test fails otherwise. Replayed: "
      "one\n"
      "launch of a graph that was captured at start, and one copy of the range of its arrays, "
      "which\n"
      "is as large as its longest contexts want. Choosing the tokens is a launch and a copy more.\n"
      "\n"
      "| model | step | launches | kernels in graphs | copies to the device | bytes | copies back "
      "| "
      "bytes | waits |\n"
      "|---|---|---|---|---|---|---|---|---|\n";
  for (const Case& c : {Case{"molmo-mini", "decode of 1", 1, 1, false},
                        Case{"molmo-mini", "decode of 8", 8, 1, false},
                        Case{"molmo-mini", "decode of 1, replayed", 1, 1, true},
                        Case{"molmo-mini", "decode of 8, replayed", 8, 1, true},
                        Case{"molmo-mini", "prefill of 40", 1, 40, true},
                        Case{"whisper-mini", "decode of 1", 1, 1, false},
                        Case{"whisper-mini", "decode of 8", 8, 1, false},
                        Case{"whisper-mini", "decode of 1, replayed", 1, 1, true},
                        Case{"whisper-mini", "decode of 8, replayed", 8, 1, true}}) {
    SCOPED_TRACE(std::string(c.model) + ", " + c.what);
    Steps steps(c.model, c.seqs, c.replay);
    steps.Run(c.tokens);
    const cuda_emu::Counters before = cuda_emu::counters();
    steps.Run(c.tokens);
    const cuda_emu::Counters after = cuda_emu::counters();
    EXPECT_EQ(after.device_allocations, before.device_allocations);
    EXPECT_EQ(after.pinned_allocations, before.pinned_allocations);
    EXPECT_EQ(after.graphs, before.graphs);
    EXPECT_EQ(after.synchronisations - before.synchronisations, 1);
    EXPECT_EQ(after.copies_to_host - before.copies_to_host, 1);
    const int64_t launches = after.launches - before.launches;
    const int64_t graphs = after.graph_launches - before.graph_launches;
    EXPECT_EQ(graphs, c.replay && c.tokens == 1);
    if (graphs == 1) {
      EXPECT_EQ(launches, 1) << "beside the choice of the tokens";
    }
    char row[300];
    std::snprintf(row, sizeof(row), "| %s | %s | %ld | %ld | %ld | %ld | %ld | %ld | %ld |\n",
                  c.model, c.what, launches + graphs,
                  after.launched_graph_kernels - before.launched_graph_kernels,
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
