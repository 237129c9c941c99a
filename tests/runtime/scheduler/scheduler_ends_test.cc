// What a job gives back, and what it has cost.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"
#include "tests/runtime/scheduler/house.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SchedulerTest, NoMoreEncodersStopHalfWayThanThereAreSlots) {
  SchedulerOptions options = Priced(100'000);
  options.encoder_slots = 2;
  House house(options);
  const JobWork work{.kind = WorkKind::kEncode, .amount = 6};  // 4 of them in a step
  const JobId a = house.Admitted({}, work);
  const JobId b = house.Admitted({}, work);
  const JobId c = house.Admitted({}, work);
  EXPECT_THAT(house.Step(), ElementsAre(Encode(a, 4, 0), Encode(b, 4, 1)));
  EXPECT_THAT(house.Step(), ElementsAre(Encode(a, 2, 0), Encode(b, 2, 1)));
  EXPECT_EQ(house.Step().front().job, c);
}

TEST(SchedulerTest, AnEncoderSlotComesBackOnEveryWayOut) {
  House house(Optimistic(1), 10);
  const JobWork work{.kind = WorkKind::kEncode, .amount = 9};
  const auto half_way = [&](const JobSpec& spec) {
    const JobId id = house.Admitted(spec, work);
    EXPECT_THAT(house.Step(), ElementsAre(Encode(id, 4)));
    return id;
  };
  // Removed.
  house.scheduler.Remove(half_way({}));
  // At its end.
  const JobId ends = half_way({});
  house.Step();
  EXPECT_THAT(house.Step(), ElementsAre(Encode(ends, 1)));
  house.scheduler.Remove(ends);
  // Its encoder's output was found in the cache after all (found by review).
  const JobId found = half_way({});
  house.scheduler.SetWork(found, {.kind = WorkKind::kPrefill, .amount = 1});
  house.scheduler.SetWork(found, {});
  house.scheduler.Remove(half_way({}));
  house.scheduler.Remove(found);
  // Parked, it keeps the slot: the state is in there.
  const JobId parked = half_way({});
  house.scheduler.SetWork(parked, {});
  const JobId other = house.Admitted({}, work);
  EXPECT_THAT(house.Step(), IsEmpty());
  house.scheduler.Remove(parked);
  EXPECT_THAT(house.Step(), ElementsAre(Encode(other, 4)));
  house.scheduler.Remove(other);
  // Preempted.
  const JobId victim = half_way({.priority = -1, .max_context = 9});
  const JobId urgent = house.Admitted({.max_context = 4, .expected_context = 1},
                                      {.kind = WorkKind::kDecode, .amount = 1, .context = 3});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(urgent)));
  EXPECT_THAT(house.preempted, ElementsAre(victim));
  house.scheduler.SetWork(urgent, {});
  half_way({});
}

TEST(SchedulerTest, TheCostOfAllJobsIsWhatTheirPlansWerePredictedToTake) {
  Prices odd = kPrices;
  odd.decode_context_ps = 12'345;
  odd.prefill_context_ps = 6'789;
  odd.cross_position_ps = 321;
  for (const bool optimistic : {false, true}) {
    SchedulerOptions options = Priced(7'000, {.block_size = 4, .prices = odd});
    options.optimistic = optimistic;
    options.encoder_slots = 3;
    FakeEngine engine(options, 40);
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(engine
                      .Submit({.spec = {.rows = 1 + i % 3,
                                        .max_context = 40 + i % 9,
                                        .expected_context = 30,
                                        .cross_len = i % 5 * 100},
                               .encode_units = i % 4,
                               .prompt_tokens = 1 + i % 30,
                               .decode_tokens = 10})
                      .ok());
    }
    engine.Finish(10'000);
    EXPECT_NEAR(static_cast<double>(engine.cost_ns()), static_cast<double>(engine.predicted_ns()),
                2.0 * static_cast<double>(engine.items()));
    EXPECT_EQ(optimistic, engine.scheduler().preemptions() > 0);
  }
}

TEST(SchedulerTest, AJobsCostIsByPhaseAndByBlocksTimesTime) {
  House house(Priced(100'000));
  const JobId id = house.Admitted({.max_context = 32}, {.kind = WorkKind::kEncode, .amount = 2});
  house.Step();  // 8 ms
  house.scheduler.SetWork(id, {.kind = WorkKind::kPrefill, .amount = 20});
  house.Step();  // 2 ms
  house.scheduler.SetWork(id, {.kind = WorkKind::kDecode, .amount = 1, .context = 20});
  house.Step();  // 1.1 ms
  EXPECT_EQ(house.scheduler.cost(id, house.now_us), (JobCost{.encode_ns = 8'000'000,
                                                             .prefill_ns = 2'000'000,
                                                             .decode_ns = 1'100'000,
                                                             .block_ns = 2 * 11'100'000}));
}

// Found by review: time in which nothing ran cost nothing.
TEST(SchedulerTest, ParkedBlocksAreBilledByTheClock) {
  House house(Priced(100'000));
  const JobId id = house.Admitted({.max_context = 32}, {.kind = WorkKind::kParked});
  house.now_us = 60'000'000;
  EXPECT_TRUE(house.Plan().empty());
  EXPECT_EQ(house.scheduler.cost(id, house.now_us), (JobCost{.block_ns = 2 * 60'000'000'000}));
  EXPECT_EQ(house.scheduler.cost(id, 61'000'000), (JobCost{.block_ns = 2 * 61'000'000'000}));
}

// What every test of a FakeEngine rests on.
TEST(FakeEngineDeathTest, ABlockThatNoJobOwnsIsNoticedInItsStep) {
  FakeEngine engine(Priced(0), 10);
  ASSERT_TRUE(
      engine.Submit({.spec = {.max_context = 40}, .prompt_tokens = 20, .decode_tokens = 20}).ok());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine.Step());
  const FakeEngine::Job& job = *engine.Find(engine.plan().items.at(0).job);
  EXPECT_DEATH(
      {
        (void)engine.blocks().Allocate();
        engine.Step();
      },
      "blocks held by jobs, and held");
  EXPECT_DEATH(
      {
        engine.blocks().AddRef(job.tables[0].blocks()[0]);
        engine.Step();
      },
      "blocks held by jobs, and held");
  ASSERT_TRUE(engine.Step());
}

TEST(SchedulerTest, RemovingAJobInAnyPhaseGivesEverythingBack) {
  SchedulerOptions options = Priced(10'000, {.feature_slots = 2, .prices = kPrices});
  options.max_batch_seqs = 4;
  House house(options, 10);
  const JobSpec all{.rows = 4,
                    .max_context = 32,
                    .fixed_blocks = 2,
                    .feature_slots = 2,
                    .encode_units = 9,
                    .prefill_tokens = 20};
  house.scheduler.Remove(house.Add(all));  // in line
  for (const JobWork& work :
       {JobWork{}, JobWork{.kind = WorkKind::kEncode, .amount = 9},
        JobWork{.kind = WorkKind::kPrefill, .amount = 20},
        JobWork{.kind = WorkKind::kDecode, .amount = 4, .context = 20, .tables = 4}}) {
    for (const bool planned : {false, true}) {
      const JobId id = house.Admitted(all, work);  // it takes the whole house each time
      EXPECT_EQ(house.blocks.reserved(), 10);
      if (planned) house.Step();
      house.scheduler.Remove(id);
      house.scheduler.CheckInvariants();
      EXPECT_EQ(house.blocks.reserved(), 0);
      EXPECT_EQ(house.scheduler.running(), 0);
      EXPECT_EQ(house.scheduler.waiting(), 0);
      EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 0);
      EXPECT_THAT(house.Step(), IsEmpty());
    }
  }
}

TEST(SchedulerTest, RemovingAPreemptedJobGivesItsFeaturesBack) {
  SchedulerOptions options = Optimistic(1);
  options.models[0].feature_slots = 1;
  House house(options, 2);
  const JobId first = house.Admitted({.max_context = 2, .expected_context = 1}, kDecodes);
  const JobId second = house.Admitted({.max_context = 1, .feature_slots = 1}, kDecodes);
  house.Step();
  house.Step();
  EXPECT_THAT(house.preempted, ElementsAre(second));
  house.scheduler.Remove(second);
  house.scheduler.Remove(first);
  house.Admitted({.max_context = 1, .feature_slots = 1});
  house.scheduler.CheckInvariants();
}

TEST(SchedulerDeathTest, AbortsOnWhatTheEngineMayNotDo) {
  House house({}, 10);
  const JobId id = house.Admitted({.rows = 2, .max_context = 10});
  EXPECT_DEATH(house.scheduler.Remove(12345), "unknown job 12345");
  EXPECT_DEATH((void)house.scheduler.Add({.rows = 0}, 0), "CHECK failed");
  EXPECT_DEATH((void)house.scheduler.Add({.model = 1}, 0), "CHECK failed");
  EXPECT_DEATH((void)house.scheduler.Add({.tenant = 1}, 0), "CHECK failed");
  EXPECT_DEATH(house.scheduler.SetWork(id, {.kind = WorkKind::kDecode, .amount = 3}),
               "CHECK failed");
  EXPECT_DEATH(house.scheduler.SetWork(id, {.kind = WorkKind::kPrefill}), "CHECK failed");
  EXPECT_DEATH(house.scheduler.SetWork(id, {.kind = WorkKind::kDecode, .amount = 1, .context = 11}),
               "CHECK failed");
  EXPECT_DEATH(house.scheduler.SetWork(id, {.kind = WorkKind::kDecode, .amount = 1, .tables = 3}),
               "CHECK failed");
  house.blocks.Allocate();
  EXPECT_DEATH(house.scheduler.Remove(id), "CHECK failed");  // while it holds a block
}

}  // namespace
}  // namespace sensorium
