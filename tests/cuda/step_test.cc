// What the host does for one step of a model on the emulated CUDA device, forward pass or encode:
// launches, copies, waits, allocations; and the section of cuda/COSTS.md that says so. Executed by
// emulation.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/engine/device_media.h"
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
    RecordDecodes(runner_.backend(), m, seqs, m.max_positions(), tables_[0],
                  cross_ ? &*cross_ : nullptr, runner_.pass_memory());
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

// A model whose media the device makes, and what a step that encodes does.
class Media {
 public:
  explicit Media(const std::string& model)
      : runner_(kModels + "/" + model, DType::kBFloat16), table_(runner_.NewTable()) {
    LoadedModel& m = runner_.model();
    m.MakeMediaOn(*backend().media_ops());
    state_ = *backend().Allocate(m.EncoderStateBytes());
    if (m.is_whisper()) {
      const WhisperConfig& c = m.whisper->config();
      table_.Grow(c.audio_positions);
      for (int32_t i = 0; i < c.audio_positions; ++i) slots_.push_back(table_.Slot(i));
      const int64_t samples = int64_t{c.window_frames()} * m.log_mel->hop();
      unheard_.emplace(std::vector<float>(samples, 0.1f), 0, *m.log_mel_tables, c.window_frames());
      return;
    }
    m.feature_arena = *backend().Allocate(m.FeatureSlotBytes());
    const MolmoImageConfig& config = m.molmo->config.image;
    const auto layout = LayOutMolmoImage(kWidth, kHeight, config);
    CHECK(layout.ok()) << layout.status();
    picture_.emplace(RgbImage{kWidth, kHeight, std::vector<uint8_t>(3 * kWidth * kHeight, 90)},
                     *layout, config);
  }
  Backend& backend() { return runner_.backend(); }

  // All that a window's job hears in a step, and all stages of the window behind it.
  void ListenAndEncode() {
    LoadedModel& m = runner_.model();
    const WhisperConfig& c = m.whisper->config();
    std::byte* place = m.RecordingState(state_->data());
    recording_ = unheard_;
    recording_->Listen(*m.media, recording_->units_left(), place);
    const TensorView x(state_->data(), DType::kFloat32, {c.audio_positions, c.hidden});
    const auto mel = [&](TensorView y) { recording_->LogMel(*m.media, y, 0, y.rows(), place); };
    m.whisper->EncodeStages(0, m.UnitsPerWindow(), x, mel, m.cross_kv, slots_, runner_.workspace());
  }
  void Listen() {
    LoadedModel& m = runner_.model();
    recording_ = unheard_;
    recording_->Listen(*m.media, recording_->units_left(), m.RecordingState(state_->data()));
  }
  void Resize() { picture_->Resize(*runner_.model().media, 0, picture_->units(), state_->data()); }
  void EncodeCrop() {
    LoadedModel& m = runner_.model();
    const VisionConfig& v = m.molmo->vision->config();
    const std::vector<float> masks(v.patches(), 1.0f);
    const std::vector<int32_t> index(v.tokens_per_crop(), 0);
    const auto cut = [&](TensorView pixels) {
      picture_->CutCrops(*m.media, 0, state_->data(), pixels);
    };
    m.molmo->vision->Encode(m.FeatureSlot(0).Rows(0, v.tokens_per_crop()), cut, masks, index,
                            runner_.workspace());
  }

 private:
  static constexpr int32_t kWidth = 1500, kHeight = 1100;  // two strips of 4 MiB

  ModelRunner runner_;
  BlockTable table_;
  std::unique_ptr<DeviceBuffer> state_;
  std::vector<int64_t> slots_;
  std::optional<DeviceRecording> unheard_, recording_;
  std::optional<DevicePicture> picture_;
};

struct MediaCase {
  std::string model, what;
  void (*run)(Media&);
};
std::vector<MediaCase> MediaCases() {
  return {{"whisper-mini", "listening to 30 s", [](Media& m) { m.Listen(); }},
          {"whisper-mini", "listening, and a window", [](Media& m) { m.ListenAndEncode(); }},
          {"molmo-mini", "resize of 1500 x 1100", [](Media& m) { m.Resize(); }},
          {"molmo-mini", "a crop", [](Media& m) { m.EncodeCrop(); }}};
}

// The table's row of a step, which took no memory and waited once.
std::string Row(const std::string& what, const cuda_emu::Counters& before,
                const cuda_emu::Counters& after) {
  EXPECT_EQ(after.device_allocations, before.device_allocations);
  EXPECT_EQ(after.pinned_allocations, before.pinned_allocations);
  EXPECT_EQ(after.graphs, before.graphs);
  EXPECT_EQ(after.synchronisations - before.synchronisations, 1);
  char row[300];
  std::snprintf(row, sizeof(row), "| %s | %ld | %ld | %ld | %ld | %ld | %ld | %ld |\n",
                what.c_str(),
                after.launches - before.launches + after.graph_launches - before.graph_launches,
                after.launched_graph_kernels - before.launched_graph_kernels,
                after.copies_to_device - before.copies_to_device,
                after.copied_to_device_bytes - before.copied_to_device_bytes,
                after.copies_to_host - before.copies_to_host,
                after.copied_to_host_bytes - before.copied_to_host_bytes,
                after.synchronisations - before.synchronisations);
  return row;
}

TEST(StepTest, AStepAllocatesNothingWaitsOnceAndTheTableTellsTheRest) {
  struct Case {
    const char *model, *what;
    int32_t seqs, tokens;
    bool replay;
  };
  std::string table =
      "Of one forward pass or encode, bfloat16, counted by the emulated device "
      "(tests/cuda/step_test.cc). "
      "No\n"
      "step allocates, and each waits once, for all it asked for; the test fails otherwise. "
      "Replayed: "
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
    EXPECT_EQ(after.copies_to_host - before.copies_to_host, 1);
    const int64_t graphs = after.graph_launches - before.graph_launches;
    EXPECT_EQ(graphs, c.replay && c.tokens == 1);
    if (graphs == 1) {
      EXPECT_EQ(after.launches - before.launches, 1) << "beside the choice of the tokens";
    }
    table += Row(std::string(c.model) + " | " + c.what, before, after);
  }
  for (const MediaCase& c : MediaCases()) {
    SCOPED_TRACE(c.model + ", " + c.what);
    Media media(c.model);
    c.run(media);  // everything is there from here on
    media.backend().Wait();
    const cuda_emu::Counters before = cuda_emu::counters();
    c.run(media);
    media.backend().Wait();
    table += Row(c.model + " | " + c.what, before, cuda_emu::counters());
  }
  CheckCostsSection("Host work of a step", table);
}

}  // namespace
}  // namespace sensorium
