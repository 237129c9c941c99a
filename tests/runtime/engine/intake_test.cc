// What strangers send before it is a job: it costs nothing once nobody wants it, and never more than
// the limits.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/check.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/engine/engine.h"
#include "tests/sanitized.h"

namespace sensorium {
namespace {

using testing::HasSubstr;
using std::chrono::steady_clock;

const std::string kModels = SENSORIUM_MODELS;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Holds the preparation threads until it is opened.
class Gate {
 public:
  void Open() {
    std::lock_guard lock(mu_);
    open_ = true;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mu_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void WaitForOne() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return arrived_ > 0; });
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool open_ = false;
  int arrived_ = 0;
};

EngineConfig HearingConfig() {
  EngineConfig config;
  config.models = {{"whisper-mini", kModels + "/whisper-mini"}};
  config.kv_cache_bytes = 32 << 20;
  config.preparation_threads = 1;
  return config;
}

std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  auto backend = CpuBackend::Create({.dtype = DType::kFloat32});
  CHECK(backend.ok()) << backend.status();
  auto engine = Engine::Create(config, *std::move(backend));
  CHECK(engine.ok()) << engine.status();
  return *std::move(engine);
}

// A wav of noise at 44.1 kHz: its resampling is what takes long.
std::string LongRecording(int seconds) {
  const uint32_t bytes = 2u * 44100 * seconds;
  std::string wav;
  const auto put = [&](uint32_t v, int n) {
    for (int i = 0; i < n; ++i) wav.push_back(static_cast<char>(v >> (8 * i)));
  };
  wav += "RIFF";
  put(36 + bytes, 4);
  wav += "WAVEfmt ";
  put(16, 4);
  put(1, 2), put(1, 2);
  put(44100, 4), put(88200, 4);
  put(2, 2), put(16, 2);
  wav += "data";
  put(bytes, 4);
  uint32_t x = 1;
  for (uint32_t i = 0; i < bytes; ++i) {
    x = x * 1664525 + 1013904223;
    wav.push_back(static_cast<char>(x >> 24));
  }
  return wav;
}

TranscribeRequest Hear(std::string audio) {
  TranscribeRequest request;
  request.audio = std::move(audio);
  return request;
}

absl::Status EndOf(TranscribeQueue& queue) {
  while (true) {
    TranscribeEvent event = queue.Pop();
    if (auto* end = std::get_if<StreamEnd>(&event)) return end->status;
  }
}

std::string Question() { return ReadFile(kModels + "/whisper-mini/question.wav"); }

std::string FieldOf(const absl::Status& status) {
  const auto field = status.GetPayload("sensorium/field");
  return field ? std::string(*field) : "";
}
bool MayRetry(const absl::Status& status) { return !status.GetPayload("sensorium/no_retry"); }

// Bounded by the engine's own progress.
void ExpectNoMediaLeft(const Engine& engine) {
  const auto limit = steady_clock::now() + std::chrono::seconds(60);
  while (engine.Stats().media_bytes && steady_clock::now() < limit) std::this_thread::yield();
  EXPECT_EQ(engine.Stats().media_bytes, 0u);
}

TEST(IntakeTest, ACancelledUploadIsNotDecoded) {
  Gate gate;
  EngineConfig config = HearingConfig();
  config.before_preparation = [&] { gate.Pass(); };
  auto engine = MakeEngine(config);
  const std::string audio = LongRecording(120);
  std::vector<std::shared_ptr<TranscribeQueue>> queues;
  for (int i = 0; i < 20; ++i) queues.push_back(engine->Transcribe(Hear(audio)));
  EXPECT_EQ(engine->Stats().media_bytes, 20 * audio.size());
  for (auto& queue : queues) queue->Cancel();
  gate.Open();
  // Decoded samples count before they are there, for a tenth of a second each: of twenty in turn
  // some would be seen. Files that are dropped only ever make it less.
  size_t most = 0;
  while (const size_t bytes = engine->Stats().media_bytes) {
    most = std::max(most, bytes);
    std::this_thread::yield();
  }
  EXPECT_LE(most, 20 * audio.size());
}

TEST(IntakeTest, APassedDeadlineIsSeenBeforeDecoding) {
  auto engine = MakeEngine(HearingConfig());
  TranscribeRequest request = Hear("no audio at all");  // decoding would say INVALID_ARGUMENT
  request.deadline = steady_clock::now();
  EXPECT_EQ(EndOf(*engine->Transcribe(request)).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(IntakeTest, DrainEndsNearItsDeadlineWithAQueueOfLongUploads) {
  Gate gate;
  EngineConfig config = HearingConfig();
  config.before_preparation = [&] { gate.Pass(); };
  config.max_batch_seqs = 4;
  config.max_waiting = 8;  // full with the uploads below: nobody else is let in
  auto engine = MakeEngine(config);
  const std::string audio = LongRecording(300);
  const auto begin = steady_clock::now();
  std::vector<std::shared_ptr<TranscribeQueue>> queues;
  for (int i = 0; i < 12; ++i) {
    TranscribeRequest request = Hear(audio);
    request.tenant = i % 2 ? "odd" : "even";
    queues.push_back(engine->Transcribe(std::move(request)));
  }
  gate.WaitForOne();
  std::thread drain([&] { engine->Drain(begin); });
  // Draining has begun when newcomers are refused for that; from then on the uploads may go.
  while (EndOf(*engine->Transcribe(Hear(""))).message() != "the server is draining") {
    std::this_thread::yield();
  }
  gate.Open();
  const auto opened = steady_clock::now();
  drain.join();
  const auto took = steady_clock::now() - opened;
  for (auto& queue : queues) {
    const absl::Status status = EndOf(*queue);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
  // One hour of sound takes many times as long to resample and transcribe.
  EXPECT_LT(took, std::chrono::seconds(kSanitized ? 20 : 2));
  ExpectNoMediaLeft(*engine);
}

TEST(IntakeTest, AFileThatTakesTooLongToDecodeIsRefused) {
  EngineConfig config = HearingConfig();
  config.decode_seconds = 0.001;
  auto engine = MakeEngine(config);
  const absl::Status status = EndOf(*engine->Transcribe(Hear(LongRecording(300))));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit is 0.001"));
  EXPECT_EQ(FieldOf(status), "audio");
}

TEST(IntakeTest, UndecodedBytesOverTheBudgetAreRefusedWithBothNumbersAndGivenBack) {
  Gate gate;
  EngineConfig config = HearingConfig();
  config.before_preparation = [&] { gate.Pass(); };
  config.max_media_bytes = 1000;
  auto engine = MakeEngine(config);
  auto first = engine->Transcribe(Hear(std::string(600, 'x')));
  const absl::Status second = EndOf(*engine->Transcribe(Hear(std::string(700, 'x'))));
  EXPECT_EQ(second.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(second.message()), HasSubstr("700"));
  EXPECT_THAT(std::string(second.message()), HasSubstr("400 of 1000"));
  EXPECT_TRUE(MayRetry(second));

  const absl::Status never = EndOf(*engine->Transcribe(Hear(std::string(1001, 'x'))));
  EXPECT_EQ(never.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(never.message()), HasSubstr("1001"));
  EXPECT_FALSE(MayRetry(never));

  gate.Open();
  const absl::Status bad = EndOf(*first);
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(bad), "audio");
  ExpectNoMediaLeft(*engine);
}

TEST(IntakeTest, SamplesCountWhileTheyAreDecoded) {
  EngineConfig config = HearingConfig();
  const std::string audio = LongRecording(60);  // 5.3 MB, 3.8 MB of samples, 0.6 s of them in mel
  config.max_media_bytes = audio.size() + (1 << 20);
  auto engine = MakeEngine(config);
  const absl::Status status = EndOf(*engine->Transcribe(Hear(audio)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  ExpectNoMediaLeft(*engine);
}

TEST(IntakeTest, TokenizeObeysTheLimitsOfOtherRequests) {
  EngineConfig config = HearingConfig();
  config.max_media_bytes = 1000;
  auto engine = MakeEngine(config);
  TokenizeRequest request;
  request.audio = std::string(1001, 'x');
  EXPECT_EQ(engine->Tokenize(request).status().code(), absl::StatusCode::kResourceExhausted);
  request.audio = "x";
  request.deadline = steady_clock::now();
  EXPECT_EQ(engine->Tokenize(request).status().code(), absl::StatusCode::kDeadlineExceeded);
  request.deadline.reset();
  request.cancelled = [] { return true; };
  EXPECT_EQ(engine->Tokenize(request).status().code(), absl::StatusCode::kCancelled);
  request = {};
  request.text = std::string((1 << 20) + 1, 'x');
  EXPECT_EQ(FieldOf(engine->Tokenize(request).status()), "text");
  request.text = "hello";
  EXPECT_TRUE(engine->Tokenize(request).ok());
  EXPECT_EQ(engine->Stats().media_bytes, 0u);
  engine->Drain(steady_clock::now());
  EXPECT_EQ(engine->Tokenize(request).status().code(), absl::StatusCode::kUnavailable);
}

TEST(IntakeTest, AnExceptionInPreparationFailsThatRequestAlone) {
  std::atomic<int> turn{0};
  EngineConfig config = HearingConfig();
  config.before_preparation = [&] {
    switch (turn++) {
      case 0: throw std::bad_alloc();
      case 1: throw std::runtime_error("a decoder's bug");
      case 2: throw 3;
      default: break;
    }
  };
  auto engine = MakeEngine(config);
  EXPECT_EQ(EndOf(*engine->Transcribe(Hear(Question()))).code(),
            absl::StatusCode::kResourceExhausted);
  const absl::Status bug = EndOf(*engine->Transcribe(Hear(Question())));
  EXPECT_EQ(bug.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(bug.message()), HasSubstr("a decoder's bug"));
  EXPECT_EQ(engine->Tokenize({.text = "hello"}).status().code(), absl::StatusCode::kInternal);
  const absl::Status fine = EndOf(*engine->Transcribe(Hear(Question())));
  EXPECT_TRUE(fine.ok()) << fine;
  ExpectNoMediaLeft(*engine);
}

TEST(IntakeTest, ErrorsNameTheFieldTheyAreAbout) {
  auto engine = MakeEngine(HearingConfig());
  TranscribeRequest request = Hear(Question());
  request.options.language = "tlh";
  EXPECT_EQ(FieldOf(EndOf(*engine->Transcribe(request))), "options.language");
  request = Hear(Question());
  request.options.suppress_tokens = {-1};
  EXPECT_EQ(FieldOf(EndOf(*engine->Transcribe(request))), "options.suppress_tokens");
  request = Hear(Question());
  request.options.max_tokens_per_window = 1 << 20;
  EXPECT_EQ(FieldOf(EndOf(*engine->Transcribe(request))), "options.max_tokens_per_window");
}

GenerateRequest Ask(std::vector<Part> parts) {
  GenerateRequest request;
  request.messages.push_back({.role = Role::kUser, .parts = std::move(parts)});
  return request;
}

absl::Status EndOf(GenerateQueue& queue) {
  while (true) {
    GenerateEvent event = queue.Pop();
    if (auto* end = std::get_if<StreamEnd>(&event)) return end->status;
  }
}

TEST(IntakeTest, ErrorsOfAPromptNameTheFieldTheyAreAbout) {
  EngineConfig config = HearingConfig();
  config.models.push_back({"molmo-mini", kModels + "/molmo-mini"});
  auto engine = MakeEngine(config);
  const Part text{.text = "hello"};
  const Part picture{.kind = Part::Kind::kImage, .data = "no picture"};
  const Part spoken{.kind = Part::Kind::kAudio, .data = "no recording"};
  const auto field = [&](GenerateRequest request) {
    return FieldOf(EndOf(*engine->Generate(std::move(request))));
  };
  EXPECT_EQ(field(Ask({text, picture})), "messages[0].parts[1].image");
  EXPECT_EQ(field(Ask({text, spoken})), "messages[0].parts[1].audio");
  GenerateRequest request = Ask({text});
  request.max_tokens = 3000;  // of a context of 2048
  EXPECT_EQ(field(request), "max_tokens");
  request = Ask({text});
  request.sampling.logit_bias = {{-1, 1.0f}};
  EXPECT_EQ(field(request), "sampling.logit_bias");
  request = Ask({text});
  request.messages.push_back(request.messages[0]);
  EXPECT_EQ(field(request), "messages[1]");
  ExpectNoMediaLeft(*engine);
}

TEST(IntakeTest, ARequestThatCanNeverFitHasNoHintToRetry) {
  EngineConfig config = HearingConfig();
  config.models = {{"molmo-mini", kModels + "/molmo-mini"}};
  config.kv_cache_bytes = 400 << 10;
  auto engine = MakeEngine(config);
  GenerateRequest request = Ask({{.text = "hello"}});
  request.max_tokens = 1000;
  const absl::Status status = EndOf(*engine->Generate(std::move(request)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_FALSE(MayRetry(status));
}

// Uploads that wait to be decoded stand in no scheduler's line yet.
TEST(IntakeTest, AFloodOfOneTenantsUploadsLeavesRoomForAnothers) {
  Gate gate;
  EngineConfig config = HearingConfig();
  config.before_preparation = [&] { gate.Pass(); };
  config.max_batch_seqs = 2;
  config.max_waiting = 6;
  auto engine = MakeEngine(config);
  const auto hear = [&](const char* tenant) {
    TranscribeRequest request = Hear(Question());
    request.tenant = tenant;
    return engine->Transcribe(std::move(request));
  };
  // 2 + 5 of the 8: alone, a tenant keeps one place free. The stranger that takes it is known, and
  // of what comes back nobody has more than 2 + 3.
  std::vector<std::shared_ptr<TranscribeQueue>> accepted;
  for (int i = 0; i < 7; ++i) accepted.push_back(hear("flood"));
  const absl::Status refused = EndOf(*hear("flood"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("7 requests of this tenant run or wait; the limit is 7"));
  EXPECT_TRUE(MayRetry(refused));
  accepted.push_back(hear("stranger"));
  EXPECT_THAT(std::string(EndOf(*hear("flood")).message()), HasSubstr("the limit is 8"));
  gate.Open();
  EXPECT_TRUE(EndOf(*accepted.back()).ok());
  accepted.pop_back();
  for (auto& queue : accepted) {  // in the scheduler's line half is the flood's, now
    const absl::Status status = EndOf(*queue);
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
  ExpectNoMediaLeft(*engine);
}

}  // namespace
}  // namespace sensorium
