// A build in which the engine's thread may not take memory in a step: malloc is replaced by one
// that aborts there, operator new and every library with it, and says who asked.
#include <atomic>
#include <new>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/no_allocation.h"
#include "runtime/engine/device_media.h"
#include "runtime/media/log_mel.h"
#include "tests/runtime/engine/engine_fixture.h"
#include "tests/runtime/engine/guarded_malloc.h"

namespace sensorium {
namespace {

class AllocationTest : public ::testing::Test {
 protected:
  void SetUp() override {
#if !SENSORIUM_OWN_MALLOC
    GTEST_SKIP() << "the sanitizer has a malloc of its own";
#endif
    void* warm[1];
    backtrace(warm, 1);  // loads libgcc, with malloc
  }
};

TEST_F(AllocationTest, AStepThatAsksForMemoryIsCaught) {
  // One that the compiler cannot leave out.
  static std::atomic<char*> taken;
  EXPECT_DEATH(
      {
        const NoAllocationScope scope;
        taken = new char[100];
      },
      "a step asked for memory");
}

// A device that makes media and takes nothing: what is left is the jobs' own half.
class ModestMedia final : public MediaOps {
 public:
  int calls = 0;

 private:
  std::unique_ptr<LogMelTables> DoMakeLogMel(const LogMelSource& source) override {
    const auto n_fft = static_cast<int64_t>(source.window.size());
    return std::make_unique<LogMelTables>(
        n_fft, source.hop, static_cast<int64_t>(source.filters.size()) / (n_fft / 2 + 1));
  }
  void DoListen(GreatestEnergy& greatest, const LogMelTables&, const Recording&, int64_t,
                int64_t) override {
    EXPECT_EQ(greatest.host, static_cast<float>(calls));
    greatest.host = static_cast<float>(++calls);
  }
  void DoLogMel(TensorView, const LogMelTables&, const Recording&, int64_t, int64_t,
                const GreatestEnergy& greatest) override {
    EXPECT_EQ(greatest.host, static_cast<float>(calls++));
  }
  void DoResize(std::span<const ResizeTarget> targets, std::span<const uint8_t>, int64_t,
                int64_t) override {
    EXPECT_EQ(targets.size(), 2u);
    ++calls;
  }
  void DoCutCrop(TensorView, ConstTensorView, int32_t, int32_t, const PatchShape&) override {
    ++calls;
  }
};

TEST_F(AllocationTest, MediaOnTheirWayToTheDeviceTakeNone) {
  ModestMedia media;
  const LogMelExtractor extractor(80);
  const std::vector<float> filters = SlaneyMelFilters(80, 400);
  const auto tables =
      media.MakeLogMel({.window = extractor.window(), .filters = filters, .hop = 160});
  DeviceRecording recording(std::vector<float>(50'000), 8000, *tables, /*unit_frames=*/100);
  const MolmoImageConfig config;
  const auto layout = LayOutMolmoImage(900, 500, config);
  ASSERT_TRUE(layout.ok());
  const DevicePicture picture(RgbImage{900, 500, std::vector<uint8_t>(900 * 500 * 3)}, *layout,
                              config);
  std::vector<std::byte> state(DevicePicture::StateBytes(config)), mel(300 * 80 * 4),
      patches(size_t{2} * 576 * 588 * 4);
  const int32_t units = recording.units_left();
  EXPECT_EQ(units, 4);  // of 313 frames that are not silence
  const NoAllocationScope scope;
  while (recording.units_left() > 0) recording.Listen(media, 1, state.data());
  recording.LogMel(media, TensorView(mel.data(), DType::kFloat32, {300, 80}), 20, 280,
                   state.data());
  picture.Resize(media, 0, picture.units(), state.data());
  picture.CutCrops(media, 1, state.data(),
                   TensorView(patches.data(), DType::kFloat32, {2 * 576, 588}));
  EXPECT_EQ(media.calls, units + 1 + 1 + 2);
}

// Reads them all at once: who is not read from is parked, and keeps what it has.
void ReadAll(std::vector<std::shared_ptr<GenerateQueue>>& answers,
             std::vector<std::shared_ptr<TranscribeQueue>>& transcripts) {
  std::vector<std::thread> readers;
  for (auto& queue : answers) {
    readers.emplace_back([&queue] {
      const auto answer = Collect(*queue);
      EXPECT_TRUE(answer.ok()) << answer.status();
    });
  }
  for (auto& queue : transcripts) {
    readers.emplace_back([&queue] { EXPECT_TRUE(Collect(*queue).ok()); });
  }
  for (std::thread& reader : readers) reader.join();
}

// Every path that a step has: pictures, speech, spoken questions, several answers, samples and
// beams, stop strings, many alternatives, prompts in chunks and from the cache, slow readers,
// cancelling, all of it traced.
TEST_F(AllocationTest, NoStepOfAMixedLoadTakesMemory) {
  EngineConfig config = SmallConfig();
  config.chaos_seed = std::random_device()() | 1;
  SCOPED_TRACE(testing::Message() << "seed " << config.chaos_seed);
  std::mt19937_64 random(config.chaos_seed);
  config.encoder_cache_bytes = 8 << 20;
  config.image_cache_bytes = 3 * kPictureBytes;
  config.max_batch_seqs = 24;
  config.event_queue_limit = 4;  // readers are slow: sequences park
  config.trace_path = testing::TempDir() + "/allocation.trace";
  auto engine = MakeEngine(config);
  std::vector<std::shared_ptr<GenerateQueue>> answers;
  std::vector<std::shared_ptr<TranscribeQueue>> transcripts;
  for (int i = 0; i < 30; ++i) {
    const char* pictures[] = {"", "shapes.png", "wide.png", "portrait.png"};
    GenerateRequest g = Ask(i % 3 ? "Point to the blue square." : "Describe this image.",
                            pictures[random() % 4], 1 + static_cast<int>(random() % 150));
    g.n = 1 + static_cast<int32_t>(random() % 4);
    g.logprobs = static_cast<int32_t>(random() % 21);
    if (random() % 2) g.stop = {" circle", "zzzzzzzzzzzzzzzz", ". "};
    if (random() % 2) {
      g.sampling = EverySamplingOption(random());
    }
    if (i % 10 == 7) {
      g.messages[0].parts.push_back({.kind = Part::Kind::kAudio,
                                     .text = "",
                                     .data = ReadFile(kModels + "/whisper-mini/question.wav"),
                                     .language = ""});
    }
    answers.push_back(engine->Generate(std::move(g)));
    if (i % 5 != 0) continue;
    TranscribeRequest t = Hear(random() % 2 ? "question.wav" : "morning.wav");
    t.options.clip_end_ms = 12'000;
    switch (random() % 3) {
      case 0:
        t.options.beam_size = 1 + static_cast<int32_t>(random() % 4);
        break;
      case 1:
        t.options.temperatures = {0.8f};
        t.options.best_of = 3;
        break;
      default:
        break;
    }
    if (random() % 2) t.options.timestamps = Timestamps::kNone;
    if (random() % 2) t.options.language = "en";
    transcripts.push_back(engine->Transcribe(std::move(t)));
  }
  answers[3]->Cancel();
  transcripts[1]->Cancel();
  answers.erase(answers.begin() + 3);
  transcripts.erase(transcripts.begin() + 1);
  ReadAll(answers, transcripts);
  ExpectIdle(*engine);
  EXPECT_GT(engine->Stats().steps, 50);
}

TEST_F(AllocationTest, NoStepThatPreemptsTakesMemory) {
  EngineConfig config = SmallConfig();
  config.optimistic_admission = true;
  config.kv_cache_bytes = size_t{50} * (72 << 10);  // blocks: not enough for all that come
  config.chaos_seed = std::random_device()() | 1;
  SCOPED_TRACE(testing::Message() << "seed " << config.chaos_seed);
  auto engine = MakeEngine(config);
  for (int round = 0; round < 20 && engine->Stats().preemptions < 5; ++round) {
    std::vector<std::shared_ptr<GenerateQueue>> answers;
    std::vector<std::shared_ptr<TranscribeQueue>> transcripts;
    for (int i = 0; i < 12; ++i) {
      GenerateRequest g = Ask(i % 2 ? "How many red circles are there?" : "Describe this image.",
                              i % 3 ? "shapes.png" : "wide.png", 90);
      if (i % 4 == 1) {
        g.n = 2;
        g.sampling.temperature = 0.9f;
      }
      answers.push_back(engine->Generate(std::move(g)));
    }
    for (const char* file : {"question.wav", "morning.wav"}) {
      TranscribeRequest t = Hear(file);
      t.options.beam_size = 3;
      transcripts.push_back(engine->Transcribe(std::move(t)));
    }
    ReadAll(answers, transcripts);
  }
  EXPECT_GT(engine->Stats().preemptions, 0);
  ExpectIdle(*engine);
}

}  // namespace
}  // namespace sensorium
