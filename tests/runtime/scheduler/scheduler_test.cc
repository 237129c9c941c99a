#include "runtime/scheduler/scheduler.h"

#include <ostream>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {

bool operator==(const PlanItem& a, const PlanItem& b) {
  return a.job == b.job && a.kind == b.kind && a.amount == b.amount;
}
void PrintTo(const PlanItem& item, std::ostream* out) {
  *out << "job " << item.job << " kind " << int{static_cast<uint8_t>(item.kind)} << " amount "
       << item.amount;
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

PlanItem Encode(JobId job, int32_t units) { return {job, WorkKind::kEncode, units}; }
PlanItem Prefill(JobId job, int32_t tokens) { return {job, WorkKind::kPrefill, tokens}; }
PlanItem Decode(JobId job, int32_t rows) { return {job, WorkKind::kDecode, rows}; }

TEST(SchedulerTest, AdmitsInTheOrderOfArrival) {
  BlockAllocator blocks(10);
  Scheduler scheduler({}, blocks);
  for (JobId id : {7, 3, 5}) scheduler.Add({.id = id, .blocks = 3});
  EXPECT_EQ(scheduler.waiting(), 3);
  EXPECT_THAT(scheduler.Admit(), ElementsAre(7, 3, 5));
  EXPECT_EQ(scheduler.waiting(), 0);
  EXPECT_EQ(scheduler.running(), 3);
  EXPECT_EQ(blocks.reserved(), 9);
  EXPECT_THAT(scheduler.Admit(), IsEmpty());
}

TEST(SchedulerTest, NobodyOvertakesTheFirstThatDoesNotFit) {
  BlockAllocator blocks(10);
  Scheduler scheduler({}, blocks);
  scheduler.Add({.id = 1, .blocks = 6});
  scheduler.Add({.id = 2, .blocks = 5});
  scheduler.Add({.id = 3, .blocks = 1});
  EXPECT_THAT(scheduler.Admit(), ElementsAre(1));
  EXPECT_THAT(scheduler.Admit(), IsEmpty());
  EXPECT_EQ(blocks.reserved(), 6);
  scheduler.Remove(1);
  EXPECT_THAT(scheduler.Admit(), ElementsAre(2, 3));
  EXPECT_EQ(blocks.reserved(), 6);
}

TEST(SchedulerTest, AJobThatGivesUpWaitingLetsTheNextOneIn) {
  BlockAllocator blocks(10);
  Scheduler scheduler({}, blocks);
  scheduler.Add({.id = 1, .blocks = 6});
  scheduler.Add({.id = 2, .blocks = 5});
  scheduler.Add({.id = 3, .blocks = 4});
  EXPECT_THAT(scheduler.Admit(), ElementsAre(1));
  scheduler.Remove(2);
  EXPECT_THAT(scheduler.Admit(), ElementsAre(3));
  scheduler.CheckInvariants();
}

TEST(SchedulerTest, AdmitsNoMoreRowsThanAStepHolds) {
  for (const SchedulerOptions& options :
       {SchedulerOptions{.max_batch_tokens = 100, .max_batch_seqs = 8},
        SchedulerOptions{.max_batch_tokens = 8, .max_batch_seqs = 100}}) {
    BlockAllocator blocks(10);
    Scheduler scheduler(options, blocks);
    scheduler.Add({.id = 1, .blocks = 1, .rows = 5});
    scheduler.Add({.id = 2, .blocks = 1, .rows = 3});
    scheduler.Add({.id = 3, .blocks = 1, .rows = 1});
    EXPECT_THAT(scheduler.Admit(), ElementsAre(1, 2));
    EXPECT_EQ(blocks.reserved(), 2);  // the refused job's blocks are not set aside
    scheduler.Remove(2);
    EXPECT_THAT(scheduler.Admit(), ElementsAre(3));
  }
}

TEST(SchedulerTest, SaysWhatCouldNeverBeAdmitted) {
  BlockAllocator blocks(10);
  const Scheduler scheduler({.max_batch_tokens = 6, .max_batch_seqs = 8}, blocks);
  EXPECT_TRUE(scheduler.Fits({.id = 1, .blocks = 10, .rows = 6}));
  EXPECT_FALSE(scheduler.Fits({.id = 1, .blocks = 11, .rows = 1}));
  EXPECT_FALSE(scheduler.Fits({.id = 1, .blocks = 1, .rows = 7}));
  ASSERT_TRUE(blocks.Reserve(10));  // Fits speaks of an empty house
  EXPECT_TRUE(scheduler.Fits({.id = 1, .blocks = 10, .rows = 6}));
}

TEST(SchedulerTest, RemovingAJobGivesItsReservationBack) {
  BlockAllocator blocks(10);
  Scheduler scheduler({.max_batch_seqs = 4}, blocks);
  scheduler.Add({.id = 1, .blocks = 10, .rows = 4});
  EXPECT_THAT(scheduler.Admit(), ElementsAre(1));
  scheduler.SetWork(1, WorkKind::kDecode, 4);
  scheduler.Remove(1);
  EXPECT_EQ(blocks.reserved(), 0);
  EXPECT_THAT(scheduler.Schedule(), IsEmpty());
  scheduler.CheckInvariants();
}

// A pool big enough for everybody; jobs 1 to `count` admitted, with nothing to do.
struct Admitted {
  Admitted(const SchedulerOptions& options, std::vector<JobSpec> jobs)
      : blocks(100), scheduler(options, blocks) {
    for (const JobSpec& job : jobs) scheduler.Add(job);
    EXPECT_EQ(scheduler.Admit().size(), jobs.size());
  }
  BlockAllocator blocks;
  Scheduler scheduler;
};

TEST(SchedulerTest, DecodesGoFirstThenPrefillThenEncode) {
  Admitted house({.max_batch_tokens = 16}, {{.id = 1}, {.id = 2}, {.id = 3, .rows = 5}, {.id = 4}});
  house.scheduler.SetWork(1, WorkKind::kEncode, 2);
  house.scheduler.SetWork(2, WorkKind::kPrefill, 100);
  house.scheduler.SetWork(3, WorkKind::kDecode, 5);
  house.scheduler.SetWork(4, WorkKind::kDecode, 1);
  EXPECT_THAT(house.scheduler.Schedule(),
              ElementsAre(Decode(3, 5), Decode(4, 1), Prefill(2, 10), Encode(1, 2)));
}

TEST(SchedulerTest, CutsPrefillAtTheTokenBudgetOldestFirst) {
  Admitted house({.max_batch_tokens = 16}, {{.id = 9}, {.id = 8}, {.id = 7}});
  house.scheduler.SetWork(7, WorkKind::kPrefill, 3);
  house.scheduler.SetWork(8, WorkKind::kPrefill, 20);
  house.scheduler.SetWork(9, WorkKind::kPrefill, 10);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Prefill(9, 10), Prefill(8, 6)));
  house.scheduler.SetWork(9, WorkKind::kDecode, 1);
  house.scheduler.SetWork(8, WorkKind::kPrefill, 14);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Decode(9, 1), Prefill(8, 14), Prefill(7, 1)));
}

TEST(SchedulerTest, AFullHouseOfDecodersStillPrefills) {
  // The prefilling job's own row is reserved, so the others cannot take the whole budget.
  Admitted house({.max_batch_tokens = 4}, {{.id = 1, .rows = 3}, {.id = 2, .rows = 1}});
  house.scheduler.SetWork(1, WorkKind::kDecode, 3);
  house.scheduler.SetWork(2, WorkKind::kPrefill, 50);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Decode(1, 3), Prefill(2, 1)));
}

TEST(SchedulerTest, PlansTheSameUntilItIsToldWhatWasDone) {
  Admitted house({.max_batch_tokens = 16}, {{.id = 1}, {.id = 2}});
  house.scheduler.SetWork(1, WorkKind::kPrefill, 20);
  house.scheduler.SetWork(2, WorkKind::kEncode, 3);
  const std::vector<PlanItem> plan = house.scheduler.Schedule();
  EXPECT_EQ(house.scheduler.Schedule(), plan);
}

TEST(SchedulerTest, AParkedJobKeepsItsPlaceAndStaysOutOfThePlan) {
  Admitted house({.max_batch_tokens = 16}, {{.id = 1}, {.id = 2}});
  house.scheduler.SetWork(1, WorkKind::kDecode, 1);
  house.scheduler.SetWork(2, WorkKind::kDecode, 1);
  house.scheduler.SetWork(1, WorkKind::kNone, 0);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Decode(2, 1)));
  house.scheduler.SetWork(1, WorkKind::kDecode, 1);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Decode(1, 1), Decode(2, 1)));
}

TEST(SchedulerTest, EncodesUnderItsOwnBudgetOldestFirst) {
  Admitted house({.max_encode_units = 8},
                 {{.id = 1, .unit_cost = 3}, {.id = 2, .unit_cost = 3}, {.id = 3}, {.id = 4}});
  for (JobId id : {1, 2, 3, 4}) house.scheduler.SetWork(id, WorkKind::kEncode, 2);
  // 6 of 8; a unit of job 2 is 3 and waits, the crops of job 3 fill what is left.
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Encode(1, 2), Encode(3, 2)));
}

TEST(SchedulerTest, AUnitDearerThanTheBudgetRunsAlone) {
  Admitted house({.max_encode_units = 2},
                 {{.id = 1, .unit_cost = 4}, {.id = 2}, {.id = 3, .unit_cost = 4}});
  for (JobId id : {1, 2, 3}) house.scheduler.SetWork(id, WorkKind::kEncode, 3);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Encode(1, 1)));
  house.scheduler.SetWork(1, WorkKind::kNone, 0);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Encode(2, 2)));
  house.scheduler.SetWork(2, WorkKind::kNone, 0);
  EXPECT_THAT(house.scheduler.Schedule(), ElementsAre(Encode(3, 1)));
}

TEST(SchedulerDeathTest, AbortsOnWhatTheEngineMayNotDo) {
  Admitted house({.max_batch_tokens = 16}, {{.id = 1, .blocks = 10, .rows = 2}});
  EXPECT_DEATH(house.scheduler.Add({.id = 2, .blocks = 101}), "101 blocks");
  EXPECT_DEATH(house.scheduler.Add({.id = 2, .rows = 0}), "CHECK failed");
  EXPECT_DEATH(house.scheduler.Add({.id = 2, .unit_cost = 0}), "CHECK failed");
  EXPECT_DEATH(house.scheduler.Add({.id = 1}), "CHECK failed");
  EXPECT_DEATH(house.scheduler.Remove(2), "unknown job 2");
  EXPECT_DEATH(house.scheduler.SetWork(1, WorkKind::kDecode, 3), "CHECK failed");  // of 2 rows
  EXPECT_DEATH(house.scheduler.SetWork(1, WorkKind::kPrefill, 0), "CHECK failed");
  house.blocks.Allocate();
  EXPECT_DEATH(house.scheduler.Remove(1), "CHECK failed");  // while it holds a block
}

}  // namespace
}  // namespace sensorium
