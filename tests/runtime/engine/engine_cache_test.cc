// What is found again, and by whom: prompts, pictures and recordings, on the bundled models through
// the engine.
#include "gmock/gmock.h"
#include "tests/runtime/engine/engine_fixture.h"

namespace sensorium {
namespace {

TEST(EngineCacheTest, APictureAskedAboutTwiceIsEncodedOnce) {
  auto engine = MakeEngine(SmallConfig());
  const Answer first = AnswerTo(*engine, Ask("How many red circles are there?", "shapes.png"));
  EXPECT_EQ(engine->Stats().image_misses, 1);
  EXPECT_EQ(first.usage.cached_tokens, 0);
  EXPECT_GT(first.usage.encode_device_us, 0);
  const Answer again = AnswerTo(*engine, Ask("How many red circles are there?", "shapes.png"));
  EXPECT_TRUE(again == first) << again.text;
  EXPECT_EQ(again.usage.encode_device_us, 0);
  EXPECT_EQ(engine->Stats().image_misses, 1);
  ExpectIdle(*engine);
}

// The byte budget of features: a picture that no longer fits is encoded anew, to the same answer.
TEST(EngineCacheTest, PicturesTakeTheirBytesInTurnWhenTheBudgetHoldsOne) {
  for (const int64_t pictures : {1, 2}) {
    EngineConfig config = SmallConfig();
    config.prefix_cache = false;  // which would answer for the picture
    config.image_cache_bytes = static_cast<size_t>(pictures + 1) * kPictureBytes - 1;
    auto engine = MakeEngine(config);
    const Answer first = AnswerTo(*engine, Ask("Describe this image.", "shapes.png"));
    AnswerTo(*engine, Ask("Describe this image.", "portrait.png"));
    EXPECT_TRUE(AnswerTo(*engine, Ask("Describe this image.", "shapes.png")) == first);
    EXPECT_EQ(engine->Stats().image_misses, pictures == 1 ? 3 : 2);
    EXPECT_EQ(engine->Stats().image_hits, pictures == 1 ? 0 : 1);
    ExpectIdle(*engine);
  }
}

// While an answer is written its picture's bytes are another's already.
TEST(EngineCacheTest, APictureNeedsItsBytesUntilItsPromptIsComputed) {
  EngineConfig config = SmallConfig();
  config.prefix_cache = false;
  config.image_cache_bytes = kPictureBytes;
  auto engine = MakeEngine(config);
  GenerateRequest endless = Ask("Describe this image.", "shapes.png", 1500);
  endless.sampling.logit_bias = {{637, -1e4f}};  // <|endoftext|>
  auto first = engine->Generate(endless);
  while (!std::holds_alternative<GenerateDelta>(first->Pop())) {
  }
  AnswerTo(*engine, Ask("Describe this image.", "portrait.png"));
  EXPECT_EQ(engine->Stats().image_misses, 2);
  while (engine->Stats().requests_running > 1) std::this_thread::yield();
  EXPECT_EQ(engine->Stats().requests_running, 1) << "the first is still being written";
  first->Cancel();
  ExpectIdle(*engine);
}

// As for pictures, of the KV blocks that hold a window's encoding.
TEST(EngineCacheTest, RecordingsTakeTheirBytesInTurnWhenTheBudgetHoldsOne) {
  EngineConfig config = SmallConfig();
  config.models.erase(config.models.begin());
  const size_t block_bytes = [&] {
    auto engine = MakeEngine(config);
    return config.kv_cache_bytes / static_cast<size_t>(engine->Stats().blocks_total);
  }();
  for (const size_t recordings : {1, 2}) {
    // question.wav and pointing.wav: a window each.
    const int64_t window = [&] {
      auto engine = MakeEngine(config);
      CHECK(Collect(*engine->Transcribe(Hear("question.wav"))).ok());
      return engine->Stats().audio_miss_blocks;
    }();
    config.encoder_cache_bytes = recordings * static_cast<size_t>(window) * block_bytes;
    auto engine = MakeEngine(config);
    for (const char* name : {"question.wav", "pointing.wav", "question.wav"}) {
      CHECK(Collect(*engine->Transcribe(Hear(name))).ok());
    }
    EXPECT_EQ(engine->Stats().audio_hit_blocks, recordings == 1 ? 0 : window);
    ExpectIdle(*engine);
  }
}

TEST(EngineCacheTest, ABudgetThatHoldsNoPictureIsRefusedAtStartWithBothNumbers) {
  EngineConfig config = SmallConfig();
  config.image_cache_bytes = kPictureBytes - 1;
  const absl::Status status = Engine::Create(config, *CpuBackend::Create({})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "image_cache_bytes is 55295; one picture of molmo-mini takes 55296");
}

TEST(EngineCacheTest, TwoQuestionsAboutOnePictureShareItsPrefix) {
  auto engine = MakeEngine(SmallConfig());
  const Answer alone = AnswerTo(*engine, Ask("Point to the blue square.", "shapes.png"));
  auto fresh = MakeEngine(SmallConfig());
  AnswerTo(*fresh, Ask("How many red circles are there?", "shapes.png"));
  const int64_t misses = fresh->Stats().prefix_miss_blocks;
  const Answer second = AnswerTo(*fresh, Ask("Point to the blue square.", "shapes.png"));
  EXPECT_TRUE(second == alone) << second.text;
  // BOS and the picture's 88 tokens: five whole blocks of 16.
  EXPECT_EQ(second.usage.cached_tokens, 80);
  EXPECT_EQ(fresh->Stats().prefix_hit_blocks, 5);
  EXPECT_GT(fresh->Stats().prefix_miss_blocks, misses);
  ExpectIdle(*fresh);
}

TEST(EngineCacheTest, ACutShortCacheGivesTheSameBits) {
  EngineConfig off = SmallConfig();
  off.prefix_cache = false;
  off.encoder_cache_bytes = 0;
  auto without = MakeEngine(off);
  auto with = MakeEngine(SmallConfig());
  for (int round = 0; round < 2; ++round) {
    for (const char* text : {"Describe this image.", "Where are the stars?"}) {
      EXPECT_TRUE(AnswerTo(*with, Ask(text, "wide.png")) ==
                  AnswerTo(*without, Ask(text, "wide.png")))
          << text;
    }
  }
  EXPECT_GT(with->Stats().prefix_hit_blocks, 0);
  EXPECT_EQ(without->Stats().prefix_hit_blocks, 0);
}

TEST(EngineCacheTest, ARecordingHeardTwiceIsEncodedOnce) {
  auto engine = MakeEngine(SmallConfig());
  const auto first = Collect(*engine->Transcribe(Hear("morning.wav")));
  ASSERT_TRUE(first.ok());
  const int64_t misses = engine->Stats().audio_miss_blocks;
  const auto again = Collect(*engine->Transcribe(Hear("morning.wav")));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->text, first->text);
  EXPECT_EQ(engine->Stats().audio_miss_blocks, misses);
  EXPECT_GT(engine->Stats().audio_hit_blocks, 0);
  ExpectIdle(*engine);
}

TEST(EngineCacheTest, TheSameRecordingTwiceAtOnceIsEncodedOnce) {
  auto engine = MakeEngine(SmallConfig());
  const auto alone = Collect(*engine->Transcribe(Hear("question.wav")));
  ASSERT_TRUE(alone.ok());
  const int64_t blocks = engine->Stats().audio_miss_blocks;  // asked for, and not there
  auto fresh = MakeEngine(SmallConfig());
  std::vector<std::shared_ptr<TranscribeQueue>> queues;
  for (int i = 0; i < 4; ++i) queues.push_back(fresh->Transcribe(Hear("question.wav")));
  for (auto& queue : queues) {
    const auto heard = Collect(*queue);
    ASSERT_TRUE(heard.ok()) << heard.status();
    EXPECT_EQ(heard->text, alone->text);
  }
  EXPECT_EQ(fresh->Stats().audio_miss_blocks, blocks);
  ExpectIdle(*fresh);
}

// Who waits for another's encode takes it over when that one goes.
TEST(EngineCacheTest, ARecordingWhoseFirstHearerLeavesIsHeardByTheSecond) {
  auto engine = MakeEngine(SmallConfig());
  const auto alone = Collect(*engine->Transcribe(Hear("morning.wav")));
  ASSERT_TRUE(alone.ok());
  for (int i = 0; i < (kSanitized ? 1 : 6); ++i) {
    auto fresh = MakeEngine(SmallConfig());
    auto first = fresh->Transcribe(Hear("morning.wav"));
    auto second = fresh->Transcribe(Hear("morning.wav"));
    while (fresh->Stats().steps < 2 * i) std::this_thread::yield();
    first->Cancel();
    const auto heard = Collect(*second);
    ASSERT_TRUE(heard.ok()) << heard.status();
    EXPECT_EQ(heard->text, alone->text);
    ExpectIdle(*fresh);
  }
}

// Who stands still before a window for its reader's sake keeps nobody else from hearing it.
TEST(EngineCacheTest, AWindowWhoseFirstHearerIsSlowIsEncodedByTheSecond) {
  auto roomy = MakeEngine(SmallConfig());
  const auto alone = Collect(*roomy->Transcribe(Hear("morning.wav")));
  ASSERT_TRUE(alone.ok());
  ExpectIdle(*roomy);
  for (const size_t limit : {1, 2, 4}) {
    SCOPED_TRACE(testing::Message() << "a queue of " << limit);
    EngineConfig config = SmallConfig();
    config.event_queue_limit = limit;
    config.reader_timeout = std::chrono::seconds(kSanitized ? 120 : 10);  // or it would go on then
    auto engine = MakeEngine(config);
    auto slow = engine->Transcribe(Hear("morning.wav"));
    while (slow->HasRoom()) std::this_thread::yield();
    const auto second = Collect(*engine->Transcribe(Hear("morning.wav")));
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_EQ(second->text, alone->text);
    const auto first = Collect(*slow);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(first->text, alone->text);
    ExpectIdle(*engine);
    // Each window was encoded by one of them.
    EXPECT_EQ(engine->Stats().audio_miss_blocks, roomy->Stats().audio_miss_blocks);
  }
}

// Crop by crop, so that others come while it is encoded; and nothing of its prompt is kept, so that
// each of them needs its features.
EngineConfig PictureConfig() {
  EngineConfig config = SmallConfig();
  config.models.resize(1);
  config.prefix_cache = false;
  config.max_encode_units = 1;
  return config;
}

TEST(EngineCacheTest, TheSamePictureTwiceAtOnceIsEncodedOnce) {
  const std::vector<std::string> questions = {"Describe this image.", "Where are the stars?",
                                              "Point to the blue square.", "Describe this image."};
  std::vector<Answer> alone;
  auto engine = MakeEngine(PictureConfig());
  for (const auto& q : questions) alone.push_back(AnswerTo(*engine, Ask(q, "wide.png")));
  auto fresh = MakeEngine(PictureConfig());
  std::vector<std::shared_ptr<GenerateQueue>> queues;
  for (const auto& q : questions) queues.push_back(fresh->Generate(Ask(q, "wide.png")));
  for (size_t i = 0; i < queues.size(); ++i) {
    EXPECT_TRUE(One(Collect(*queues[i])) == alone[i]) << questions[i];
  }
  ExpectIdle(*fresh);
  EXPECT_EQ(fresh->Stats().image_misses, 1);
  EXPECT_EQ(fresh->Stats().image_hits, 3);
}

// Who waits for another's encode takes it over when that one goes.
TEST(EngineCacheTest, APictureWhoseFirstAskerLeavesIsEncodedForTheSecond) {
  auto engine = MakeEngine(PictureConfig());
  const Answer alone = AnswerTo(*engine, Ask("Describe this image.", "wide.png"));
  for (int i = 0; i < (kSanitized ? 2 : 6); ++i) {
    auto fresh = MakeEngine(PictureConfig());
    auto first = fresh->Generate(Ask("Where are the stars?", "wide.png"));
    while (fresh->Stats().requests_running == 0) std::this_thread::yield();
    auto second = fresh->Generate(Ask("Describe this image.", "wide.png"));
    const int64_t then = fresh->Stats().steps;
    while (fresh->Stats().steps < then + i) std::this_thread::yield();
    first->Cancel();
    EXPECT_TRUE(One(Collect(*second)) == alone) << "after " << i << " steps";
    ExpectIdle(*fresh);
  }
}

TEST(EngineCacheTest, AConversationsNextTurnFindsTheLastAnswer) {
  GenerateRequest request = Ask("Point to the red circles.", "shapes.png");
  auto engine = MakeEngine(SmallConfig());
  const Answer first = AnswerTo(*engine, request);
  ASSERT_GT(first.ids.size(), 32u) << first.text;
  const auto turn = [](Role role, const std::string& text) {
    return Message{
        .role = role,
        .parts = {{.kind = Part::Kind::kText, .text = text, .data = "", .language = ""}}};
  };
  request.messages.push_back(turn(Role::kAssistant, first.text));
  request.messages.push_back(turn(Role::kUser, "How many red circles are there?"));
  const Answer next = AnswerTo(*engine, request);
  auto fresh = MakeEngine(SmallConfig());
  EXPECT_TRUE(next == AnswerTo(*fresh, request)) << next.text;
  // Where the prompt goes on as the model did, it is not computed again.
  std::vector<int32_t> said = first.prompt;
  said.insert(said.end(), first.ids.begin(), first.ids.end());
  const size_t same = static_cast<size_t>(
      std::mismatch(said.begin(), said.end(), next.prompt.begin(), next.prompt.end()).first -
      said.begin());
  EXPECT_GT(same, first.prompt.size() + 16);
  EXPECT_EQ(next.usage.cached_tokens,
            static_cast<int32_t>(std::min(same, said.size() - 1) / 16 * 16));
}

TEST(EngineCacheTest, AnotherPictureOfTheSameSizeIsNotTakenForTheFirst) {
  auto engine = MakeEngine(SmallConfig());
  auto fresh = MakeEngine(SmallConfig());
  AnswerTo(*engine, Ask("Describe this image.", "shapes.png"));
  const Answer other = AnswerTo(*engine, Ask("Describe this image.", "portrait.png"));
  EXPECT_EQ(other.usage.cached_tokens, 0);
  EXPECT_TRUE(other == AnswerTo(*fresh, Ask("Describe this image.", "portrait.png")));
}

// What one tenant asked is nothing another may find out by asking the same and looking at the
// clock.
TEST(EngineCacheTest, OneTenantsPromptsAndMediaAreNotFoundByAnother) {
  auto engine = MakeEngine(SmallConfig());
  const auto ask = [&](const char* tenant) {
    GenerateRequest request = Ask("How many red circles are there?", "shapes.png");
    request.tenant = tenant;
    return AnswerTo(*engine, std::move(request));
  };
  const auto hear = [&](const char* tenant) {
    TranscribeRequest request = Hear("question.wav");
    request.tenant = tenant;
    CHECK(Collect(*engine->Transcribe(std::move(request))).ok());
    return engine->Stats().audio_hit_blocks;
  };
  const Answer first = ask("a");
  EXPECT_EQ(hear("a"), 0);
  const Answer others = ask("b");
  EXPECT_TRUE(others == first);
  EXPECT_EQ(others.usage.cached_tokens, 0);
  EXPECT_EQ(engine->Stats().image_misses, 2);
  EXPECT_EQ(hear("b"), 0);
  const Answer again = ask("a");
  EXPECT_TRUE(again == first);
  EXPECT_GT(again.usage.cached_tokens, 0);
  EXPECT_EQ(engine->Stats().image_misses, 2);
  EXPECT_GT(hear("a"), 0);
}

// Equal weights under two names are two models: another checkpoint may come under either.
TEST(EngineCacheTest, OneModelsPromptsAndMediaAreNotFoundByAnother) {
  EngineConfig config = SmallConfig();
  config.models = {{"a", kModels + "/molmo-mini"}, {"b", kModels + "/molmo-mini"}};
  auto engine = MakeEngine(config);
  const auto ask = [&](const char* model) {
    GenerateRequest request = Ask("How many red circles are there?", "shapes.png");
    request.model = model;
    return AnswerTo(*engine, std::move(request));
  };
  const Answer first = ask("a");
  const Answer others = ask("b");
  EXPECT_TRUE(others == first);
  EXPECT_EQ(others.usage.cached_tokens, 0);
  EXPECT_EQ(engine->Stats().image_misses, 2);
  EXPECT_GT(ask("a").usage.cached_tokens, 0);
  EXPECT_GT(ask("b").usage.cached_tokens, 0);
}

}  // namespace
}  // namespace sensorium
