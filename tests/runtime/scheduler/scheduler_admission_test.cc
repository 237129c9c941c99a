// Who is admitted, who waits and who is refused.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"
#include "tests/runtime/scheduler/house.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(SchedulerTest, AdmitsWithTheWorstCaseSetAside) {
  House house({}, 10);
  house.Admitted({.rows = 2, .max_context = 33, .fixed_blocks = 1});  // 2 * 3 + 1
  EXPECT_EQ(house.blocks.reserved(), 7);
}

TEST(SchedulerTest, NobodyOvertakesTheFirstThatDoesNotFit) {
  House house({}, 10);
  const JobId first = house.Add({.max_context = 96});
  const JobId second = house.Add({.max_context = 80});
  const JobId third = house.Add({.max_context = 16});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first));
  EXPECT_THAT(house.scheduler.Admit(0), IsEmpty());
  EXPECT_EQ(house.blocks.reserved(), 6);
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second, third));
}

TEST(SchedulerTest, AJobThatGivesUpWaitingLetsTheNextOneIn) {
  House house({}, 10);
  const JobId first = house.Add({.max_context = 96});
  const JobId second = house.Add({.max_context = 80});
  const JobId third = house.Add({.max_context = 64});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first));
  house.scheduler.Remove(second);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(third));
}

TEST(SchedulerTest, AdmitsNoMoreRowsThanAStepHolds) {
  for (const SchedulerOptions& options :
       {SchedulerOptions{.max_batch_tokens = 100, .max_batch_seqs = 8},
        SchedulerOptions{.max_batch_tokens = 8, .max_batch_seqs = 100}}) {
    House house(options);
    const JobId first = house.Add({.rows = 5});
    const JobId second = house.Add({.rows = 3});
    const JobId third = house.Add({.rows = 1});
    EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first, second));
    house.scheduler.Remove(second);
    EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(third));
  }
}

TEST(SchedulerTest, WorstCaseAdmissionNeverRunsOutOfBlocks) {
  for (const int32_t block_size : {1, 7, 64}) {
    FakeEngine engine({.models = {{.block_size = block_size}}, .max_batch_seqs = 8},
                      /*num_blocks=*/64 / block_size + 8);
    int64_t answered = 0;
    for (int step = 0; step < 2000; ++step) {  // an Allocate that fails aborts
      if (engine.live() < 12) {
        answered += engine
                        .Submit({.spec = {.rows = 1 + step % 3, .max_context = 20},
                                 .prompt_tokens = 11,
                                 .decode_tokens = 9})
                        .ok();
      }
      engine.Step();
    }
    engine.Finish(1000);
    EXPECT_EQ(engine.finished(), answered);
    EXPECT_EQ(engine.scheduler().preemptions(), 0);
  }
}

// Else answers being written would keep the next pictures, and all in line behind them, waiting.
TEST(SchedulerTest, FeatureSlotsAreFreeAgainWhenThePromptIsComputed) {
  for (const bool optimistic : {false, true}) {
    House house({.models = {{.feature_slots = 1}}, .optimistic = optimistic});
    const JobId first = house.Admitted({.max_context = 16, .feature_slots = 1},
                                       {.kind = WorkKind::kPrefill, .amount = 1});
    const JobId second = house.Add({.feature_slots = 1});
    EXPECT_THAT(house.scheduler.Admit(0), IsEmpty());
    house.Step();
    house.scheduler.SetWork(first, {.kind = WorkKind::kDecode, .amount = 1, .context = 1});
    house.scheduler.CheckInvariants();
    if (optimistic) {  // it may be preempted, and needs them then
      EXPECT_THAT(house.scheduler.Admit(0), IsEmpty());
      house.scheduler.Remove(first);
    }
    EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second));
  }
}

TEST(SchedulerTest, FeatureSlotsAreSetAsideAndGivenBack) {
  House house({.models = {{.feature_slots = 3}}});
  const JobId first = house.Add({.feature_slots = 2});
  const JobId second = house.Add({.feature_slots = 2});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first));
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second));
}

TEST(SchedulerTest, RefusesWhatCouldNeverRunWithBothNumbers) {
  House house({.models = {{.feature_slots = 2}}, .max_batch_tokens = 6, .max_batch_seqs = 8}, 10);
  EXPECT_THAT(house.Refusal({.max_context = 161}),
              HasSubstr("needs 11 KV blocks and 1 rows at worst; it may have 10 and 6"));
  EXPECT_THAT(house.Refusal({.rows = 7}),
              HasSubstr("needs 0 KV blocks and 7 rows at worst; it may have 10 and 6"));
  EXPECT_THAT(house.Refusal({.feature_slots = 3}),
              HasSubstr("needs 3 image slots; the model has 2"));
  house.Add({.max_context = 160, .feature_slots = 2});
  house.Add({.rows = 6});
}

TEST(SchedulerTest, RefusesWhatATenantMayNeverHaveWithBothNumbers) {
  House house({.tenants = {{.max_blocks = 4}, {}}}, 10);
  EXPECT_THAT(house.Refusal({.max_context = 80}), HasSubstr("needs 5 KV blocks"));
  EXPECT_THAT(house.Refusal({.max_context = 80}), HasSubstr("it may have 4"));
  house.Add({.tenant = 1, .max_context = 80});
}

// One row, which a job of `tenant` has: who comes now waits in line.
struct FullHouse : House {
  explicit FullHouse(SchedulerOptions options, int32_t tenant = 0)
      : House((options.max_batch_seqs = 1, options)) {
    holder = Admitted({.tenant = tenant});
  }
  JobId holder;
};

TEST(SchedulerTest, WhoWouldRunAtOnceNeedsNoPlaceInLine) {
  House house({.max_batch_seqs = 3, .max_waiting = 0});
  const JobId first = house.Add({});
  house.Add({.rows = 2});
  EXPECT_EQ(house.scheduler.Admit(0).size(), 2);
  EXPECT_THAT(house.Refusal({}), HasSubstr("0 requests wait; the limit is 0"));
  house.scheduler.Remove(first);
  house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("1 requests wait; the limit is 1"));
}

TEST(SchedulerTest, ATenantThatMayNotRunMoreNeedsAPlaceInLine) {
  House house({.tenants = {{.max_waiting = 2, .max_running = 3}}, .max_batch_seqs = 60});
  for (int i = 0; i < 5; ++i) house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("5 requests of this tenant wait; its limit is 5"));
  EXPECT_EQ(house.scheduler.Admit(0).size(), 3);
  EXPECT_THAT(house.Refusal({}), HasSubstr("2 requests of this tenant wait; its limit is 2"));
}

TEST(SchedulerTest, RefusesWhenTheLineIsFullWithBothNumbers) {
  FullHouse house({.tenants = {{}, {}}, .max_waiting = 2});
  house.Add({});
  house.Add({.tenant = 1});
  EXPECT_THAT(house.Refusal({}), HasSubstr("2 requests wait; the limit is 2"));
  house.scheduler.Remove(house.holder);
  house.scheduler.Admit(0);
  house.Add({});
}

TEST(SchedulerTest, RefusesWhenATenantsLineIsFullWithBothNumbers) {
  FullHouse house({.tenants = {{.max_waiting = 1}, {}}});
  house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("1 requests of this tenant wait; its limit is 1"));
  house.Add({.tenant = 1});
}

TEST(SchedulerTest, ATenantAloneLeavesOnePlaceInLineForAStranger) {
  FullHouse house({.tenants = {{}, {}, {}}, .max_waiting = 6}, /*tenant=*/1);
  for (int i = 0; i < 5; ++i) house.Add({.tenant = 1});
  EXPECT_THAT(house.Refusal({.tenant = 1}),
              HasSubstr("5 requests of this tenant wait; its limit is 5"));
  house.Add({.tenant = 2});
  EXPECT_THAT(house.Refusal({.tenant = 2}), HasSubstr("6 requests wait; the limit is 6"));
}

TEST(SchedulerTest, ALineOfOnePlaceIsEverybodys) {
  FullHouse house({.tenants = {{}, {}}, .max_waiting = 1});
  house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("1 requests wait; the limit is 1"));
}

TEST(SchedulerTest, NoTenantHasMoreThanHalfTheLineOnceAnotherIsKnown) {
  FullHouse house({.tenants = {{}, {}, {}}, .max_waiting = 6});
  std::vector<JobId> flood;
  for (int i = 0; i < 5; ++i) flood.push_back(house.Add({}));
  house.Add({.tenant = 1});  // the place that was kept for it; it is known from now on
  for (int left = 4; left >= 3; --left) {
    house.scheduler.Remove(flood[left]);
    EXPECT_THAT(house.Refusal({}), HasSubstr(" requests of this tenant wait; its limit is 3"));
    house.Add({.tenant = 1});
  }
  EXPECT_EQ(house.scheduler.waiting(0), 3);
  EXPECT_EQ(house.scheduler.waiting(1), 3);
}

TEST(SchedulerTest, ATenantThatIsConfiguredIsKnownBeforeItComes) {
  FullHouse house({.tenants = {{}, {.known = true}}, .max_waiting = 5});
  for (int i = 0; i < 3; ++i) house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("3 requests of this tenant wait; its limit is 3"));
  for (int i = 0; i < 2; ++i) house.Add({.tenant = 1});
}

TEST(SchedulerTest, ATenantsOwnLimitGoesBeforeTheHalf) {
  FullHouse house({.tenants = {{.max_waiting = 5}, {.known = true}}, .max_waiting = 6});
  for (int i = 0; i < 5; ++i) house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("5 requests of this tenant wait; its limit is 5"));
}

TEST(SchedulerTest, RefusesADeadlineThatCannotBeMetWithThePredictedTime) {
  House house(Priced(10'000));
  house.Add({.encode_units = 10});                                   // 40 ms ahead of it
  const JobSpec late{.deadline_us = 50'000, .prefill_tokens = 200};  // 11 ms
  const absl::Status status = house.scheduler.Add(late, 0).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("predicted after 51 ms; the deadline is in 50 ms"));
  house.scheduler.CheckInvariants();
  EXPECT_EQ(house.scheduler.waiting(), 1);
  JobSpec in_time = late;
  in_time.deadline_us = 51'000;
  house.Add(in_time);
}

// 4 s of work of another tenant's: of that only what the shares give it meanwhile goes before.
TEST(SchedulerTest, AnotherTenantsFloodRefusesNobodysDeadline) {
  SchedulerOptions options = Priced(10'000);
  options.tenants = {{}, {}, {.weight = 100}};
  House house(options);
  for (int i = 0; i < 100; ++i) house.Add({.encode_units = 10});
  JobSpec spec{.deadline_us = 100'000, .prefill_tokens = 20};  // 2 ms
  EXPECT_TRUE(absl::IsDeadlineExceeded(house.scheduler.Add(spec, 0).status()));
  spec.tenant = 1;
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 4'000);
  spec.tenant = 2;  // a tenth of the weight: the other has ten times as much meanwhile
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 22'000);
  house.Add(spec);
  // Behind one of its own: 4 ms of its tenant's, as much of the flood's, a tenth of it of the
  // third's.
  spec.tenant = 1;
  house.Add(spec);
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 8'000 + 400);
}

TEST(SchedulerTest, LowerPrioritiesAreNotAheadOfADeadline) {
  House house(Priced(10'000));
  for (int i = 0; i < 100; ++i) house.Add({.priority = i % 2, .encode_units = 10});
  JobSpec spec{.priority = 1, .deadline_us = 3'000'000, .prefill_tokens = 20};
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 2'002'000);
  house.Add(spec);
  spec.priority = 2;
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 2'000);
}

TEST(SchedulerTest, ADeadlineBehindAFullHouseIsRefusedWithThePredictedTime) {
  SchedulerOptions options = Priced(10'000);
  options.max_batch_seqs = 2;
  House house(options);
  for (const int64_t tokens : {100, 300}) {
    house.Admitted({.max_context = 400, .prefill_tokens = 1, .decode_tokens = tokens},
                   {.kind = WorkKind::kDecode, .amount = 1, .context = 1});
  }
  house.Step();  // 1.2 ms; each has a token more
  // 99 steps until the first ends, then 2 ms, to which the other's decodes leave 8.8 of each 10.
  JobSpec spec{.deadline_us = house.now_us + 121'000, .prefill_tokens = 20};
  const absl::Status status = house.scheduler.Add(spec, house.now_us).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("predicted after 121 ms; the deadline is in 121 ms"));
  spec.deadline_us += 1'000;
  house.Add(spec);
  // Who comes behind it has the other's place.
  spec.deadline_us = house.now_us + 1'000'000;
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us / 1000, 361);
}

TEST(SchedulerTest, APredictionWaitsForBlocksAndImageSlotsToo) {
  SchedulerOptions options = Priced(10'000);
  options.models[0].feature_slots = 1;
  options.optimistic = true;  // else an image slot is free before its holder decodes
  House house(options, /*num_blocks=*/10);
  const JobSpec runs{
      .max_context = 80, .feature_slots = 1, .prefill_tokens = 1, .decode_tokens = 50};
  house.Admitted(runs, {.kind = WorkKind::kDecode, .amount = 1, .context = 1});
  const auto predicted_ms = [&](JobSpec spec) {
    spec.deadline_us = 1'000'000, spec.prefill_tokens = 20;
    return house.scheduler.Predict(spec).first_token_us / 1000;
  };
  EXPECT_EQ(predicted_ms({.max_context = 80}), 2);
  EXPECT_EQ(predicted_ms({.max_context = 81}), 57);  // 50 steps of 1.1 ms
  EXPECT_EQ(predicted_ms({.max_context = 80, .feature_slots = 1}), 57);
}

TEST(SchedulerTest, APredictionIsStretchedByTheDecodesOfToday) {
  House house(Priced(10'000));
  const JobSpec spec{.encode_units = 10};
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 40'000);
  const JobId decode =
      house.Admitted({.rows = 64}, {.kind = WorkKind::kDecode, .amount = 40});  // 5 ms of each 10
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 80'000);
  house.Step();
  house.scheduler.Remove(decode);
  // Found by review: the last plan's decodes counted though nobody was there any more.
  EXPECT_EQ(house.scheduler.Predict(spec).first_token_us, 40'000);
}

TEST(SchedulerTest, WorkThatIsDoneOrGoneIsNoLongerAheadOfTheNext) {
  House house(Priced(10'000));
  const JobSpec spec{.encode_units = 10};
  const JobId first = house.Admitted(spec, {.kind = WorkKind::kEncode, .amount = 10});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 40'000);
  house.Step();  // two units
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 32'000);
  house.scheduler.Remove(first);
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 0);
}

// Found by review: what was found in a cache stood in line until its job ended, and deadlines were
// refused for it.
TEST(SchedulerTest, WhatTheCacheSavedIsNotAheadOfTheNext) {
  House house(Priced(10'000));
  const JobSpec spec{.encode_units = 10, .prefill_tokens = 400};  // 40 ms and 21 ms
  const JobId job = house.Add(spec);
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 61'000);
  house.scheduler.Admit(0);
  house.scheduler.SetWork(job, {.kind = WorkKind::kEncode, .amount = 2, .later_tokens = 400});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 29'000);
  house.scheduler.SetWork(job, {.kind = WorkKind::kPrefill, .amount = 100});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 6'000);
  house.scheduler.SetWork(job, {.later_units = 5});  // it goes on to another recording's window
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 20'000);
  house.scheduler.SetWork(job, {.kind = WorkKind::kPrefill, .amount = 100'000});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 61'000) << "no more than it said";
  house.scheduler.SetWork(job, {});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 0);
}

TEST(SchedulerTest, WhatAPreemptedJobHadIsAheadOfTheNextAgain) {
  SchedulerOptions options = Priced(10'000, {.block_size = 10, .prices = kPrices});
  options.optimistic = true;
  House house(options, /*num_blocks=*/20);
  const JobId first =
      house.Admitted({.max_context = 200, .expected_context = 100, .prefill_tokens = 99},
                     {.kind = WorkKind::kDecode, .amount = 1, .context = 100});
  house.Admitted({.max_context = 200, .expected_context = 100, .prefill_tokens = 99},
                 {.kind = WorkKind::kDecode, .amount = 1, .context = 60});
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 0);
  house.Plan();
  ASSERT_EQ(house.preempted.size(), 1);
  ASSERT_NE(house.preempted[0], first);
  // A decode takes 1.1 of 10 ms: what is left for the 60 tokens and their pass, 4 ms, is 8.9.
  EXPECT_EQ(house.scheduler.Predict({}).first_token_us, 4'000 * 10'000 / 8'900);
}

}  // namespace
}  // namespace sensorium
