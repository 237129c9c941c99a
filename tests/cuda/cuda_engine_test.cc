// The whole engine on the emulated CUDA device, both bundled models in one mixed load, beside the
// same engine on the CPU: the same tokens. Executed by emulation.
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/loaded_model.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/sanitized.h"

namespace sensorium {
namespace {

const std::string kModels = SENSORIUM_MODELS;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

GenerateRequest Ask(const std::string& question, const std::string& image) {
  GenerateRequest request;
  request.model = "molmo-mini";
  request.max_tokens = kSanitized ? 4 : 12;
  request.echo_token_ids = true;
  Message message;
  message.parts.push_back({.kind = Part::Kind::kImage,
                           .text = "",
                           .data = ReadFile(kModels + "/molmo-mini/" + image),
                           .language = ""});
  message.parts.push_back(
      {.kind = Part::Kind::kText, .text = question, .data = "", .language = ""});
  request.messages.push_back(std::move(message));
  return request;
}

// What each request of the load came to: token ids, or the reason why not.
struct Outcome {
  std::vector<int32_t> tokens;
  std::string text, error;
};

Outcome Collect(GenerateQueue& queue) {
  Outcome o;
  while (true) {
    GenerateEvent event = queue.Pop();
    if (auto* delta = std::get_if<GenerateDelta>(&event)) {
      o.tokens.insert(o.tokens.end(), delta->token_ids.begin(), delta->token_ids.end());
    } else if (auto* finished = std::get_if<GenerateFinished>(&event)) {
      o.text = finished->text;
    } else if (auto* end = std::get_if<StreamEnd>(&event)) {
      o.error = end->status.ToString();
      return o;
    }
  }
}

Outcome Collect(TranscribeQueue& queue) {
  Outcome o;
  while (true) {
    TranscribeEvent event = queue.Pop();
    if (auto* segment = std::get_if<TranscribeSegment>(&event)) {
      o.tokens.insert(o.tokens.end(), segment->tokens.begin(), segment->tokens.end());
    } else if (auto* finished = std::get_if<TranscribeFinished>(&event)) {
      o.text = finished->text;
    } else if (auto* end = std::get_if<StreamEnd>(&event)) {
      o.error = end->status.ToString();
      return o;
    }
  }
}

std::unique_ptr<Engine> MakeEngine(absl::StatusOr<std::unique_ptr<Backend>> backend,
                                   EngineConfig config = {}) {
  CHECK(backend.ok()) << backend.status();
  if (config.models.empty()) {
    config.models = {{"molmo-mini", kModels + "/molmo-mini"},
                     {"whisper-mini", kModels + "/whisper-mini"}};
  }
  config.kv_cache_bytes = 32 << 20;
  config.max_batch_tokens = 64;  // every prompt in chunks, beside the others' decodes
  config.calibrate = false;      // no time of an emulated device means anything
  if (kSanitized) config.max_encode_units = 1;
  if (kForRaces) {  // what is rehearsed at start is the most that a step may hold
    config.max_batch_tokens = 32;
    config.max_batch_seqs = 4;
  }
  auto engine = Engine::Create(config, *std::move(backend));
  CHECK(engine.ok()) << engine.status();
  return *std::move(engine);
}

// All at once: images, questions and a recording share the steps.
std::vector<Outcome> RunLoad(Engine& engine) {
  TranscribeRequest hear;
  hear.model = "whisper-mini";
  hear.audio = ReadFile(kModels + "/whisper-mini/question.wav");
  const auto star = engine.Generate(Ask("What color is the star?", "shapes.png"));
  const auto heard = engine.Transcribe(hear);
  const auto count = engine.Generate(Ask("How many red circles are there?", "small.png"));
  return {Collect(*star), Collect(*heard), Collect(*count)};
}

class CudaEngineTest : public testing::TestWithParam<DType> {};

TEST_P(CudaEngineTest, AMixedLoadGivesTheTokensOfTheCpu) {
  const auto cpu = MakeEngine(CpuBackend::Create({.dtype = GetParam(), .level = {}}));
  const std::vector<Outcome> want = RunLoad(*cpu);
  cuda_emu::SetSeed(3);
  EngineConfig config;
  config.media = MediaPlace::kDevice;  // the CPU's are made by the host
  // Encodes too are cut anywhere: a picture half resized, a recording half heard.
  config.chaos_seed = GetParam() == DType::kFloat32 ? 5 : 0;
  cuda_emu::ForgetKernels();
  const auto cuda = MakeEngine(CudaBackend::Create({.dtype = GetParam()}), config);
  EXPECT_EQ(cuda->device(), "cuda: emulated device (8.0), graphs");
  EXPECT_EQ(cuda_emu::counters().loaded_in_capture, 0) << "each was run plainly before";
  const int64_t replays = cuda_emu::counters().graph_launches;
  const std::vector<Outcome> got = RunLoad(*cuda);
  EXPECT_GT(cuda_emu::counters().graph_launches, replays + (kSanitized ? 2 : 10))
      << "steps that only decode";
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].error, "OK");
    EXPECT_FALSE(got[i].tokens.empty());
    EXPECT_EQ(got[i].tokens, want[i].tokens);
    EXPECT_EQ(got[i].text, want[i].text);
  }
  // The same pixels have the same name in the caches.
  const int64_t before = cuda->Stats().prefix_hit_blocks;
  const Outcome again = Collect(*cuda->Generate(Ask("What color is the star?", "shapes.png")));
  EXPECT_EQ(again.tokens, want[0].tokens);
  EXPECT_GT(cuda->Stats().prefix_hit_blocks, before);
}

// An engine starts in a minute under ThreadSanitizer, which looks at the mixed load alone: it has
// every thread and every kind of work. The sanitizers see the kernels of both types in the op
// suite.
constexpr char kLookedAt[] = "the mixed load has the same threads";

INSTANTIATE_TEST_SUITE_P(Types, CudaEngineTest,
                         testing::ValuesIn(kSanitized
                                               ? std::vector{DType::kFloat32}
                                               : std::vector{DType::kFloat32, DType::kBFloat16}),
                         [](const auto& info) { return std::string(Name(info.param)); });

// A recording of two windows: all of it is listened to before the first, and again no more.
TEST(CudaEngineMediaTest, ALongRecordingGivesTheTokensOfTheHostsSpectrogram) {
  if (kForRaces) GTEST_SKIP() << kLookedAt;
  const std::string one = ReadFile(kModels + "/whisper-mini/question.wav");
  constexpr size_t kHeader = 44, kWindow = 8 * 16000 * 2;
  std::string samples = one.substr(kHeader);
  samples.resize(kWindow, '\0');
  samples += one.substr(kHeader);
  std::string header = one.substr(0, kHeader);  // RIFF, WAVE: sizes at 4 and 40
  const auto put = [&](size_t at, uint32_t v) { std::memcpy(header.data() + at, &v, 4); };
  put(4, static_cast<uint32_t>(kHeader - 8 + samples.size()));
  put(40, static_cast<uint32_t>(samples.size()));
  TranscribeRequest hear;
  hear.audio = header + samples;

  EngineConfig config;
  config.models = {{"whisper-mini", kModels + "/whisper-mini"}};
  std::vector<Outcome> outcomes;
  for (const MediaPlace place : {MediaPlace::kHost, MediaPlace::kDevice}) {
    config.media = place;
    const auto engine = MakeEngine(CudaBackend::Create({}), config);
    const int64_t steps = engine->Stats().steps;
    outcomes.push_back(Collect(*engine->Transcribe(hear)));
    EXPECT_EQ(outcomes.back().error, "OK");
    EXPECT_GT(engine->Stats().steps, steps);
    if (place == MediaPlace::kHost) continue;
    // The same once more is found, and nothing of it listened to: its windows are in the cache.
    const int64_t misses = engine->Stats().audio_miss_blocks;
    EXPECT_EQ(Collect(*engine->Transcribe(hear)).tokens, outcomes.back().tokens);
    EXPECT_EQ(engine->Stats().audio_miss_blocks, misses);
  }
  EXPECT_GT(outcomes[0].tokens.size(), 8u);
  EXPECT_EQ(outcomes[1].tokens, outcomes[0].tokens);
  EXPECT_EQ(outcomes[1].text, outcomes[0].text);
}

TEST(CudaEngineMediaTest, ADeviceThatMakesNoMediaRefusesToBeToldTo) {
  EngineConfig config;
  config.models = {{"whisper-mini", kModels + "/whisper-mini"}};
  config.media = MediaPlace::kDevice;
  auto cpu = CpuBackend::Create({});
  ASSERT_TRUE(cpu.ok());
  const absl::Status status = Engine::Create(config, *std::move(cpu)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("leaves them to the host"), std::string::npos) << status;
}

// Of 32 and 64 rows cuBLASLt has other kernels than of fewer, and a context above 512 has one of
// ours.
TEST(CudaEngineStartTest, NoKernelIsFirstLaunchedWhileAPassIsRecorded) {
  if (kSanitized) GTEST_SKIP() << kLookedAt;
  EngineConfig config;
  config.models = {{"molmo-mini", kModels + "/molmo-mini"}};
  config.max_batch_seqs = 64;
  const int64_t before = cuda_emu::counters().graphs;
  cuda_emu::ForgetKernels();
  const auto engine = MakeEngine(
      CudaBackend::Create({.dtype = DType::kBFloat16, .determinism = Determinism::kFast}), config);
  EXPECT_EQ(cuda_emu::counters().graphs - before, 7 * 2);  // 1, 2, .. 64 rows; 512, 1024 tokens
  EXPECT_EQ(cuda_emu::counters().loaded_in_capture, 0);
}

TEST(CudaEngineVocabularyTest, MoreIdsThanTheDeviceChoosesAmongAreRefusedWithBothNumbers) {
  const auto cuda = CudaBackend::Create({});
  ASSERT_TRUE(cuda.ok());
  EXPECT_TRUE(LoadedModel::FitsVocab(262144, **cuda, "config.json").ok());
  const absl::Status status = LoadedModel::FitsVocab(262145, **cuda, "config.json");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "config.json: a vocabulary of 262145 ids; this device (cuda: emulated device (8.0), "
            "graphs) chooses among 262144 at most");
}

// A device that breaks under load: what is in flight fails as UNAVAILABLE, and so does what comes.
TEST(CudaEngineFailureTest, ABrokenDeviceFailsWhatIsInFlight) {
  if (kForRaces) GTEST_SKIP() << kLookedAt;
  const auto engine = MakeEngine(CudaBackend::Create({}));
  cuda_emu::FailLaunch(40);
  for (const Outcome& o : RunLoad(*engine)) EXPECT_EQ(o.error.find("UNAVAILABLE"), 0u) << o.error;
  EXPECT_TRUE(engine->Stats().broken);
  cuda_emu::FailLaunch(0);
}

}  // namespace
}  // namespace sensorium
