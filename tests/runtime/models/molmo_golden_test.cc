// Molmo's three families against the published reference on small random checkpoints (tests/data):
// prompt ids, stages, logits, greedy tokens and their log-probabilities. Then the bundled model.
#include <cmath>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/media/image.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {
namespace {

struct Prompt {
  std::vector<int32_t> ids;
  std::optional<MolmoImageInputs> image;
};

class MolmoCase {
 public:
  MolmoCase(ModelRunner& runner, const std::string& image_path,
            const std::vector<std::string>& turns)
      : runner_(runner), table_(runner.NewTable()) {
    const LoadedModel& m = runner.model();
    if (!image_path.empty()) {
      const std::string bytes = ReadTestFile(image_path);
      auto image = DecodeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, {});
      CHECK(image.ok()) << image.status();
      auto inputs = PreprocessMolmoImage(*image, m.molmo->config.image);
      CHECK(inputs.ok()) << inputs.status();
      image_ = *std::move(inputs);
    }
    std::vector<MolmoPrompt::Turn> conversation;
    for (size_t i = 0; i < turns.size(); ++i) conversation.push_back({i % 2 == 0, turns[i]});
    prompt_ = m.prompt->Build(conversation, image_ ? &image_->layout : nullptr);
  }

  const std::vector<int32_t>& prompt() const { return prompt_; }

  void Encode(const StageProbe* probe = nullptr) {
    if (!image_) return;
    const VisionEncoder& vision = *runner_.model().molmo->vision;
    const int32_t tokens = vision.config().tokens_per_crop();
    for (size_t i = 0; i < image_->layout.token_index.size(); ++i) {
      const int32_t position = image_->layout.token_index[i];
      if (position >= 0) at_[position] = static_cast<int32_t>(at_.size());
    }
    CHECK_EQ(image_->layout.token_index.size(), size_t(tokens) * image_->layout.crops);
    const int64_t hidden = runner_.model().molmo->config.llm.hidden;
    const int64_t kept = static_cast<int64_t>(at_.size());
    buffer_ = *runner_.backend().Allocate(4 * kept * hidden);
    features_ = TensorView(buffer_->data(), DType::kFloat32, {kept, hidden});
    vision.Encode(features_, image_->pixels, image_->masks, image_->layout.token_index,
                  runner_.workspace(), probe);
  }

  // Prompt tokens [begin, end): logits of the offsets wanted.
  std::vector<float> Prefill(int32_t begin, int32_t end, std::span<const int32_t> wanted,
                             const StageProbe* probe = nullptr) {
    std::vector<int32_t> rows, offsets;
    for (const auto& [position, row] : at_) {
      if (position < begin || position >= end) continue;
      rows.push_back(row);
      offsets.push_back(position - begin);
    }
    table_.Grow(end);
    StepBatch batch;
    batch.Add({.tokens = std::span(prompt_).subspan(begin, end - begin),
               .first_position = begin,
               .self = &table_,
               .cross = nullptr,
               .cross_len = 0,
               .wanted = wanted,
               .features = features_,
               .feature_rows = rows,
               .feature_offsets = offsets});
    return runner_.Forward(batch, probe);
  }
  std::vector<float> PrefillAll(const StageProbe* probe = nullptr) {
    const int32_t n = static_cast<int32_t>(prompt_.size());
    const int32_t last = n - 1;
    return Prefill(0, n, {&last, 1}, probe);
  }

  // Greedy tokens after logits of the last prompt token, up to `limit` or a stop id (included).
  std::vector<int32_t> Greedy(std::vector<float> logits, size_t limit,
                              std::vector<float>* logprobs = nullptr) {
    std::vector<int32_t> ids;
    const auto& stops = runner_.model().prompt->stop_ids();
    const int32_t wanted = 0;
    while (true) {
      const auto best = std::max_element(logits.begin(), logits.end());
      ids.push_back(static_cast<int32_t>(best - logits.begin()));
      if (logprobs) {  // log(1 / sum of exp(x - max))
        double sum = 0;
        for (const float x : logits) sum += std::exp(double{x} - *best);
        logprobs->push_back(static_cast<float>(-std::log(sum)));
      }
      if (ids.size() == limit || std::count(stops.begin(), stops.end(), ids.back())) return ids;
      logits = runner_.Run({&ids.back(), 1}, static_cast<int64_t>(prompt_.size() + ids.size()) - 1,
                           table_, {&wanted, 1});
    }
  }

 private:
  ModelRunner& runner_;
  BlockTable table_;
  std::optional<MolmoImageInputs> image_;
  std::vector<int32_t> prompt_;
  std::map<int32_t, int32_t> at_;  // prompt position -> feature row
  std::unique_ptr<DeviceBuffer> buffer_;
  TensorView features_;
};

// Rows first, first + step, ... of each group of `group` rows.
std::vector<float> Thin(const std::vector<float>& x, int64_t columns, int64_t group, int64_t step) {
  std::vector<float> y;
  const int64_t rows = static_cast<int64_t>(x.size()) / columns;
  for (int64_t r = 0; r < rows; ++r) {
    if (r % group % step != 0) continue;
    y.insert(y.end(), x.begin() + r * columns, x.begin() + (r + 1) * columns);
  }
  return y;
}

std::vector<int32_t> WantedTokens(const nlohmann::json& golden) {
  auto ids = golden["greedy_ids"].get<std::vector<int32_t>>();
  if (kModelRunsAreShort) ids.resize(std::min<size_t>(ids.size(), 4));
  return ids;
}

class MolmoGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  const std::string dir_ = std::string(SENSORIUM_TEST_DATA) + "/" + GetParam();
};

TEST_P(MolmoGoldenTest, GreedyTokensAndLogitsAreTheReferences) {
  ModelRunner runner(dir_);
  for (const auto& golden : ReadTestJson(dir_ + "/cases.json")) {
    const std::string name = golden["name"];
    if (kModelBackendIsEmulated && name != "square" && (kModelRunsAreShort || name != "text-only"))
      continue;
    SCOPED_TRACE(name);
    MolmoCase c(runner,
                golden["image"].is_null() ? "" : dir_ + "/" + golden["image"].get<std::string>(),
                golden["turns"].get<std::vector<std::string>>());
    ASSERT_EQ(c.prompt(), golden["prompt_ids"].get<std::vector<int32_t>>());
    c.Encode();
    const std::vector<float> logits = c.PrefillAll();
    double sum = 0;
    for (const float x : logits) sum += x;
    EXPECT_NEAR(sum, golden["last_logits_sum"].get<double>(), 2e-3);
    for (const auto& top : golden["last_logits_top8"]) {
      EXPECT_NEAR(logits[top[0].get<int32_t>()], top[1].get<double>(), 5e-5) << top[0];
    }
    std::vector<float> logprobs;
    const auto want = WantedTokens(golden);
    ASSERT_EQ(c.Greedy(logits, want.size(), &logprobs), want);
    const auto want_logprobs = golden["greedy_logprobs"].get<std::vector<double>>();
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(logprobs[i], want_logprobs[i], 1e-4) << "token " << i;
    }
  }
}

TEST_P(MolmoGoldenTest, EveryStageOfTheSquarePictureIsTheReferences) {
  if (kModelRunsAreShort) GTEST_SKIP() << "the tokens need every stage";
  ModelRunner runner(dir_);
  const auto golden = ReadTestJson(dir_ + "/cases.json")[0];
  ASSERT_EQ(golden["name"], "square");
  MolmoCase c(runner, dir_ + "/" + golden["image"].get<std::string>(),
              golden["turns"].get<std::vector<std::string>>());
  std::map<std::string, std::vector<float>> seen;
  std::map<std::string, int64_t> columns;
  const StageProbe probe = [&](std::string_view stage, ConstTensorView x) {
    seen[std::string(stage)] = Floats(runner.backend(), x);
    columns[std::string(stage)] = x.row_elements();
  };
  c.Encode(&probe);
  std::vector<int32_t> all(c.prompt().size());
  std::iota(all.begin(), all.end(), 0);
  const std::vector<float> logits = c.Prefill(0, static_cast<int32_t>(all.size()), all, &probe);
  const VisionConfig& vision = runner.model().molmo->config.vision;
  const int64_t crop_tokens = vision.tokens_per_crop();
  const int64_t positions = static_cast<int64_t>(all.size());
  std::map<std::string, std::vector<float>> got = {
      {"vit_features_every16th_patch",
       Thin(seen["vit_features"], columns["vit_features"], vision.patches(), 16)},
      {"pooled", Thin(seen["pooled"], columns["pooled"], crop_tokens, 4)},
      {"image_features_every4th",
       Thin(seen["image_features"], columns["image_features"], crop_tokens, 4)},
      {"embeddings_every8th_position",
       Thin(seen["embeddings"], columns["embeddings"], positions, 8)},
      {"logits_every8th_position", Thin(logits, runner.vocab(), positions, 8)},
      {"logits_last", std::vector<float>(logits.end() - runner.vocab(), logits.end())},
  };
  for (int i = 0; i < runner.model().molmo->config.llm.layers; ++i) {
    const std::string name = "block" + std::to_string(i);
    got[name + "_every8th_position"] = Thin(seen[name], columns[name], positions, 8);
  }
  const auto stages = ReadStages(dir_ + "/stages-square.safetensors");
  ASSERT_FALSE(stages.empty());
  for (const auto& [name, want] : stages) {
    ASSERT_TRUE(got.contains(name)) << name;
    ASSERT_EQ(got[name].size(), want.data.size()) << name;
    EXPECT_LT(RelativeError(got[name], want.data), 2e-5) << name;
  }
}

TEST_P(MolmoGoldenTest, EveryLevelGivesTheReferencesTokens) {
  if (ModelBackendVariants().empty()) GTEST_SKIP() << "a device has one level";
  const auto golden = ReadTestJson(dir_ + "/cases.json")[0];
  const auto stages = ReadStages(dir_ + "/stages-square.safetensors");
  for (const std::string& level : ModelBackendVariants()) {
    SCOPED_TRACE(level);
    ModelRunner runner(dir_, DType::kFloat32, level);
    MolmoCase c(runner, dir_ + "/" + golden["image"].get<std::string>(),
                golden["turns"].get<std::vector<std::string>>());
    c.Encode();
    const std::vector<float> logits = c.PrefillAll();
    EXPECT_LT(RelativeError(logits, stages.at("logits_last").data), 2e-5);
    const auto want = golden["greedy_ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(c.Greedy(logits, want.size()), want);
  }
}

TEST_P(MolmoGoldenTest, PrefillInChunksOfAnyLengthGivesTheSameBits) {
  ModelRunner runner(dir_);
  const auto golden = ReadTestJson(dir_ + "/cases.json")[kModelBackendIsEmulated ? 3 : 0];
  const auto turns = golden["turns"].get<std::vector<std::string>>();
  const std::string image =
      golden["image"].is_null() ? "" : dir_ + "/" + golden["image"].get<std::string>();
  std::vector<float> whole;
  {
    MolmoCase c(runner, image, turns);
    c.Encode();
    whole = c.PrefillAll();
  }
  for (const int32_t chunk : {1, 7, 64, 100}) {
    if (kModelRunsAreShort && chunk != 7) continue;
    MolmoCase c(runner, image, turns);
    c.Encode();
    const int32_t n = static_cast<int32_t>(c.prompt().size());
    std::vector<float> last;
    for (int32_t begin = 0; begin < n; begin += chunk) {
      const int32_t end = std::min(n, begin + chunk);
      const int32_t wanted = end - begin - 1;
      last = c.Prefill(begin, end, {&wanted, 1});
    }
    EXPECT_EQ(last, whole) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MolmoGoldenTest,
                         testing::Values("molmo-dense", "molmo-postnorm", "molmo-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MolmoMiniTest, AnswersEveryBundledQuestionTokenByToken) {
  if (kForRaces && kModelBackendIsEmulated) {
    GTEST_SKIP() << "cuda_engine_test runs the bundled model there";
  }
  const std::string dir = std::string(SENSORIUM_MODELS) + "/molmo-mini";
  ModelRunner runner(dir);
  const Tokenizer& tokenizer = *runner.model().tokenizer;
  int asked = 0;
  for (const auto& golden : ReadTestJson(dir + "/answers.json")) {
    if (kModelBackendIsEmulated && ++asked > (kSanitized ? 1 : 2)) break;
    SCOPED_TRACE(golden["image"].get<std::string>() + ": " + golden["question"].get<std::string>());
    MolmoCase c(runner, dir + "/" + golden["image"].get<std::string>(),
                {golden["question"].get<std::string>()});
    ASSERT_EQ(c.prompt(), golden["prompt_ids"].get<std::vector<int32_t>>());
    c.Encode();
    const auto want = WantedTokens(golden);
    const std::vector<int32_t> ids = c.Greedy(c.PrefillAll(), want.size());
    EXPECT_EQ(ids, want);
    if (want.size() < golden["greedy_ids"].size()) continue;
    std::string text = tokenizer.Decode(ids, /*skip_special=*/true);
    if (!text.empty() && text[0] == ' ') text.erase(0, 1);
    EXPECT_EQ(text, golden["answer"].get<std::string>());
  }
}

}  // namespace
}  // namespace sensorium
