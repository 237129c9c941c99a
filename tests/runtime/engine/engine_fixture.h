// What the engine's tests share: requests on the bundled models, and whole answers of them.
#pragma once

#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/check.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/engine/engine.h"
#include "spdlog/spdlog.h"
#include "tests/sanitized.h"

namespace sensorium {

inline const std::string kModels = SENSORIUM_MODELS;

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Of molmo-mini: features of the whole picture and of one crop, 6 x 6 each, float32 [72, 192].
inline constexpr size_t kPictureBytes = sizeof(float) * 72 * 192;

inline EngineConfig SmallConfig() {
  EngineConfig config;
  config.models = {{"molmo-mini", kModels + "/molmo-mini"},
                   {"whisper-mini", kModels + "/whisper-mini"}};
  config.kv_cache_bytes = 64 << 20;
  config.max_batch_tokens = 128;
  if (kSanitized) {  // a dozen seconds for each engine otherwise
    config.calibrate = false;
    config.max_encode_units = 1;
    config.max_batch_tokens = 64;
  }
  return config;
}

inline std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  spdlog::set_level(spdlog::level::warn);  // a failure stands alone
  auto backend = CpuBackend::Create({.dtype = DType::kFloat32});
  CHECK(backend.ok()) << backend.status();
  auto engine = Engine::Create(config, *std::move(backend));
  CHECK(engine.ok()) << engine.status();
  return *std::move(engine);
}

inline GenerateRequest Ask(const std::string& text, const std::string& image = "",
                           int max_tokens = 96) {
  GenerateRequest request;
  request.model = "molmo-mini";
  request.max_tokens = max_tokens;
  request.echo_token_ids = true;
  Message message;
  if (!image.empty()) {
    message.parts.push_back({.kind = Part::Kind::kImage,
                             .text = "",
                             .data = ReadFile(kModels + "/molmo-mini/" + image),
                             .language = ""});
  }
  message.parts.push_back({.kind = Part::Kind::kText, .text = text, .data = "", .language = ""});
  request.messages.push_back(std::move(message));
  return request;
}

inline TranscribeRequest Hear(const std::string& file) {
  TranscribeRequest request;
  request.model = "whisper-mini";
  request.audio = ReadFile(kModels + "/whisper-mini/" + file);
  return request;
}

// The likeliest of three samples.
inline TranscribeRequest Sampled(const std::string& file) {
  TranscribeRequest request = Hear(file);
  request.options.temperatures = {0.8f};
  request.options.best_of = 3;
  request.options.seed = 11;
  return request;
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::string text, streamed, heard;
  FinishReason reason = FinishReason::kStop;
  std::vector<GeneratePoint> points;
  std::vector<int32_t> prompt;
  Usage usage;
  bool operator==(const Answer& o) const {
    return ids == o.ids && logprobs == o.logprobs && text == o.text;
  }
};
struct Heard {
  std::vector<TranscribeSegment> segments;
  std::string text, language;
};

// All answers of a request, by index, and how it ended.
inline absl::StatusOr<std::vector<Answer>> Collect(GenerateQueue& queue) {
  std::vector<Answer> answers;
  std::string heard;
  std::vector<int32_t> prompt;
  const auto at = [&](int32_t i) -> Answer& {
    if (static_cast<int32_t>(answers.size()) <= i) answers.resize(i + 1);
    return answers[i];
  };
  while (true) {
    GenerateEvent event = queue.Pop();
    if (auto* e = std::get_if<GenerateStarted>(&event)) {
      heard = e->heard;
      prompt = e->prompt_token_ids;
    } else if (auto* e = std::get_if<GenerateDelta>(&event)) {
      Answer& a = at(e->index);
      a.streamed += e->text;
      a.ids.insert(a.ids.end(), e->token_ids.begin(), e->token_ids.end());
      for (const auto& l : e->logprobs) a.logprobs.push_back(l.logprob);
    } else if (auto* e = std::get_if<GeneratePoint>(&event)) {
      at(e->index).points.push_back(*e);
    } else if (auto* e = std::get_if<GenerateFinished>(&event)) {
      Answer& a = at(e->index);
      a.text = e->text;
      a.reason = e->reason;
      a.usage = e->usage;
      a.heard = heard;
      a.prompt = prompt;
    } else if (auto* e = std::get_if<StreamEnd>(&event)) {
      if (!e->status.ok()) return e->status;
      return answers;
    }
  }
}
inline absl::StatusOr<Heard> Collect(TranscribeQueue& queue) {
  Heard heard;
  while (true) {
    TranscribeEvent event = queue.Pop();
    if (auto* e = std::get_if<TranscribeSegment>(&event)) {
      heard.segments.push_back(*e);
    } else if (auto* e = std::get_if<TranscribeFinished>(&event)) {
      heard.text = e->text;
      heard.language = e->language;
    } else if (auto* e = std::get_if<StreamEnd>(&event)) {
      if (!e->status.ok()) return e->status;
      return heard;
    }
  }
}

inline Answer One(absl::StatusOr<std::vector<Answer>> answers) {
  CHECK(answers.ok()) << answers.status();
  CHECK_EQ(answers->size(), size_t{1});
  return (*answers)[0];
}

inline Answer AnswerTo(Engine& engine, GenerateRequest request) {
  return One(Collect(*engine.Generate(std::move(request))));
}

// All there is to be asked of a draw.
inline SamplingParams EverySamplingOption(uint64_t seed) {
  return {.temperature = 1.5f,
          .top_k = 40,
          .top_p = 0.9f,
          .min_p = 0.01f,
          .repetition_penalty = 1.1f,
          .presence_penalty = 0.1f,
          .frequency_penalty = 0.1f,
          .seed = seed,
          .logit_bias = {{5, 1.0f}}};
}

// Waits (by the engine's own progress, bounded) until nothing is owned by anybody.
inline EngineStats WaitUntilIdle(const Engine& engine) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  EngineStats stats = engine.Stats();
  while ((stats.blocks_used || stats.blocks_reserved || stats.requests_running ||
          stats.requests_waiting || stats.media_bytes) &&
         std::chrono::steady_clock::now() < limit) {
    std::this_thread::yield();
    stats = engine.Stats();
  }
  return stats;
}

inline void ExpectIdle(const Engine& engine) {
  const EngineStats stats = WaitUntilIdle(engine);
  EXPECT_EQ(stats.blocks_used, 0);
  EXPECT_EQ(stats.blocks_reserved, 0);
  EXPECT_EQ(stats.requests_running, 0);
  EXPECT_EQ(stats.requests_waiting, 0);
  EXPECT_EQ(stats.media_bytes, 0u);
}

}  // namespace sensorium
