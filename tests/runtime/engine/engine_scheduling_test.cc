// What the scheduler and admission promise, on the bundled models through the engine.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "runtime/scheduler/trace.h"
#include "tests/runtime/engine/engine_fixture.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

void ForEachEvent(const std::string& trace, const std::function<void(const TraceEvent&)>& f) {
  auto reader = TraceReader::Open(trace);
  ASSERT_TRUE(reader.ok()) << reader.status();
  while (true) {
    const auto event = (*reader)->Next();
    ASSERT_TRUE(event.ok()) << event.status();
    if (*event == nullptr) return;
    f(**event);
  }
}

// The next step is prepared while the device works on this one and its tokens are copied back.
TEST(EngineAdmissionTest, WhoComesWhileTheDeviceWorksIsAdmittedMeanwhile) {
  EngineConfig config = SmallConfig();
  config.trace_path = testing::TempDir() + "/meanwhile.trace";
  auto engine = MakeEngine(config);
  std::thread others([&] {
    for (int i = 0; i < 10; ++i) AnswerTo(*engine, Ask("Describe this image.", "wide.png"));
  });
  for (int i = 0; i < 30; ++i) AnswerTo(*engine, Ask("Where?", "", 3));
  others.join();
  engine.reset();
  int meanwhile = 0, between = 0;
  bool works = false;
  ForEachEvent(config.trace_path, [&](const TraceEvent& event) {
    if (event.kind == TraceEvent::Kind::kPlan) works = true;
    if (event.kind == TraceEvent::Kind::kCommit) works = false;
    if (event.kind == TraceEvent::Kind::kAdmit) ++(works ? meanwhile : between);
  });
  EXPECT_EQ(meanwhile + between, 40);
  EXPECT_GT(meanwhile, 0);
}

// A question asked again has hardly anything before its first token, and is measured by that.
TEST(EngineAdmissionTest, WhatTheCachesHaveIsNotPredictedAgain) {
  EngineConfig config = SmallConfig();
  config.trace_path = testing::TempDir() + "/foreseen.trace";
  auto engine = MakeEngine(config);
  const auto first = AnswerTo(*engine, Ask("Describe this image.", "wide.png"));
  AnswerTo(*engine, Ask("Describe this image.", "wide.png"));
  AnswerTo(*engine, Ask("Where?", "wide.png"));
  AnswerTo(*engine, Ask("Where?", "small.png"));
  engine.reset();
  std::vector<JobSpec> specs;
  ForEachEvent(config.trace_path, [&](const TraceEvent& event) {
    if (event.kind == TraceEvent::Kind::kAdd) specs.push_back(event.spec);
  });
  ASSERT_EQ(specs.size(), 4u);
  const int32_t block = 16;
  EXPECT_EQ(specs[0].prefill_tokens, first.usage.prompt_tokens);
  EXPECT_GT(specs[0].encode_units, 0);
  EXPECT_LE(specs[1].prefill_tokens, block);
  EXPECT_EQ(specs[1].encode_units, 0);
  EXPECT_LT(specs[2].prefill_tokens, specs[0].prefill_tokens / 2);
  EXPECT_EQ(specs[2].encode_units, 0);
  EXPECT_GT(specs[3].encode_units, 0);
}

// The trace's head has the prices that the scheduler began with.
TEST(EngineCalibrationTest, PricesAreMeasuredAtTheStart) {
  const auto prices = [](bool calibrate) {
    EngineConfig config = SmallConfig();
    config.calibrate = calibrate;
    config.trace_path = testing::TempDir() + "/calibration.trace";
    MakeEngine(config).reset();
    auto reader = TraceReader::Open(config.trace_path);
    CHECK(reader.ok()) << reader.status();
    std::vector<Prices> found;
    for (const SchedulerModel& model : (*reader)->header().options.models) {
      found.push_back(model.prices);
    }
    return found;
  };
  const std::vector<Prices> guessed = prices(false), measured = prices(true);
  ASSERT_EQ(guessed.size(), 2u);
  ASSERT_EQ(measured.size(), 2u);
  EXPECT_TRUE(prices(false) == guessed);
  for (size_t m = 0; m < 2; ++m) {
    const auto all = [](const Prices& p) {
      return std::vector<int64_t>{p.encode_unit_ps,     p.forward_ps,    p.prefill_token_ps,
                                  p.prefill_context_ps, p.decode_row_ps, p.decode_context_ps,
                                  p.cross_position_ps};
    };
    const std::vector<int64_t> before = all(guessed[m]), after = all(measured[m]);
    int changed = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(before[i] > 0, after[i] > 0) << "model " << m << ", price " << i;
      changed += before[i] != after[i];
    }
    EXPECT_GE(changed, 4) << "model " << m;  // what a pass consists of was seen
  }
}

// Begun with prices far from the truth, the scheduler soon predicts its steps better.
TEST(EngineCalibrationTest, PricesAreRefinedByTheStepsThatRun) {
  EngineConfig config = SmallConfig();
  config.calibrate = false;
  config.first_prices = kSanitized ? 0.2 : 0.02;
  config.trace_path = testing::TempDir() + "/refined.trace";
  {
    auto engine = MakeEngine(config);
    for (const char* text : {"Describe this image.", "How many red circles are there?",
                             "Point to the blue square.", "Where are the stars?"}) {
      for (const char* image : {"shapes.png", "portrait.png"}) AnswerTo(*engine, Ask(text, image));
    }
    ASSERT_TRUE(Collect(*engine->Transcribe(Hear("question.wav"))).ok());
  }
  auto reader = TraceReader::Open(config.trace_path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::vector<double> errors;  // of each step: how often over or under, as a logarithm
  std::set<int32_t> refined;
  double predicted_us = 0;
  while (true) {
    const auto event = (*reader)->Next();
    ASSERT_TRUE(event.ok()) << event.status();
    if (*event == nullptr) break;
    if ((*event)->kind == TraceEvent::Kind::kPrices) refined.insert((*event)->model);
    if ((*event)->kind == TraceEvent::Kind::kPlan) {
      predicted_us = static_cast<double>((*event)->plan.predicted_ns) / 1000;
    }
    if ((*event)->kind == TraceEvent::Kind::kCommit && (*event)->elapsed_us > 0) {
      const auto elapsed_us = static_cast<double>((*event)->elapsed_us);
      errors.push_back(std::abs(std::log(predicted_us / elapsed_us)));
    }
  }
  EXPECT_THAT(refined, testing::ElementsAre(0, 1));
  ASSERT_GT(errors.size(), 100u);
  const auto median = [](std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  const double first = median({errors.begin(), errors.begin() + 5});
  const double last =
      median({errors.begin() + static_cast<int64_t>(errors.size() / 2), errors.end()});
  EXPECT_LT(last, first / 2);
  std::printf("off by a factor of %.1f in the first steps, of %.2f in the last half\n",
              std::exp(first), std::exp(last));
}

// What is spoken is heard by another model, on the same device and the same bill.
TEST(EngineUsageTest, ASpokenQuestionsCostIsInItsUsage) {
  auto engine = MakeEngine(SmallConfig());
  GenerateRequest request = Ask("", "");
  request.messages[0].parts.back() = {.kind = Part::Kind::kAudio,
                                      .text = "",
                                      .data = ReadFile(kModels + "/whisper-mini/question.wav"),
                                      .language = ""};
  const Answer spoken = AnswerTo(*engine, std::move(request));
  const Answer written = AnswerTo(*engine, Ask(spoken.heard));
  ASSERT_EQ(written.ids, spoken.ids);
  EXPECT_EQ(written.usage.encode_device_us, 0);
  EXPECT_GT(spoken.usage.encode_device_us, 0);
  EXPECT_GT(spoken.usage.audio_ms, 0);
  // The window's cross-attention is more than the few blocks of so short an answer.
  EXPECT_GT(spoken.usage.kv_blocks_peak, written.usage.kv_blocks_peak);
}

// Its only word of what it cost.
TEST(EngineUsageTest, ATranscriptionThatEndsEarlySaysWhatItCost) {
  EngineConfig config = SmallConfig();
  config.event_queue_limit = 1;
  config.reader_timeout = std::chrono::milliseconds(50);
  auto engine = MakeEngine(config);
  auto unread = engine->Transcribe(Hear("morning.wav"));
  while (unread->HasRoom()) std::this_thread::yield();
  ExpectIdle(*engine);
  TranscribeEvent event = unread->Pop();
  while (!std::holds_alternative<StreamEnd>(event)) event = unread->Pop();
  const StreamEnd& end = std::get<StreamEnd>(event);
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(end.usage.has_value());
  EXPECT_GT(end.usage->encode_device_us, 0);
  EXPECT_GT(end.usage->prefill_device_us, 0);
  EXPECT_GT(end.usage->kv_block_ms, 0);
  EXPECT_GT(end.usage->audio_ms, 0);
}

TEST(EngineUsageTest, SaysWhatARequestCost) {
  auto engine = MakeEngine(SmallConfig());
  const Answer a = AnswerTo(*engine, Ask("Describe this image.", "wide.png"));
  EXPECT_GT(a.usage.encode_device_us, 0);
  EXPECT_GT(a.usage.prefill_device_us, 0);
  EXPECT_GT(a.usage.decode_device_us, 0);
  EXPECT_GT(a.usage.kv_block_ms, 0);
}

TEST(EngineAdmissionTest, ADeadlineThatCannotBeMetIsRefusedWithThePredictedTime) {
  EngineConfig config = SmallConfig();
  config.calibrate = true;
  auto engine = MakeEngine(config);
  const int kBacklog = kSanitized ? 20 : 40;
  std::vector<std::shared_ptr<TranscribeQueue>> backlog;
  for (int i = 0; i < kBacklog; ++i) {  // seconds of encoding
    TranscribeRequest request = Hear("morning.wav");
    request.options.clip_start_ms = i * 10;  // no two alike
    backlog.push_back(engine->Transcribe(std::move(request)));
  }
  // They are counted once they are prepared; one that has started shows that the others are near.
  while (engine->Stats().requests_running + engine->Stats().requests_waiting < kBacklog) {
    std::this_thread::yield();
  }
  GenerateRequest hurried = Ask("Describe this image.", "shapes.png");
  hurried.deadline = std::chrono::steady_clock::now() +
                     std::chrono::milliseconds(kSanitized ? 3000 : 300);  // enough to be prepared
  const auto result = Collect(*engine->Generate(std::move(hurried)));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("predicted after"));
  for (auto& queue : backlog) queue->Cancel();
  ExpectIdle(*engine);
}

// A pool that holds the worst case of one request in five, so that optimistic admission has to
// preempt.
TEST(EngineAdmissionTest, PreemptedRequestsGiveTheSameBits) {
  auto roomy = MakeEngine(SmallConfig());
  std::vector<GenerateRequest> questions;
  for (int i = 0; i < (kSanitized ? 6 : 12); ++i) {
    GenerateRequest request =
        Ask(i % 2 ? "How many red circles are there?" : "Describe this image.",
            i % 3 ? "shapes.png" : "wide.png", 90);
    if (i % 4 == 1) {
      request.n = 2;
      request.sampling.temperature = 0.9f;
      request.sampling.seed = static_cast<uint64_t>(i);
    }
    questions.push_back(std::move(request));
  }
  std::vector<TranscribeRequest> recordings;
  for (const char* file : {"question.wav", "morning.wav"}) {
    recordings.push_back(Hear(file));
    recordings.back().options.beam_size = 3;
    recordings.push_back(Sampled(file));
  }
  std::vector<std::vector<Answer>> alone;
  for (const auto& q : questions) alone.push_back(*Collect(*roomy->Generate(q)));
  std::vector<Heard> heard_alone;
  for (const auto& r : recordings) heard_alone.push_back(*Collect(*roomy->Transcribe(r)));

  EngineConfig config = SmallConfig();
  config.optimistic_admission = true;
  config.kv_cache_bytes = size_t{50} * (72 << 10);
  config.chaos_seed = std::random_device{}() | 1;
  SCOPED_TRACE(testing::Message() << "chaos seed " << config.chaos_seed);
  auto engine = MakeEngine(config);
  const int kRounds = kSanitized ? 1 : 3;
  const auto preemptions = [&] { return engine->Stats().preemptions; };
  // Whether blocks run out depends on how far the others have come; in twenty rounds they do.
  for (int round = 0; round < kRounds || (preemptions() == 0 && round < 20); ++round) {
    AnswerTo(*engine, Ask("hello", "", 2));  // so short an answer is what is expected now
    std::vector<std::shared_ptr<GenerateQueue>> answers;
    std::vector<std::shared_ptr<TranscribeQueue>> transcripts;
    for (const auto& q : questions) answers.push_back(engine->Generate(q));
    for (const auto& r : recordings) transcripts.push_back(engine->Transcribe(r));
    std::vector<std::thread> readers;
    std::vector<absl::StatusOr<std::vector<Answer>>> got(questions.size());
    std::vector<absl::StatusOr<Heard>> heard(recordings.size());
    for (size_t i = 0; i < answers.size(); ++i) {
      readers.emplace_back([&, i] { got[i] = Collect(*answers[i]); });
    }
    for (size_t i = 0; i < transcripts.size(); ++i) {
      readers.emplace_back([&, i] { heard[i] = Collect(*transcripts[i]); });
    }
    for (auto& reader : readers) reader.join();
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_TRUE(got[i].ok()) << got[i].status();
      EXPECT_TRUE(*got[i] == alone[i]) << "question " << i;
    }
    for (size_t i = 0; i < transcripts.size(); ++i) {
      ASSERT_TRUE(heard[i].ok()) << heard[i].status();
      ASSERT_EQ(heard[i]->segments.size(), heard_alone[i].segments.size());
      for (size_t s = 0; s < heard[i]->segments.size(); ++s) {
        EXPECT_EQ(heard[i]->segments[s].tokens, heard_alone[i].segments[s].tokens);
        EXPECT_EQ(heard[i]->segments[s].avg_logprob, heard_alone[i].segments[s].avg_logprob);
      }
    }
  }
  EXPECT_GT(preemptions(), 0);
  ExpectIdle(*engine);
}

// Two requests for which there is room at first and not in the end: the younger one goes, and comes
// back with three answers that have come to different lengths.
TEST(EngineAdmissionTest, SeveralAnswersOfAPreemptedRequestAreTheSameBits) {
  GenerateRequest several = Ask("Describe this image.", "shapes.png", 60);
  several.n = 3;
  several.sampling.temperature = 1.0f;
  several.sampling.seed = 5;
  GenerateRequest older = Ask("Point to the red circles.", "shapes.png", 90);
  older.n = 2;
  EngineConfig config = SmallConfig();
  config.models.resize(1);
  auto roomy = MakeEngine(config);
  const size_t block_bytes =
      config.kv_cache_bytes / static_cast<size_t>(roomy->Stats().blocks_total);
  config.optimistic_admission = true;
  const auto alone = Collect(*roomy->Generate(several));
  const auto older_alone = Collect(*roomy->Generate(older));
  ASSERT_TRUE(alone.ok() && older_alone.ok());
  int preempted = 0;
  for (int32_t blocks = 35; blocks <= 47; blocks += 3) {
    config.prefix_cache = blocks % 2;
    config.kv_cache_bytes = static_cast<size_t>(blocks) * block_bytes;
    auto engine = MakeEngine(config);
    AnswerTo(*engine, Ask("hello", "", 2));  // so short an answer is what is expected now
    auto first = engine->Generate(older);
    while (engine->Stats().requests_running < 1) std::this_thread::yield();
    auto second = engine->Generate(several);
    std::thread reader([&] {
      const auto got = Collect(*first);
      EXPECT_TRUE(got.ok() && *got == *older_alone) << blocks << ": " << got.status();
    });
    const auto got = Collect(*second);
    reader.join();
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(*got == *alone) << blocks;
    preempted += engine->Stats().preemptions > 0;
  }
  EXPECT_GT(preempted, 0);
}

constexpr int kHouses = kSanitized ? 4 : 10, kSchedules = kSanitized ? 3 : 200;  // of each

// Thousands of random schedules: which requests run together, how prefills are cut, in which order,
// what is cached from before, who is preempted. Each answer is the one it gets alone.
TEST(EnginePropertyTest, AnswersDoNotDependOnTheSchedule) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const std::vector<std::string> texts = {"Describe this image.", "How many stars are there?",
                                          "Where?",
                                          "Point to the blue square, the red circle and "
                                          "the green star and then say how many there are."};
  std::vector<GenerateRequest> requests;
  for (size_t i = 0; i < (kSanitized ? 12 : 24); ++i) {
    GenerateRequest request =
        Ask(texts[i % texts.size()], i == 5 ? "small.png" : "", i % 5 == 4 ? 24 : 2 + i % 6);
    if (i % 3 == 1) {
      request.n = 1 + static_cast<int32_t>(i % 2);
      request.sampling.temperature = 1.0f;
      request.sampling.seed = i;
    }
    requests.push_back(std::move(request));
  }
  auto alone = MakeEngine(SmallConfig());
  std::vector<std::vector<Answer>> expected;
  for (const auto& request : requests) expected.push_back(*Collect(*alone->Generate(request)));

  const KvLayout layout{.layers = 6, .kv_heads = 1, .head_dim = 64, .block_size = 16};
  const size_t block_bytes = (*CpuBackend::Create({}))->KvBlockBytes(layout);
  int schedules = 0;
  int64_t preemptions = 0;
  for (int house = 0; house < kHouses; ++house) {
    EngineConfig config = SmallConfig();
    config.models.resize(1);
    config.calibrate = false;
    config.chaos_seed = random() | 1;
    // In large blocks there is rarely anything to run out of.
    config.block_tokens =
        16 * (house % 2 ? 1 + house / 2 % 2 : 1 + static_cast<int32_t>(random() % 3));
    config.max_batch_tokens = static_cast<int32_t>(8 + random() % 120);
    config.max_batch_seqs = static_cast<int32_t>((house % 2 ? 8 : 2) + random() % 8);
    config.max_batch_seqs = std::min(config.max_batch_seqs, config.max_batch_tokens);
    config.optimistic_admission = house % 2;
    config.prefix_cache = random() % 4 != 0;
    config.target_step_us = random() % 2 ? 0 : 500 << (random() % 6);
    config.kv_cache_bytes =
        block_bytes * config.block_tokens / 16 * (8 + random() % (house % 2 ? 4 : 12));
    config.image_cache_bytes = (1 + random() % 3) * kPictureBytes;
    auto engine = MakeEngine(config);
    for (int round = 0; round < kSchedules; ++round, ++schedules) {
      std::vector<size_t> chosen;
      std::vector<std::shared_ptr<GenerateQueue>> queues;
      for (size_t k = 1 + random() % 8; k > 0; --k) {
        chosen.push_back(random() % requests.size());
        queues.push_back(engine->Generate(requests[chosen.back()]));
        if (random() % 8 == 0) queues.back()->Cancel();
      }
      for (size_t k = 0; k < queues.size(); ++k) {
        if (queues[k]->cancelled()) continue;
        const auto got = Collect(*queues[k]);
        ASSERT_TRUE(got.ok()) << got.status();
        ASSERT_TRUE(*got == expected[chosen[k]])
            << "request " << chosen[k] << ", house " << house << ", round " << round;
      }
    }
    ExpectIdle(*engine);
    preemptions += engine->Stats().preemptions;
  }
  if (schedules >= 2000) {
    EXPECT_GT(preemptions, 0);
  }
  std::printf("%d schedules, %lld preemptions\n", schedules, static_cast<long long>(preemptions));
}

}  // namespace
}  // namespace sensorium
