// What is in a step, and how long it may be.
#include <algorithm>
#include <cstdio>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"
#include "tests/runtime/scheduler/house.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

TEST(SchedulerTest, DecodesGoFirstAndAlwaysAllOfThem) {
  House house(Priced(/*target_step_us=*/500));  // less than the decodes take
  const JobId fill = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 1000});
  std::vector<PlanItem> decodes;
  for (int i = 0; i < 20; ++i) decodes.push_back(Decode(house.Admitted({}, kDecodes)));
  for (int step = 0; step < 100; ++step) {
    const std::vector<PlanItem> plan = house.Step();
    ASSERT_GE(plan.size(), decodes.size());
    ASSERT_TRUE(std::equal(decodes.begin(), decodes.end(), plan.begin()));
    EXPECT_EQ(house.decode_ns, 3'000'000);
    for (size_t i = decodes.size(); i < plan.size(); ++i) EXPECT_EQ(plan[i].job, fill);
  }
  EXPECT_GT(house.scheduler.cost(fill, house.now_us).prefill_ns, 0);
}

// The engine takes submissions and admits while the device works on a plan.
TEST(SchedulerTest, WhoComesWhileAStepRunsIsAdmittedAtOnceAndInTheNext) {
  House house(Priced(10'000));
  const JobId decode = house.Admitted({}, kDecodes);
  const JobId prefill = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 100});
  EXPECT_THAT(house.Plan(), ElementsAre(Decode(decode), Prefill(prefill, 100)));
  const JobId late = house.Add({.prefill_tokens = 10});
  const JobId gone = house.Add({.prefill_tokens = 10});
  house.scheduler.Remove(gone);
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(late));
  house.scheduler.SetWork(late, {.kind = WorkKind::kPrefill, .amount = 10});
  house.Commit();
  EXPECT_EQ(house.scheduler.cost(late, house.now_us).prefill_ns, 0);
  EXPECT_GT(house.scheduler.cost(prefill, house.now_us).prefill_ns, 0);
  house.scheduler.SetWork(prefill, kDecodes);
  EXPECT_THAT(house.Step(),
              UnorderedElementsAre(Decode(decode), Decode(prefill), Prefill(late, 10)));
}

TEST(SchedulerTest, APrefillIsCutToWhatIsLeftOfTheTarget) {
  House house(Priced(10'000));
  const JobId decode = house.Admitted({}, kDecodes);
  const JobId prefill = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 1000});
  // 10 ms less the pass and the row are 8.9 ms, at 50 us a token.
  EXPECT_THAT(house.Plan(), ElementsAre(Decode(decode), Prefill(prefill, 178)));
  EXPECT_EQ(house.predicted_ns, 10'000'000);
}

TEST(SchedulerTest, APrefillIsCutToTheTokensOfAPass) {
  SchedulerOptions options = Priced(1'000'000);
  options.max_batch_tokens = 40;
  House house(options);
  const JobId decode = house.Admitted({}, kDecodes);
  const JobId first = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 30});
  const JobId second = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 30});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(decode), Prefill(first, 30), Prefill(second, 9)));
  EXPECT_THAT(house.Step(), ElementsAre(Decode(decode), Prefill(second, 21)));
}

TEST(SchedulerTest, APrefillChunkIsSixteenTokensAtLeast) {
  House house(Priced(2'000));
  for (int i = 0; i < 8; ++i) house.Admitted({}, kDecodes);  // 1.8 ms; 0.25 are left: 5 tokens
  const JobId prefill = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 70});
  std::vector<int32_t> chunks;
  for (int step = 0; step < 40; ++step) {
    for (const PlanItem& item : house.Step()) {
      if (item.job == prefill) chunks.push_back(item.amount);
    }
  }
  // 70 = 4 * 16 + 6; what is saved up goes by whole chunks.
  EXPECT_THAT(chunks, ElementsAre(16, 16, 16, 16, 6));
}

TEST(SchedulerTest, AUnitThatNoStepHasRoomForIsSavedUpFor) {
  House house(Priced(2'000));
  const JobId decode = house.Admitted({}, kDecodes);  // 1.1 ms; 0.9 are left of each step
  const JobId encode = house.Admitted({}, {.kind = WorkKind::kEncode, .amount = 3});  // 4 ms each
  std::vector<int> when;
  for (int step = 1; step <= 15; ++step) {
    for (const PlanItem& item : house.Step()) {
      if (item.job == encode) when.push_back(step);
    }
  }
  EXPECT_THAT(when, ElementsAre(5, 10, 15));
  EXPECT_GT(decode, 0);
}

TEST(SchedulerTest, WithoutAnybodyDecodingAUnitRunsAtOnce) {
  House house(Priced(2'000));
  const JobId encode = house.Admitted({}, {.kind = WorkKind::kEncode, .amount = 2});
  EXPECT_THAT(house.Step(), ElementsAre(Encode(encode, 1)));
  EXPECT_THAT(house.Step(), ElementsAre(Encode(encode, 1)));
}

// Found by review: the savings came on top of a whole step's share.
TEST(SchedulerTest, SavingsDoNotMakeAStepLongerThanItsBound) {
  House house(Priced(3'950));
  const JobId decode = house.Admitted({}, kDecodes);
  const JobId encode = house.Admitted({}, {.kind = WorkKind::kEncode, .amount = 1});
  const JobId prefill = house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 500});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(decode)));  // 2.85 ms put by
  // Not also the 1.7 ms that are left of 2 * 2.85.
  EXPECT_THAT(house.Step(), ElementsAre(Decode(decode), Encode(encode, 1)));
  EXPECT_EQ(house.predicted_ns, 1'100'000 + 4'000'000);
  EXPECT_THAT(house.Step(), ElementsAre(Decode(decode), Prefill(prefill, 57)));
}

TEST(SchedulerTest, NoBudgetIsFirstComeFirstServed) {
  House house(Priced(0));
  const JobId decode = house.Admitted({}, kDecodes);
  const JobId encode = house.Admitted({.priority = -1}, {.kind = WorkKind::kEncode, .amount = 13});
  const JobId prefill =
      house.Admitted({.priority = 1}, {.kind = WorkKind::kPrefill, .amount = 1000});
  EXPECT_THAT(house.Plan(), ElementsAre(Decode(decode), Encode(encode, 4), Prefill(prefill, 511)));
}

// In a step that has room for hundreds the order is the same as in one that has room for a few, and
// who finds no room (an encode without an encoder slot) holds up nobody behind it.
TEST(SchedulerTest, AStepTakesHundredsInOrder) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  SchedulerOptions options = Priced(10'000'000);
  const int32_t num_jobs = 200 + static_cast<int32_t>(random() % 400);
  options.max_batch_tokens = options.max_batch_seqs = num_jobs;
  options.max_waiting = num_jobs + 1;  // one place is kept for another tenant
  House house(options, /*num_blocks=*/num_jobs);
  struct Asks {
    int32_t priority;
    int64_t deadline_us;
    int32_t came;
    JobId job;
  };
  std::vector<Asks> asks;
  for (int32_t i = 0; i < num_jobs; ++i) {
    const auto priority = static_cast<int32_t>(random() % 3);
    const int64_t deadline_us = 100'000'000 + random() % 20;
    const JobId job =
        house.Add({.priority = priority, .deadline_us = deadline_us, .max_context = 1});
    asks.push_back({priority, deadline_us, i, job});
  }
  ASSERT_EQ(house.scheduler.Admit(0).size(), asks.size());
  std::sort(asks.begin(), asks.end(), [](const Asks& a, const Asks& b) {
    return std::tuple(-a.priority, a.deadline_us, a.came) <
           std::tuple(-b.priority, b.deadline_us, b.came);
  });
  std::vector<PlanItem> expected;
  bool encoder_is_free = true;
  for (const Asks& a : asks) {
    const bool encodes = random() % 3 == 0;
    house.scheduler.SetWork(
        a.job, {.kind = encodes ? WorkKind::kEncode : WorkKind::kPrefill, .amount = 1});
    if (!encodes) expected.push_back(Prefill(a.job, 1));
    if (encodes && encoder_is_free) expected.push_back(Encode(a.job, 1));
    if (encodes) encoder_is_free = false;
  }
  EXPECT_THAT(house.Step(), ::testing::ElementsAreArray(expected));
}

TEST(SchedulerTest, AParkedJobKeepsItsMemoryAndStaysOutOfThePlan) {
  House house(Priced(10'000));
  const JobId reader = house.Admitted({.max_context = 64}, kDecodes);
  const JobId other = house.Admitted({.max_context = 64}, kDecodes);
  house.scheduler.SetWork(reader, {});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(other)));
  EXPECT_EQ(house.blocks.reserved(), 8);
  house.scheduler.SetWork(reader, kDecodes);
  EXPECT_THAT(house.Step(), UnorderedElementsAre(Decode(reader), Decode(other)));
}

TEST(SchedulerTest, PlansTheSameUntilItIsToldWhatWasDone) {
  House house(Priced(10'000));
  house.Admitted({}, kDecodes);
  house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 1000});
  const std::vector<PlanItem> plan = house.Plan();
  EXPECT_EQ(house.Plan(), plan);
}

TEST(SchedulerTest, ChaosCutsAtDifferentPlacesAndShuffles) {
  House house({.max_batch_tokens = 64, .chaos_seed = 7});
  house.Admitted({}, {.kind = WorkKind::kPrefill, .amount = 40});
  house.Admitted({}, kDecodes);
  house.Admitted({}, {.kind = WorkKind::kEncode, .amount = 4});
  std::set<int32_t> cuts;
  std::set<JobId> first;
  for (int step = 0; step < 200; ++step) {
    const std::vector<PlanItem>& plan = house.Plan();
    ASSERT_EQ(plan.size(), 3u);
    first.insert(plan[0].job);
    for (const PlanItem& item : plan) {
      if (item.kind == WorkKind::kPrefill) cuts.insert(item.amount);
    }
  }
  EXPECT_GT(cuts.size(), 20u);
  EXPECT_EQ(first.size(), 3u);
}

struct Flood {
  int64_t longest_ns = 0;       // step in which a stream decoded
  int64_t longest_fill_ns = 0;  // of it, for others
  int64_t total_ns = 0, steps = 0, images = 0;
};

// A picture is 13 crops of 4 ms and 200 tokens, a recording 6 stages of 8 ms and 4 tokens.
Flood RunFlood(int64_t target_step_us) {
  Prices whisper = kPrices;
  whisper.encode_unit_ps = 8000 * kUs;
  SchedulerOptions options = Priced(target_step_us, {.max_encode_units = 13, .prices = kPrices});
  options.models.push_back({.max_encode_units = 6, .prices = whisper});
  options.encoder_slots = 4;
  FakeEngine engine(options, /*num_blocks=*/4096);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(
        engine.Submit({.spec = {.max_context = 2001}, .prompt_tokens = 1, .decode_tokens = 2000})
            .ok());
  }
  for (int i = 0; i < 12; ++i) engine.Step();  // the streams run
  Flood flood;
  for (int step = 0; step < 1500; ++step) {
    while (engine.live() < 24) {
      const bool audio = flood.images++ % 2 == 1;
      EXPECT_TRUE(engine
                      .Submit({.spec = {.model = audio, .max_context = 210},
                               .encode_units = audio ? 6 : 13,
                               .prompt_tokens = audio ? 4 : 200,
                               .decode_tokens = 10})
                      .ok());
    }
    engine.Step();
    const StepPlan& plan = engine.plan();
    flood.longest_ns = std::max(flood.longest_ns, plan.predicted_ns);
    flood.longest_fill_ns = std::max(flood.longest_fill_ns, plan.predicted_ns - plan.decode_ns);
    flood.total_ns += plan.predicted_ns;
    ++flood.steps;
  }
  return flood;
}

TEST(SchedulerTest, AFloodOfPicturesAndRecordingsStallsNoStreamBeyondTheStatedBound) {
  constexpr int64_t kTargetUs = 6'000, kDearestNs = 8'000'000;
  const Flood with = RunFlood(kTargetUs);  // the engine checks each step's own bound, and the mean
  const Flood without = RunFlood(0);
  const double mean_with = static_cast<double>(with.total_ns) / with.steps / 1e6;
  const double mean_without = static_cast<double>(without.total_ns) / without.steps / 1e6;
  std::printf(
      "longest step of 8 streams under a flood: %.1f ms (mean %.1f) with a target of %.1f ms, "
      "%.1f ms (mean %.1f) first come, first served\n",
      with.longest_ns / 1e6, mean_with, kTargetUs / 1e3, without.longest_ns / 1e6, mean_without);
  RecordProperty("longest_step_us", static_cast<int>(with.longest_ns / 1000));
  RecordProperty("longest_step_first_come_us", static_cast<int>(without.longest_ns / 1000));
  EXPECT_LE(with.longest_fill_ns, std::max(kTargetUs * 1000, kDearestNs));
  EXPECT_GT(without.longest_fill_ns, 10 * with.longest_fill_ns);
  EXPECT_GT(with.images, 30);  // and the flood is served
}

}  // namespace
}  // namespace sensorium
