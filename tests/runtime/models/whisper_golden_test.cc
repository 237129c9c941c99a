// Whisper against openai/whisper on small random checkpoints in the layouts of large-v3 and the .en
// models (tests/data): mel, encoder positions, logits of a forced prompt, and every decode() run.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "gtest/gtest.h"
#include "runtime/media/audio.h"
#include "runtime/models/whisper_transcription.h"
#include "runtime/models/whisper_window_decoder.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {
namespace {

constexpr int32_t kShortTokens = 6;

class WhisperGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (kForRaces && kModelBackendIsEmulated && GetParam() == std::string("whisper-en")) {
      GTEST_SKIP() << "the kernels of whisper-v3";
    }
    Open("");
  }
  void Open(const std::string& variant) {
    cross_.reset();
    runner_.reset();
    runner_.emplace(dir_, DType::kFloat32, variant);
    LoadedModel& m = runner_->model();
    golden_ = ReadTestJson(dir_ + "/cases.json");
    const std::string bytes = ReadTestFile(dir_ + "/" + golden_["audio"].get<std::string>());
    auto samples = DecodeAudio({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, {});
    ASSERT_TRUE(samples.ok()) << samples.status();
    // decode() sees the recording padded with silence to a whole window.
    const int64_t window = m.info.window_ms * kAudioSampleRate / 1000;
    mel_ = m.log_mel->Compute(*samples, window - static_cast<int64_t>(samples->size()));
    ASSERT_EQ(mel_.frames, m.whisper->config().window_frames());
    cross_.emplace(runner_->NewTable());
    cross_->Grow(m.whisper->config().audio_positions);
  }
  void Encode(const StageProbe* probe = nullptr) {
    LoadedModel& m = runner_->model();
    std::vector<int64_t> slots(m.whisper->config().audio_positions);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = cross_->Slot(static_cast<int64_t>(i));
    m.whisper->Encode(mel_.data, m.cross_kv, slots, runner_->workspace(), probe);
  }

  // Runs one window's decoder over the network, hypotheses in their own block tables.
  WhisperWindowResult Decode(WhisperWindowDecoder& decoder) {
    const int32_t audio_positions = runner_->model().whisper->config().audio_positions;
    const std::vector<int32_t>& prompt = decoder.prompt();
    const int32_t last = static_cast<int32_t>(prompt.size()) - 1;
    std::vector<int32_t> wanted = {decoder.sot_index()};
    if (last != wanted[0]) wanted.push_back(last);
    std::vector<BlockTable> rows;
    rows.push_back(runner_->NewTable());
    rows[0].Grow(static_cast<int64_t>(prompt.size()));
    {
      StepBatch batch;
      batch.Add({.tokens = prompt,
                 .first_position = 0,
                 .self = &rows[0],
                 .cross = &*cross_,
                 .cross_len = audio_positions,
                 .wanted = wanted,
                 .features = {},
                 .feature_rows = {},
                 .feature_offsets = {}});
      batch.Choose(0, decoder.StartChoice());
      for (const TokenChoice& choice : decoder.Choices()) {
        batch.Choose(batch.logit_rows() - 1, choice);
      }
      const auto chosen = runner_->ForwardAndChoose(batch);
      decoder.ReadStart(chosen[0]);
      decoder.Advance(chosen.subspan(1));
    }
    int64_t position = last + 1;
    while (!decoder.done()) {
      const auto next = decoder.next();
      StepBatch batch;
      std::vector<BlockTable> forked;
      for (const auto& n : next) {
        forked.push_back(rows[n.parent].Fork(position, batch.copies()));
      }
      rows = std::move(forked);
      const int32_t first = 0;
      for (size_t r = 0; r < next.size(); ++r) {
        rows[r].Grow(position + 1);
        batch.Add({.tokens = std::span(&next[r].token, 1),
                   .first_position = position,
                   .self = &rows[r],
                   .cross = &*cross_,
                   .cross_len = audio_positions,
                   .wanted = std::span(&first, 1),
                   .features = {},
                   .feature_rows = {},
                   .feature_offsets = {}});
      }
      for (const TokenChoice& choice : decoder.Choices()) batch.Choose(0, choice);
      decoder.Advance(runner_->ForwardAndChoose(batch));
      ++position;
    }
    return decoder.Result();
  }

  const std::string dir_ = std::string(SENSORIUM_TEST_DATA) + "/" + GetParam();
  std::optional<ModelRunner> runner_;
  nlohmann::json golden_;
  MelSpectrogram mel_;
  std::optional<BlockTable> cross_;
};

TEST_P(WhisperGoldenTest, MelEncoderAndForcedLogitsAreTheReferences) {
  if (kModelRunsAreShort) GTEST_SKIP() << "the tokens need every stage";
  const auto stages = ReadStages(dir_ + "/stages.safetensors");
  const int32_t mels = mel_.mels;
  double sum = 0;
  for (const float x : mel_.data) sum += x;
  EXPECT_NEAR(sum, golden_["mel"]["sum"].get<double>(), 0.5);
  {
    const StageTensor& want = stages.at("mel_first_600_frames");  // [mels, 600]
    std::vector<float> got;
    for (int32_t m = 0; m < mels; ++m) {
      for (int64_t f = 0; f < 600; ++f) got.push_back(mel_.data[f * mels + m]);
    }
    EXPECT_LT(RelativeError(got, want.data), 1e-4);
  }
  std::vector<float> encoder;
  const StageProbe probe = [&](std::string_view, ConstTensorView x) {
    const std::vector<float> all = Floats(runner_->backend(), x);
    for (int64_t r = 0; r < x.rows(); r += 25) {
      const auto row = all.begin() + r * x.row_elements();
      encoder.insert(encoder.end(), row, row + x.row_elements());
    }
  };
  Encode(&probe);
  EXPECT_LT(RelativeError(encoder, stages.at("encoder_every25th_position").data), 1e-4);

  const auto prompt = golden_["forced_prompt"].get<std::vector<int32_t>>();
  std::vector<int32_t> wanted(prompt.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  BlockTable table = runner_->NewTable();
  const std::vector<float> logits = runner_->Run(prompt, 0, table, wanted, &*cross_);
  EXPECT_LT(RelativeError(logits, stages.at("logits").data), 1e-4);
}

TEST_P(WhisperGoldenTest, EveryLevelGivesTheReferencesForcedLogits) {
  if (ModelBackendVariants().empty()) GTEST_SKIP() << "a device has one level";
  const auto stages = ReadStages(dir_ + "/stages.safetensors");
  const auto prompt = golden_["forced_prompt"].get<std::vector<int32_t>>();
  std::vector<int32_t> wanted(prompt.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  for (const std::string& level : ModelBackendVariants()) {
    SCOPED_TRACE(level);
    Open(level);
    Encode();
    BlockTable table = runner_->NewTable();
    const std::vector<float> logits = runner_->Run(prompt, 0, table, wanted, &*cross_);
    EXPECT_LT(RelativeError(logits, stages.at("logits").data), 1e-4);
  }
}

TEST_P(WhisperGoldenTest, EveryDecodeRunGivesTheReferencesTokens) {
  LoadedModel& m = runner_->model();
  const WhisperVocabulary& vocabulary = *m.vocabulary;
  const WhisperConfig& config = m.whisper->config();
  Encode();
  const int wanted_runs = kModelRunsAreShort        ? 1
                          : kModelBackendIsEmulated ? 3
                          : vocabulary.multilingual ? 12
                                                    : 9;
  int runs = 0;
  for (const auto& run : golden_["decode"]) {
    if (runs == wanted_runs) break;
    const auto& given = run["options"];
    SCOPED_TRACE(given.dump());
    WhisperTranscriptionOptions t;
    t.window_frames = config.window_frames();
    t.window_seconds = static_cast<double>(m.info.window_ms) / 1000.0;
    t.content_frames = config.window_frames();
    t.text_context = config.text_positions;
    t.translate = given.value("task", "transcribe") == "translate";
    t.timestamps = !given.value("without_timestamps", false);
    t.prompt = given.value("prompt", "");
    t.prefix = given.value("prefix", "");
    t.sample_len = kModelRunsAreShort ? kShortTokens : given["sample_len"].get<int32_t>();
    if (vocabulary.multilingual) {
      if (given["language"].is_null()) {
        BlockTable table = runner_->NewTable();
        const int32_t first = 0;
        const auto logits = runner_->Run({&vocabulary.sot, 1}, 0, table, {&first, 1}, &*cross_);
        std::vector<float> of_languages;
        for (const auto& [code, id] : vocabulary.languages) of_languages.push_back(logits[id]);
        const auto detected = DetectLanguage(of_languages, vocabulary);
        t.language_id = detected.id;
        EXPECT_EQ(detected.code, run["language"].get<std::string>());
        // Best first: of all languages, as DetectLanguage weighs them.
        std::vector<std::pair<double, std::string>> all;
        double sum = 0;
        for (const auto& [code, id] : vocabulary.languages) {
          all.push_back({std::exp(double{logits[id]}), code});
          sum += all.back().first;
        }
        std::sort(all.rbegin(), all.rend());
        const auto& top = run["language_probs_top5"];
        ASSERT_EQ(top.size(), 5u);
        EXPECT_NEAR(detected.probability, top[0][1].get<double>(), 1e-5);
        for (size_t i = 0; i < top.size(); ++i) {
          EXPECT_EQ(all[i].second, top[i][0].get<std::string>());
          EXPECT_NEAR(all[i].first / sum, top[i][1].get<double>(), 1e-5);
        }
      } else {
        t.language_id = vocabulary.LanguageId(given["language"].get<std::string>());
        ASSERT_TRUE(t.language_id.has_value());
      }
    }
    WhisperTranscription transcription(vocabulary, *m.tokenizer, t);
    const auto window = transcription.NextWindow();
    ASSERT_TRUE(window.has_value());
    WhisperWindowOptions o;
    o.beam_size = given.value("beam_size", 0);
    o.patience = given.value("patience", 0.0f);
    if (given.contains("length_penalty")) o.length_penalty = given["length_penalty"].get<float>();
    o.sample_len = t.sample_len;
    o.without_timestamps = !t.timestamps;
    if (given.value("suppress_tokens", "-1") == "-1") o.suppress = vocabulary.suppress_tokens;
    o.suppress_blank = given.value("suppress_blank", true);
    const double max_initial = given.value("max_initial_timestamp", 1.0);
    o.max_initial_timestamp_index = static_cast<int32_t>(std::lround(max_initial / 0.02));
    WhisperWindowDecoder decoder(vocabulary, *m.tokenizer, o, window->prompt, window->sot_index,
                                 config.text_positions);
    const WhisperWindowResult result = Decode(decoder);
    ++runs;
    auto want = run["tokens"].get<std::vector<int32_t>>();
    if (kModelRunsAreShort) want.resize(kShortTokens);  // a greedy run: the same ones, only fewer
    EXPECT_EQ(result.tokens, want);
    EXPECT_NEAR(result.no_speech_prob, run["no_speech_prob"].get<double>(), 1e-6);
    if (kModelRunsAreShort) continue;
    EXPECT_EQ(result.text, run["text"].get<std::string>());
    EXPECT_NEAR(result.avg_logprob, run["avg_logprob"].get<double>(), 1e-4);
    EXPECT_NEAR(result.compression_ratio, run["compression_ratio"].get<double>(), 1e-5);
  }
  EXPECT_EQ(runs, wanted_runs);
}

INSTANTIATE_TEST_SUITE_P(Layouts, WhisperGoldenTest, testing::Values("whisper-v3", "whisper-en"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace sensorium
