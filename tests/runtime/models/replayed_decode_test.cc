// Decodes recorded at start and replayed, against the same ones launched op by op: the same bits.
// On the device itself where there is one (cuda_model_backend.cc), else executed by emulation.
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {
namespace {

// Logits of `steps` decodes of three sequences side by side, whose tokens differ.
std::vector<float> Decode(const std::string& model, DType dtype, int32_t steps, bool replay) {
  ModelRunner runner(std::string(SENSORIUM_MODELS) + "/" + model, dtype);
  LoadedModel& m = runner.model();
  EXPECT_TRUE(runner.backend().replays_passes());
  std::vector<BlockTable> tables;
  for (int s = 0; s < 3; ++s) tables.push_back(runner.NewTable());
  std::optional<BlockTable> cross;
  if (m.is_whisper()) {
    cross.emplace(runner.NewTable());
    cross->Grow(m.whisper->config().audio_positions);
    std::vector<int64_t> slots;
    for (int32_t i = 0; i < m.whisper->config().audio_positions; ++i) {
      slots.push_back(cross->Slot(i));
    }
    const std::vector<float> mel(
        static_cast<size_t>(m.whisper->config().window_frames()) * m.whisper->config().mels, 0.1f);
    m.whisper->Encode(mel, m.cross_kv, slots, runner.workspace());
  }
  if (replay) {
    tables[0].Grow(1);
    RecordDecodes(runner.backend(), m, 3, m.max_positions(), tables[0], cross ? &*cross : nullptr,
                  runner.pass_memory());
    EXPECT_FALSE(m.decode_shapes.empty());
  }
  std::vector<float> all;
  const int32_t first = 0;
  for (int32_t position = 0; position < steps; ++position) {
    StepBatch batch;
    std::vector<int32_t> tokens = {5 + position, 70, 9 + 2 * position};
    for (size_t s = 0; s < tables.size(); ++s) {
      tables[s].Grow(position + 1);
      batch.Add({.tokens = std::span(&tokens[s], 1),
                 .first_position = position,
                 .self = &tables[s],
                 .cross = cross ? &*cross : nullptr,
                 .cross_len = cross ? m.whisper->config().audio_positions : 0,
                 .wanted = std::span(&first, 1),
                 .features = {},
                 .feature_rows = {},
                 .feature_offsets = {}});
    }
    const std::vector<float> logits = runner.Forward(batch);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

class ReplayedDecodeTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ReplayedDecodeTest, AReplayGivesTheBitsOfPlainLaunches) {
  const std::vector<float> plain = Decode(GetParam(), DType::kBFloat16, 4, /*replay=*/false);
  const std::vector<float> replayed = Decode(GetParam(), DType::kBFloat16, 4, /*replay=*/true);
  ASSERT_EQ(plain.size(), replayed.size());
  ASSERT_FALSE(plain.empty());
  for (size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(plain[i], replayed[i]) << "logit " << i;
}

INSTANTIATE_TEST_SUITE_P(Models, ReplayedDecodeTest,
                         ::testing::Values("molmo-mini", "whisper-mini"),
                         [](const auto& info) { return std::string(info.param, 5); });

}  // namespace
}  // namespace sensorium
