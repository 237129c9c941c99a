// The engine on the bundled models: answers, batch invariance under a mixed load, ends.
#include "runtime/engine/engine.h"

#include <chrono>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/kv_cache/block_table.h"
#include "tests/runtime/engine/engine_fixture.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

class EngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { engine_ = MakeEngine(SmallConfig()).release(); }
  static void TearDownTestSuite() {
    delete engine_;
    engine_ = nullptr;
  }
  static Engine* engine_;
};
Engine* EngineTest::engine_ = nullptr;

TEST_F(EngineTest, AnswersTheBundledQuestionsTokenByToken) {
  const auto golden = nlohmann::json::parse(ReadFile(kModels + "/molmo-mini/answers.json"));
  for (const auto& g : golden) {
    SCOPED_TRACE(g["question"].get<std::string>());
    const Answer a =
        One(Collect(*engine_->Generate(Ask(g["question"], g["image"].get<std::string>()))));
    EXPECT_EQ(a.prompt, g["prompt_ids"].get<std::vector<int32_t>>());
    EXPECT_EQ(a.ids, g["greedy_ids"].get<std::vector<int32_t>>());
    EXPECT_EQ(a.text, g["answer"].get<std::string>());
    EXPECT_EQ(a.streamed, a.text);
    EXPECT_EQ(a.ids.size(), a.logprobs.size());
  }
  ExpectIdle(*engine_);
}

TEST_F(EngineTest, TranscribesTheBundledRecordingsAsTheReferenceDoes) {
  const auto golden = nlohmann::json::parse(ReadFile(kModels + "/whisper-mini/transcripts.json"));
  for (const auto& [file, g] : golden.items()) {
    for (const bool conditioned : {false, true}) {
      SCOPED_TRACE(file + (conditioned ? " conditioned" : ""));
      TranscribeRequest request = Hear(file);
      request.options.condition_on_previous_text = conditioned;
      const auto heard = Collect(*engine_->Transcribe(request));
      ASSERT_TRUE(heard.ok()) << heard.status();
      EXPECT_EQ(heard->language, g["language"].get<std::string>());
      const auto& want = g[conditioned ? "segments_conditioned" : "segments"];
      ASSERT_EQ(heard->segments.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i) {
        const TranscribeSegment& s = heard->segments[i];
        EXPECT_EQ(s.tokens, want[i]["tokens"].get<std::vector<int32_t>>());
        EXPECT_EQ(s.text, want[i]["text"].get<std::string>());
        EXPECT_EQ(s.start_ms, std::llround(want[i]["start"].get<double>() * 1000));
        EXPECT_EQ(s.end_ms, std::llround(want[i]["end"].get<double>() * 1000));
        EXPECT_NEAR(s.avg_logprob, want[i]["avg_logprob"].get<double>(), 2e-5);
        EXPECT_NEAR(s.no_speech_probability, want[i]["no_speech_prob"].get<double>(), 2e-6);
        EXPECT_NEAR(s.compression_ratio, want[i]["compression_ratio"].get<double>(), 2e-6);
      }
    }
  }
  ExpectIdle(*engine_);
}

TEST_F(EngineTest, ASpokenQuestionAboutAPictureIsHeardAndAnswered) {
  GenerateRequest request = Ask("", "shapes.png");
  request.messages[0].parts.back() = {.kind = Part::Kind::kAudio,
                                      .text = "",
                                      .data = ReadFile(kModels + "/whisper-mini/question.wav"),
                                      .language = ""};
  const Answer spoken = One(Collect(*engine_->Generate(std::move(request))));
  EXPECT_EQ(spoken.heard, "How many red circles are there?");
  const Answer written =
      One(Collect(*engine_->Generate(Ask("How many red circles are there?", "shapes.png"))));
  EXPECT_TRUE(spoken == written) << spoken.text;
  EXPECT_EQ(spoken.points.size(), 3u);
  EXPECT_GT(spoken.usage.audio_ms, 0);
  ExpectIdle(*engine_);
}

// 1 MB holds both files and the recording's samples, but not the picture's pixels and patches too.
TEST(EngineMediaTest, ASpokenQuestionWhosePictureHasNoRoomIsRefusedBeforeItIsHeard) {
  EngineConfig config = SmallConfig();
  config.max_media_bytes = 1'000'000;
  auto engine = MakeEngine(config);
  const Part spoken{.kind = Part::Kind::kAudio,
                    .text = "",
                    .data = ReadFile(kModels + "/whisper-mini/question.wav"),
                    .language = ""};
  const int64_t before = engine->Stats().steps;
  GenerateRequest request = Ask("", "shapes.png");
  request.messages[0].parts.back() = spoken;
  const auto refused = Collect(*engine->Generate(request));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  EXPECT_NE(refused.status().message().find("1000000"), std::string::npos) << refused.status();
  EXPECT_EQ(engine->Stats().steps, before);
  request.messages[0].parts.erase(request.messages[0].parts.begin());  // without the picture
  EXPECT_EQ(One(Collect(*engine->Generate(request))).heard, "How many red circles are there?");
  EXPECT_EQ(engine->Stats().media_bytes, 0u);
}

TEST_F(EngineTest, PointsArriveInPixelsOfThePicture) {
  const Answer a = One(Collect(*engine_->Generate(Ask("Point to the blue square.", "shapes.png"))));
  ASSERT_EQ(a.points.size(), 1u);
  EXPECT_EQ(a.points[0].label, "blue square");
  EXPECT_EQ(a.points[0].ordinal, 1);
  const std::string png = ReadFile(kModels + "/molmo-mini/shapes.png");
  const auto big_endian = [&](size_t at) {
    return (uint8_t(png[at]) << 24) | (uint8_t(png[at + 1]) << 16) | (uint8_t(png[at + 2]) << 8) |
           uint8_t(png[at + 3]);
  };
  EXPECT_FLOAT_EQ(a.points[0].x, 0.40f * big_endian(16));
  EXPECT_FLOAT_EQ(a.points[0].y, 0.65f * big_endian(20));
}

TEST_F(EngineTest, AStopStringEndsTheAnswerBeforeItAndIsNeverSent) {
  GenerateRequest request = Ask("How many red circles are there?", "shapes.png");
  request.stop = {"shows a total", "never said"};
  const Answer a = One(Collect(*engine_->Generate(std::move(request))));
  EXPECT_EQ(a.reason, FinishReason::kStopString);
  EXPECT_TRUE(a.text.ends_with("</points> ")) << a.text;
  EXPECT_EQ(a.streamed, a.text);
}

// ---- By the next step
// ----------------------------------------------------------------------------
//
// The numbers of Stats() are those of the end of a turn of the loop. With `then` of them told
// before something ends, it may still be in the step that runs, number then + 1: in the next one it
// is not.

// Answers that nobody has to read, and that go on while the test looks.
EngineConfig EndlessConfig() {
  EngineConfig config = SmallConfig();
  config.event_queue_limit = 4096;
  config.prefix_cache = false;  // what ends leaves nothing that the other could share
  return config;
}
GenerateRequest Endless(const std::string& text) {
  GenerateRequest request = Ask(text, "shapes.png", 1500);
  request.sampling.logit_bias = {{637, -1e4f}};  // <|endoftext|>
  return request;
}
// Its first token is there: it decodes from here on.
void WaitForToken(GenerateQueue& queue) {
  GenerateEvent event = queue.Pop();
  while (!std::holds_alternative<GenerateDelta>(event)) {
    CHECK(!std::holds_alternative<StreamEnd>(event)) << std::get<StreamEnd>(event).status;
    event = queue.Pop();
  }
}
EngineStats StatsAtStep(const Engine& engine, int64_t step) {
  EngineStats stats = engine.Stats();
  for (; stats.steps < step; stats = engine.Stats()) {
    CHECK_GT(stats.requests_running, 0) << "no step comes any more";
    std::this_thread::yield();
  }
  return stats;
}

TEST_F(EngineTest, ACancelledRequestIsGoneByTheNextStep) {
  auto engine = MakeEngine(EndlessConfig());
  auto stays = engine->Generate(Endless("How many red circles are there?"));
  auto goes = engine->Generate(Endless("Describe this image."));
  WaitForToken(*stays);
  WaitForToken(*goes);
  const EngineStats before = StatsAtStep(*engine, engine->Stats().steps + 20);
  EXPECT_EQ(before.requests_running, 2);
  goes->Cancel();
  const int64_t then = engine->Stats().steps;
  const EngineStats after = StatsAtStep(*engine, then + 2);
  EXPECT_EQ(after.requests_running, 1);
  EXPECT_LT(after.blocks_used, before.blocks_used);
  EXPECT_LT(after.blocks_reserved, before.blocks_reserved);
  stays->Cancel();
  ExpectIdle(*engine);
}

TEST_F(EngineTest, ARequestPastItsDeadlineIsGoneByTheNextStep) {
  auto engine = MakeEngine(EndlessConfig());
  auto stays = engine->Generate(Endless("How many red circles are there?"));
  WaitForToken(*stays);
  GenerateRequest request = Endless("Describe this image.");
  request.deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(kSanitized ? 8000 : 300);
  auto goes = engine->Generate(request);
  WaitForToken(*goes);
  const EngineStats before = StatsAtStep(*engine, engine->Stats().steps + 1);
  EXPECT_EQ(before.requests_running, 2);
  std::this_thread::sleep_until(*request.deadline);
  const int64_t then = engine->Stats().steps;
  const EngineStats after = StatsAtStep(*engine, then + 2);
  EXPECT_EQ(after.requests_running, 1);
  EXPECT_LT(after.blocks_reserved, before.blocks_reserved);
  GenerateEvent event = goes->Pop();
  while (!std::holds_alternative<StreamEnd>(event)) event = goes->Pop();
  EXPECT_EQ(std::get<StreamEnd>(event).status.code(), absl::StatusCode::kDeadlineExceeded);
  stays->Cancel();
  ExpectIdle(*engine);
}

// Of two answers one may end so and the other goes on.
TEST_F(EngineTest, AStoppedAnswerOfTwoGivesItsBlocksBackByTheNextStep) {
  auto engine = MakeEngine(EndlessConfig());
  GenerateRequest request = Endless("Describe this image.");
  request.max_tokens = 500;
  request.n = 2;
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 3;
  const auto whole = Collect(*engine->Generate(request));
  ASSERT_TRUE(whole.ok()) << whole.status();
  // What the first says after 60 tokens or more, and the second never.
  const std::string &first = (*whole)[0].text, &second = (*whole)[1].text;
  ASSERT_EQ((*whole)[0].ids.size(), 500u);
  for (size_t at = first.size() / 4; request.stop.empty() && at + 6 < first.size() / 2; ++at) {
    const std::string said = first.substr(at, 6);
    if (first.find(said) == at && second.find(said) == std::string::npos) request.stop = {said};
  }
  ASSERT_FALSE(request.stop.empty()) << first;

  const int64_t before = WaitUntilIdle(*engine).steps;
  auto queue = engine->Generate(request);
  GenerateEvent event = queue->Pop();
  while (!std::holds_alternative<GenerateFinished>(event)) event = queue->Pop();
  const auto& finished = std::get<GenerateFinished>(event);
  EXPECT_EQ(finished.index, 0);
  EXPECT_EQ(finished.reason, FinishReason::kStopString);
  // Told of in the step that made it or later: the next one to end is after it.
  const EngineStats after = StatsAtStep(*engine, engine->Stats().steps + 1);
  EXPECT_EQ(after.requests_running, 1);
  // What is left is the other's, which had a token in each step at most.
  const int32_t prompt = finished.usage.prompt_tokens;
  const int32_t own = BlockTable::BlocksFor(prompt + finished.usage.completion_tokens, 16);
  ASSERT_GE(own - prompt / 16, 4) << "the stopped one had too little of its own";
  EXPECT_GE(after.blocks_used, own - 1);
  EXPECT_LE(after.blocks_used, BlockTable::BlocksFor(prompt + after.steps - before, 16));
  queue->Cancel();
  ExpectIdle(*engine);
}

TEST_F(EngineTest, MaxTokensEndsTheAnswerWithLength) {
  const Answer a = One(Collect(*engine_->Generate(Ask("Describe this image.", "wide.png", 3))));
  EXPECT_EQ(a.reason, FinishReason::kLength);
  EXPECT_EQ(a.ids.size(), 3u);
  EXPECT_EQ(a.usage.completion_tokens, 3);
}

TEST_F(EngineTest, SeveralAnswersAreIndependentAndRepeatBySeed) {
  GenerateRequest request = Ask("Describe this image.", "shapes.png");
  request.n = 3;
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 7;
  const auto first = Collect(*engine_->Generate(request));
  const auto second = Collect(*engine_->Generate(request));
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_EQ(first->size(), 3u);
  EXPECT_TRUE(*first == *second);
  EXPECT_NE((*first)[0].ids, (*first)[1].ids);
  request.n = 1;  // the first of three is the only one of one
  EXPECT_TRUE(One(Collect(*engine_->Generate(request))) == (*first)[0]);
  ExpectIdle(*engine_);
}

TEST_F(EngineTest, RefusalsNameWhatIsWrong) {
  GenerateRequest unknown = Ask("hello");
  unknown.model = "nobody";
  auto result = Collect(*engine_->Generate(unknown));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("molmo-mini"));

  GenerateRequest broken = Ask("hello", "shapes.png");
  broken.messages[0].parts[0].data = "not a picture";
  EXPECT_EQ(Collect(*engine_->Generate(broken)).status().code(),
            absl::StatusCode::kInvalidArgument);

  GenerateRequest greedy_for_tokens = Ask("hello", "", 3000);
  result = Collect(*engine_->Generate(greedy_for_tokens));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("3000"));
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("2048"));

  TranscribeRequest klingon = Hear("question.wav");
  klingon.options.language = "tlh";
  const auto heard = Collect(*engine_->Transcribe(klingon));
  EXPECT_EQ(heard.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(heard.status().message()), HasSubstr("en es"));
  ExpectIdle(*engine_);
}

TEST_F(EngineTest, CancellingFreesEverything) {
  GenerateRequest request = Ask("Describe this image.", "shapes.png", 0);
  request.sampling.logit_bias = {};
  std::vector<std::shared_ptr<GenerateQueue>> generating;
  std::vector<std::shared_ptr<TranscribeQueue>> transcribing;
  for (int i = 0; i < 4; ++i) {
    generating.push_back(engine_->Generate(request));
    transcribing.push_back(engine_->Transcribe(Hear("morning.wav")));
  }
  generating[0]->Pop();  // it has started: blocks are in use
  for (auto& queue : generating) queue->Cancel();
  for (auto& queue : transcribing) queue->Cancel();
  ExpectIdle(*engine_);
}

TEST_F(EngineTest, APassedDeadlineEndsTheRequestAndFreesEverything) {
  GenerateRequest request = Ask("Describe this image.", "shapes.png");
  request.deadline = std::chrono::steady_clock::now() - std::chrono::milliseconds(1);
  EXPECT_EQ(Collect(*engine_->Generate(request)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  ExpectIdle(*engine_);
}

// Not read, it cannot be done before: the deadline comes in the middle of its answer.
TEST_F(EngineTest, ADeadlineThatPassesInTheMiddleEndsTheAnswerAndFreesEverything) {
  EngineConfig config = SmallConfig();
  config.event_queue_limit = 4;
  auto engine = MakeEngine(config);
  GenerateRequest request = Ask("How many red circles are there?", "shapes.png");
  const Answer whole = One(Collect(*engine->Generate(request)));
  request.deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(kSanitized ? 5000 : 1000);
  auto queue = engine->Generate(request);
  while (engine->Stats().requests_running == 0) std::this_thread::yield();
  ExpectIdle(*engine);
  GenerateEvent event = queue->Pop();
  std::vector<int32_t> ids;
  bool finished = false;
  for (; !std::holds_alternative<StreamEnd>(event); event = queue->Pop()) {
    if (auto* delta = std::get_if<GenerateDelta>(&event)) {
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
    } else if (auto* end = std::get_if<GenerateFinished>(&event)) {
      EXPECT_EQ(end->reason, FinishReason::kDeadline);
      EXPECT_EQ(end->usage.completion_tokens, static_cast<int32_t>(ids.size()));
      finished = true;
    }
  }
  EXPECT_TRUE(finished);
  EXPECT_EQ(std::get<StreamEnd>(event).status.code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_FALSE(ids.empty());
  ASSERT_LT(ids.size(), whole.ids.size());
  EXPECT_TRUE(std::equal(ids.begin(), ids.end(), whole.ids.begin()));
}

TEST_F(EngineTest, ASlowReaderParksAloneAndLosesNothing) {
  EngineConfig config = SmallConfig();
  config.event_queue_limit = 2;
  auto engine = MakeEngine(config);
  auto slow = engine->Generate(Ask("How many red circles are there?", "shapes.png"));
  // The other is answered whole while nobody reads the first.
  const Answer other =
      One(Collect(*engine->Generate(Ask("How many red circles are there?", "shapes.png"))));
  EXPECT_GT(engine->Stats().blocks_used, 0) << "the slow one holds its place";
  EXPECT_TRUE(One(Collect(*slow)) == other);
  ExpectIdle(*engine);
}

TEST_F(EngineTest, AReaderThatTakesNothingForTooLongLosesItsPlace) {
  EngineConfig config = SmallConfig();
  config.event_queue_limit = 2;
  config.max_batch_seqs = 2;
  config.reader_timeout = std::chrono::milliseconds(50);
  auto engine = MakeEngine(config);
  std::vector<std::shared_ptr<GenerateQueue>> unread;
  for (int i = 0; i < 2; ++i) {
    unread.push_back(engine->Generate(Ask("How many red circles are there?", "shapes.png")));
  }
  while (engine->Stats().requests_running < 2) std::this_thread::yield();
  // All rows are theirs, and nobody reads: this one is answered in the end all the same.
  auto reader = engine->Generate(Ask("How many red circles are there?", "shapes.png"));
  EXPECT_EQ(One(Collect(*reader)).reason, FinishReason::kStop);
  ExpectIdle(*engine);
  for (auto& queue : unread) {
    const auto result = Collect(*queue);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("was not read for 50ms"));
  }
}

TEST_F(EngineTest, ARequestThatCanNeverFitIsRefusedWithBothNumbers) {
  EngineConfig config = SmallConfig();
  config.kv_cache_bytes = 400 << 10;  // eight blocks or so
  auto engine = MakeEngine(config);
  const auto result = Collect(*engine->Generate(Ask("Describe this image.", "shapes.png", 500)));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("KV blocks"));
}

TEST_F(EngineTest, DrainingRefusesNewRequestsAndFinishesRunningOnes) {
  auto engine = MakeEngine(SmallConfig());
  auto running = engine->Generate(Ask("Describe this image.", "wide.png"));
  std::thread drain(
      [&] { engine->Drain(std::chrono::steady_clock::now() + std::chrono::seconds(60)); });
  drain.join();
  const Answer answer = One(Collect(*running));
  EXPECT_EQ(answer.reason, FinishReason::kStop);
  EXPECT_EQ(Collect(*engine->Generate(Ask("hello"))).status().code(),
            absl::StatusCode::kUnavailable);
}

// 36 mixed requests at once, in random orders, with random cuts of their prefill: each answer's
// tokens and log-probabilities are those it gets alone, bit for bit.
TEST_F(EngineTest, AnswersAreTheSameBitsAloneAndInCompany) {
  std::vector<GenerateRequest> questions;
  const std::vector<std::string> texts = {
      "Describe this image.", "How many red circles are there?", "Point to the blue square.",
      "Where are the stars?", "What color is the star?",         "Is there a green cross?"};
  const std::vector<std::string> images = {"shapes.png", "wide.png", "portrait.png", ""};
  for (const std::string& text : texts) {
    for (const std::string& image : images) {
      GenerateRequest request = Ask(text, image, 40);
      if (questions.size() % 3 == 1) {
        request.sampling.temperature = 0.8f;
        request.sampling.seed = questions.size();
        request.n = 2;
      }
      questions.push_back(std::move(request));
    }
  }
  std::vector<TranscribeRequest> recordings;
  for (const char* file : {"question.wav", "pointing.wav", "pregunta.wav", "morning.wav"}) {
    recordings.push_back(Hear(file));
    recordings.push_back(Hear(file));
    recordings.back().options.beam_size = 3;
    recordings.push_back(Sampled(file));
  }
  const int kQuestions = static_cast<int>(questions.size());
  ASSERT_EQ(questions.size() + recordings.size(), 36u);

  std::vector<std::vector<Answer>> alone;
  for (const auto& q : questions) alone.push_back(*Collect(*engine_->Generate(q)));
  std::vector<Heard> heard_alone;
  for (const auto& r : recordings) heard_alone.push_back(*Collect(*engine_->Transcribe(r)));

  std::random_device device;
  for (int round = 0; round < (kSanitized ? 1 : 3); ++round) {
    const uint64_t seed = (uint64_t{device()} << 32 | device()) | 1;
    SCOPED_TRACE(testing::Message() << "chaos seed " << seed);
    EngineConfig config = SmallConfig();
    config.chaos_seed = seed;
    config.max_batch_tokens = 96;
    auto engine = MakeEngine(config);
    std::vector<int> order(questions.size() + recordings.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    std::vector<std::shared_ptr<GenerateQueue>> answers(questions.size());
    std::vector<std::shared_ptr<TranscribeQueue>> transcripts(recordings.size());
    for (const int i : order) {
      if (i < kQuestions) {
        answers[i] = engine->Generate(questions[i]);
      } else {
        transcripts[i - kQuestions] = engine->Transcribe(recordings[i - kQuestions]);
      }
    }
    std::vector<std::thread> readers;
    std::vector<absl::StatusOr<std::vector<Answer>>> got(questions.size());
    std::vector<absl::StatusOr<Heard>> got_heard(recordings.size());
    for (size_t i = 0; i < answers.size(); ++i) {
      readers.emplace_back([&, i] { got[i] = Collect(*answers[i]); });
    }
    for (size_t i = 0; i < transcripts.size(); ++i) {
      readers.emplace_back([&, i] { got_heard[i] = Collect(*transcripts[i]); });
    }
    for (auto& reader : readers) reader.join();
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_TRUE(got[i].ok()) << got[i].status();
      EXPECT_TRUE(*got[i] == alone[i]) << "question " << i;
    }
    for (size_t i = 0; i < transcripts.size(); ++i) {
      ASSERT_TRUE(got_heard[i].ok()) << got_heard[i].status();
      const auto& a = got_heard[i]->segments;
      const auto& b = heard_alone[i].segments;
      ASSERT_EQ(a.size(), b.size()) << "recording " << i;
      for (size_t s = 0; s < a.size(); ++s) {
        EXPECT_EQ(a[s].tokens, b[s].tokens);
        EXPECT_EQ(a[s].avg_logprob, b[s].avg_logprob);
        EXPECT_EQ(a[s].no_speech_probability, b[s].no_speech_probability);
      }
    }
    ExpectIdle(*engine);
  }
}

}  // namespace
}  // namespace sensorium
