// Optimistic admission, and who goes when blocks run out.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"
#include "tests/runtime/scheduler/house.h"

namespace sensorium {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(SchedulerTest, OptimisticAdmissionSetsAsideWhatIsExpected) {
  House house(Optimistic(16), 10);
  for (int i = 0; i < 5; ++i) house.Add({.max_context = 160, .expected_context = 20});
  EXPECT_EQ(house.scheduler.Admit(0).size(), 5u);
  EXPECT_EQ(house.blocks.reserved(), 10);
}

TEST(SchedulerTest, WhenBlocksRunOutTheYoungestOfTheLowestPriorityIsPreempted) {
  House house(Optimistic(1), 5);
  const JobSpec spec{.max_context = 5, .expected_context = 1};
  JobSpec high = spec;
  high.priority = 1;
  const JobId old = house.Admitted(spec, kDecodes);
  const JobId young = house.Admitted(spec, kDecodes);
  const JobId youngest_but_high = house.Admitted(high, kDecodes);
  house.Step();
  EXPECT_THAT(house.preempted, IsEmpty());
  EXPECT_EQ(house.blocks.reserved(), 3);
  // Each needs a second block, then a third.
  EXPECT_THAT(house.Step(), ElementsAre(Decode(old), Decode(youngest_but_high)));
  EXPECT_THAT(house.preempted, IsEmpty());  // it sits the step out
  EXPECT_EQ(house.blocks.reserved(), 5);
  EXPECT_THAT(house.Step(), ElementsAre(Decode(youngest_but_high)));
  EXPECT_THAT(house.preempted, ElementsAre(young));
}

TEST(SchedulerTest, TheForemostIsNeverPreemptedAndAlwaysDecodes) {
  House house(Optimistic(1), 6);
  const JobId foremost =
      house.Admitted({.priority = 2, .max_context = 6, .expected_context = 1}, kDecodes);
  for (int i = 0; i < 5; ++i) {
    house.Admitted({.max_context = 6, .expected_context = 1}, kDecodes);
  }
  for (int64_t context = 0; context < 6; ++context) {
    EXPECT_EQ(house.Plan().front(), Decode(foremost)) << context;
    for (const JobId id : house.preempted) EXPECT_NE(id, foremost);
    house.Commit();
  }
  EXPECT_EQ(house.scheduler.preemptions(), 5);
}

TEST(SchedulerTest, APreemptedJobWaitsInItsOldPlaceAndIsAdmittedAgain) {
  House house(Optimistic(1), 4);
  const JobSpec spec{.max_context = 4, .expected_context = 2};
  const JobId first = house.Admitted(spec, kDecodes);
  const JobId second = house.Admitted(spec, kDecodes);
  const JobId third = house.Add({.max_context = 1});
  for (int step = 0; step < 3; ++step) house.Step();
  EXPECT_EQ(house.scheduler.preemptions(), 1);
  EXPECT_EQ(house.scheduler.waiting(), 2);
  // It expects more of itself now than it did, so it waits until that is there, and goes first.
  EXPECT_THAT(house.scheduler.Admit(house.now_us), IsEmpty());
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(second, third));
  EXPECT_EQ(house.blocks.reserved(), 4);
}

// A reader that stopped reading, and one younger request after the other that needs its memory.
TEST(SchedulerTest, AParkedJobGoesOutOfTurnTwiceAndThenOnlyInItsTurn) {
  House house(Optimistic(1), 8);
  const JobWork parked{.kind = WorkKind::kParked, .context = 3};
  const JobId reader = house.Admitted({.max_context = 6, .expected_context = 3}, parked);
  const int32_t reserved[] = {3, 4, 6};  // after so many preemptions; 6 is its worst case
  int32_t preempted = 0;
  for (int round = 0; round < 6; ++round) {
    EXPECT_EQ(house.blocks.reserved(), reserved[preempted]);
    const JobId young = house.Admitted({.max_context = 8, .expected_context = 1}, kDecodes);
    int32_t decoded = 0;
    for (int step = 0; step < 8; ++step) {
      decoded += static_cast<int32_t>(house.Step().size());
      for (const JobId id : house.preempted) EXPECT_EQ(id, reader);
      preempted += static_cast<int32_t>(house.preempted.size());
    }
    EXPECT_EQ(decoded, round < 2 ? 8 : 2) << round;  // it is the younger one's turn to wait
    EXPECT_EQ(preempted, std::min(round + 1, 2));
    house.scheduler.Remove(young);
    if (round < 2) {
      EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(reader));
      house.scheduler.SetWork(reader, parked);
    }
  }
  // One that is ahead of it still has its memory, for who does not read may never do.
  const JobId urgent =
      house.Admitted({.priority = 1, .max_context = 8, .expected_context = 1}, kDecodes);
  for (int step = 0; step < 3; ++step) EXPECT_THAT(house.Step(), ElementsAre(Decode(urgent)));
  EXPECT_THAT(house.preempted, ElementsAre(reader));
}

// What it waits for comes with the next steps; a reader may never come.
TEST(SchedulerTest, WhoWaitsForAnotherJobKeepsItsTurnAndWhoWaitsForItsReaderDoesNot) {
  for (const WorkKind waits : {WorkKind::kNone, WorkKind::kParked}) {
    House house(Optimistic(1), 6);
    const JobId old =
        house.Admitted({.max_context = 6, .expected_context = 3}, {.kind = waits, .context = 3});
    const JobId young = house.Admitted({.priority = -1, .max_context = 6, .expected_context = 3},
                                       {.kind = WorkKind::kDecode, .amount = 1, .context = 2});
    house.Step();
    const std::vector<PlanItem> plan = house.Step();
    if (waits == WorkKind::kNone) {  // the young one is its own victim: it sits out or goes
      EXPECT_THAT(plan, IsEmpty());
      EXPECT_THAT(house.preempted, Not(Contains(old)));
    } else {
      EXPECT_THAT(plan, ElementsAre(Decode(young)));
      EXPECT_THAT(house.preempted, ElementsAre(old));
    }
  }
}

// Nothing of what was taken from it helps to admit it again.
TEST(SchedulerTest, APreemptedJobWaitsUntilAnotherGivesSomethingBack) {
  House house(Optimistic(1), 9);
  const JobId old = house.Admitted({.max_context = 9, .expected_context = 3}, kDecodes);
  const JobId other = house.Admitted({.max_context = 3}, kDecodes);
  const JobId young = house.Admitted({.max_context = 9, .expected_context = 3}, kDecodes);
  for (int step = 0; step < 3; ++step) house.Step();
  house.scheduler.SetWork(other, {});
  house.scheduler.SetWork(old, {.kind = WorkKind::kDecode, .amount = 1, .context = 3});
  house.scheduler.SetWork(young, {.kind = WorkKind::kParked, .context = 3});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(old)));
  EXPECT_THAT(house.preempted, ElementsAre(young));  // parked too, and younger than the other
  EXPECT_THAT(house.scheduler.Admit(house.now_us), IsEmpty());
  house.Step();
  EXPECT_THAT(house.scheduler.Admit(house.now_us), IsEmpty());
  house.scheduler.Remove(other);
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(young));
}

TEST(SchedulerTest, OptimisticAdmissionServesEverybodyInTheEnd) {
  FakeEngine engine({.models = {{.block_size = 2}}, .max_batch_seqs = 8, .optimistic = true},
                    /*num_blocks=*/20);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(engine
                    .Submit({.spec = {.max_context = 30, .expected_context = 4},
                             .prompt_tokens = 3,
                             .decode_tokens = 27})
                    .ok());
  }
  engine.Finish(10'000);
  EXPECT_EQ(engine.finished(), 40);
  EXPECT_GT(engine.scheduler().preemptions(), 10);
}

// Found by review: everybody behind was preempted, of whatever tenant, to no avail.
TEST(SchedulerTest, ATenantAtItsOwnBlockLimitPreemptsNobodyElses) {
  SchedulerOptions options = Optimistic(1);
  options.tenants = {{.max_blocks = 2}, {}};
  House house(options, 10);
  const JobId first = house.Admitted({.max_context = 2, .expected_context = 1}, kDecodes);
  const JobId mate = house.Admitted({.max_context = 2, .expected_context = 1}, kDecodes);
  const JobId other = house.Admitted({.tenant = 1, .max_context = 3}, kDecodes);
  house.Step();
  EXPECT_THAT(house.Step(), ElementsAre(Decode(first), Decode(other)));
  EXPECT_THAT(house.preempted, ElementsAre(mate));
}

// Found by review: A holds features and waits behind B, B waits for A's features.
TEST(SchedulerTest, WhoWaitsForFeaturesOfAPreemptedJobLetsItGoFirst) {
  SchedulerOptions options = Optimistic(1);
  options.models[0].feature_slots = 1;
  House house(options, 4);
  const JobId first = house.Admitted({.max_context = 4, .expected_context = 2}, kDecodes);
  const JobId holder =
      house.Admitted({.max_context = 2, .expected_context = 2, .feature_slots = 1}, kDecodes);
  for (int step = 0; step < 3; ++step) house.Step();
  ASSERT_EQ(house.scheduler.preemptions(), 1);
  const JobId urgent = house.Add({.priority = 1, .max_context = 1, .feature_slots = 1});
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(holder));
  EXPECT_THAT(house.scheduler.Admit(house.now_us), IsEmpty());
  house.scheduler.Remove(holder);
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(urgent));
  house.scheduler.CheckInvariants();
}

// Found by review: rows whose hypothesis had ended were not counted, though they hold blocks.
TEST(SchedulerTest, RowsThatNoLongerDecodeButKeepTheirCacheAreCounted) {
  House house(Optimistic(1), 10);
  const JobId beams =
      house.Admitted({.rows = 3, .max_context = 3, .expected_context = 1},
                     {.kind = WorkKind::kDecode, .amount = 1, .context = 1, .tables = 3});
  EXPECT_THAT(house.Plan(), ElementsAre(Decode(beams)));
  EXPECT_EQ(house.blocks.reserved(), 6);
}

// Found by review: the plan's time still held the decodes that had been preempted.
TEST(SchedulerTest, APlanThatLosesAPreemptedDecodeIsPricedWithoutIt) {
  SchedulerOptions options = Optimistic(1);
  options.models[0].prices = kPrices;
  House house(options, 4);
  const JobId prefill = house.Admitted({.max_context = 4, .expected_context = 1},
                                       {.kind = WorkKind::kPrefill, .amount = 4});
  house.Admitted({.max_context = 3, .expected_context = 3}, kDecodes);
  EXPECT_THAT(house.Plan(), ElementsAre(Prefill(prefill, 4)));
  EXPECT_EQ(house.preempted.size(), 1u);
  EXPECT_EQ(house.predicted_ns, 1'200'000);
  EXPECT_EQ(house.decode_ns, 0);
  house.Commit();
  EXPECT_EQ(house.scheduler.cost(prefill, house.now_us).prefill_ns, 1'200'000);
}

TEST(SchedulerTest, WhoStarvedIsNotPreemptedForYoungerOnes) {
  SchedulerOptions options = Optimistic(/*block_size=*/1);
  options.starvation_us = 1'000'000;
  House house(options, /*num_blocks=*/10);
  const JobSpec humble{.max_context = 10, .expected_context = 5};
  JobSpec urgent = humble;
  urgent.priority = 9;
  const JobId starved = house.Add(humble);
  house.now_us = options.starvation_us;
  EXPECT_THAT(house.scheduler.Admit(house.now_us), ElementsAre(starved));
  house.scheduler.SetWork(starved, {.kind = WorkKind::kDecode, .amount = 1, .context = 5});
  const JobId other =
      house.Admitted(urgent, {.kind = WorkKind::kDecode, .amount = 1, .context = 5});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(starved)));  // its next token takes the last block
  EXPECT_THAT(house.preempted, ElementsAre(other));
  for (int i = 0; i < 3; ++i) {
    house.scheduler.SetWork(starved, {.kind = WorkKind::kDecode, .amount = 1, .context = 6 + i});
    EXPECT_THAT(house.Step(), ElementsAre(Decode(starved)));
  }
}

TEST(SchedulerTest, TheLowestPriorityThereIsGoesLast) {
  House house(Priced(10'000));
  const JobId lowest = house.Admitted({.priority = std::numeric_limits<int32_t>::min()},
                                      {.kind = WorkKind::kPrefill, .amount = 100});
  const JobId highest = house.Admitted({.priority = std::numeric_limits<int32_t>::max()},
                                       {.kind = WorkKind::kPrefill, .amount = 50});
  EXPECT_THAT(house.Step(), ElementsAre(Prefill(highest, 50), Prefill(lowest, 100)));
}

}  // namespace
}  // namespace sensorium
