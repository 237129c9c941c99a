#include "runtime/scheduler/scheduler.h"

#include <cstdio>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"

namespace sensorium {

void PrintTo(const PlanItem& item, std::ostream* out) {
  *out << "job " << (item.job >> 24) << " kind " << int{static_cast<uint8_t>(item.kind)}
       << " amount " << item.amount << " encoder " << item.encoder_slot;
}

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kUs = 1'000'000;  // picoseconds

// A pass 1 ms, a decode row 100 us, a prefill token 50 us, an encode unit 4 ms.
constexpr Prices kPrices{.encode_unit_ps = 4000 * kUs,
                         .forward_ps = 1000 * kUs,
                         .prefill_token_ps = 50 * kUs,
                         .decode_row_ps = 100 * kUs};

PlanItem Encode(JobId job, int32_t units, int32_t slot = 0) {
  return {job, WorkKind::kEncode, units, slot};
}
PlanItem Prefill(JobId job, int32_t tokens) { return {job, WorkKind::kPrefill, tokens}; }
PlanItem Decode(JobId job, int32_t rows = 1) { return {job, WorkKind::kDecode, rows}; }

// A scheduler whose jobs' work the test tells.
struct House {
  explicit House(const SchedulerOptions& options, int32_t num_blocks = 100)
      : blocks(num_blocks), scheduler(options, blocks) {}

  JobId Add(const JobSpec& spec) {
    const absl::StatusOr<JobId> id = scheduler.Add(spec, now_us);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.ok() ? *id : 0;
  }
  JobId Admitted(const JobSpec& spec, const JobWork& work = {}) {
    const JobId id = Add(spec);
    EXPECT_THAT(scheduler.Admit(now_us), ElementsAre(id));
    scheduler.SetWork(id, work);
    return id;
  }
  std::string Refusal(const JobSpec& spec) {
    const absl::Status status = scheduler.Add(spec, now_us).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    scheduler.CheckInvariants();
    return std::string(status.message());
  }
  const std::vector<PlanItem>& Plan() {
    preempted.clear();
    const StepPlan& plan =
        scheduler.Schedule(now_us, [this](JobId id) { preempted.push_back(id); });
    predicted_ns = plan.predicted_ns;
    decode_ns = plan.decode_ns;
    return plan.items;
  }
  void Commit() {
    scheduler.Commit(predicted_ns / 1000);
    now_us += predicted_ns / 1000;
    scheduler.CheckInvariants();
  }
  std::vector<PlanItem> Step() {
    const std::vector<PlanItem> items = Plan();
    Commit();
    return items;
  }

  BlockAllocator blocks;
  Scheduler scheduler;
  int64_t now_us = 0;
  int64_t predicted_ns = 0, decode_ns = 0;  // of the last plan
  std::vector<JobId> preempted;             // by it
};

SchedulerOptions Priced(int64_t target_step_us, const SchedulerModel& model = {.prices = kPrices}) {
  return {.models = {model}, .target_step_us = target_step_us};
}

const JobWork kDecodes{.kind = WorkKind::kDecode, .amount = 1};

// ---- The step -----------------------------------------------------------------------------------

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
  EXPECT_GT(house.scheduler.cost(fill).prefill_ns, 0);
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

TEST(SchedulerTest, AParkedJobKeepsItsMemoryAndStaysOutOfThePlan) {
  House house(Priced(10'000));
  const JobId reader = house.Admitted({.max_context = 64}, kDecodes);
  const JobId other = house.Admitted({.max_context = 64}, kDecodes);
  house.scheduler.SetWork(reader, {});
  EXPECT_THAT(house.Step(), ElementsAre(Decode(other)));
  EXPECT_EQ(house.blocks.reserved(), 8);
  house.scheduler.SetWork(reader, kDecodes);
  EXPECT_THAT(house.Step(), ElementsAre(Decode(reader), Decode(other)));
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

// ---- The flood: eight streams, and pictures and recordings in hundreds --------------------------

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

// ---- Admission ----------------------------------------------------------------------------------

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

TEST(SchedulerTest, FeatureSlotsAreSetAsideAndGivenBack) {
  House house({.models = {{.feature_slots = 3}}});
  const JobId first = house.Add({.feature_slots = 2});
  const JobId second = house.Add({.feature_slots = 2});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first));
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second));
}

// ---- Optimistic admission -----------------------------------------------------------------------

SchedulerOptions Optimistic(int32_t block_size) {
  return {.models = {{.block_size = block_size}}, .optimistic = true};
}

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
  const JobWork parked{.context = 3};
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

// Nothing of what was taken from it helps to admit it again.
TEST(SchedulerTest, APreemptedJobWaitsUntilAnotherGivesSomethingBack) {
  House house(Optimistic(1), 9);
  const JobId old = house.Admitted({.max_context = 9, .expected_context = 3}, kDecodes);
  const JobId other = house.Admitted({.max_context = 3}, kDecodes);
  const JobId young = house.Admitted({.max_context = 9, .expected_context = 3}, kDecodes);
  for (int step = 0; step < 3; ++step) house.Step();
  house.scheduler.SetWork(other, {});
  house.scheduler.SetWork(old, {.kind = WorkKind::kDecode, .amount = 1, .context = 3});
  house.scheduler.SetWork(young, {.context = 3});
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
  EXPECT_EQ(house.scheduler.cost(prefill).prefill_ns, 1'200'000);
}

// ---- Refusals -----------------------------------------------------------------------------------

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

TEST(SchedulerTest, RefusesWhenTheLineIsFullWithBothNumbers) {
  House house({.max_waiting = 2});
  house.Add({});
  house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("2 requests wait; the limit is 2"));
  house.scheduler.Admit(0);
  house.Add({});
}

TEST(SchedulerTest, RefusesWhenATenantsLineIsFullWithBothNumbers) {
  House house({.tenants = {{.max_waiting = 1}, {}}});
  house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("1 requests of this tenant wait; its limit is 1"));
  house.Add({.tenant = 1});
}

TEST(SchedulerTest, ATenantAloneMayHaveTheWholeLine) {
  House house({.tenants = {{}, {}, {}}, .max_waiting = 6});
  for (int i = 0; i < 6; ++i) house.Add({.tenant = 1});
  EXPECT_THAT(house.Refusal({.tenant = 1}), HasSubstr("6 requests wait; the limit is 6"));
}

TEST(SchedulerTest, NoTenantHasMoreThanHalfTheLineOnceAnotherIsKnown) {
  House house({.tenants = {{}, {}, {}}, .max_batch_seqs = 1, .max_waiting = 6});
  std::vector<JobId> flood;
  for (int i = 0; i < 6; ++i) flood.push_back(house.Add({}));
  // Who comes when the line is full is refused like everybody; but it is known from now on.
  EXPECT_THAT(house.Refusal({.tenant = 1}), HasSubstr("6 requests wait; the limit is 6"));
  for (int left = 5; left >= 3; --left) {
    house.scheduler.Remove(flood[left]);
    EXPECT_THAT(house.Refusal({}), HasSubstr(" requests of this tenant wait; its limit is 3"));
    house.Add({.tenant = 1});
  }
  EXPECT_EQ(house.scheduler.waiting(0), 3);
  EXPECT_EQ(house.scheduler.waiting(1), 3);
}

TEST(SchedulerTest, ATenantThatIsConfiguredIsKnownBeforeItComes) {
  House house({.tenants = {{}, {.known = true}}, .max_waiting = 5});
  for (int i = 0; i < 3; ++i) house.Add({});
  EXPECT_THAT(house.Refusal({}), HasSubstr("3 requests of this tenant wait; its limit is 3"));
  for (int i = 0; i < 2; ++i) house.Add({.tenant = 1});
}

TEST(SchedulerTest, ATenantsOwnLimitGoesBeforeTheHalf) {
  House house({.tenants = {{.max_waiting = 5}, {.known = true}}, .max_waiting = 6});
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

// ---- Fairness and order -------------------------------------------------------------------------

TEST(SchedulerTest, TenantsShareASaturatedDeviceByTheirWeights) {
  SchedulerOptions options = Priced(10'000);
  options.tenants = {{.weight = 1000}, {.weight = 3000}};
  options.max_batch_seqs = 4;
  options.encoder_slots = 4;
  FakeEngine engine(options, 1000);
  // One's requests are large, the other's small: it is time that is shared.
  const FakeRequest large{.spec = {.tenant = 0, .max_context = 240},
                          .encode_units = 8,
                          .prompt_tokens = 200,
                          .decode_tokens = 40};
  const FakeRequest small{.spec = {.tenant = 1, .max_context = 30},
                          .encode_units = 1,
                          .prompt_tokens = 20,
                          .decode_tokens = 10};
  for (int step = 0; step < 30'000; ++step) {
    while (engine.scheduler().waiting(0) < 4) ASSERT_TRUE(engine.Submit(large).ok());
    while (engine.scheduler().waiting(1) < 4) ASSERT_TRUE(engine.Submit(small).ok());
    engine.Step();
  }
  const double ratio =
      static_cast<double>(engine.tenant_ns(1)) / static_cast<double>(engine.tenant_ns(0));
  std::printf("weights 1:3 had 1:%.3f of the device\n", ratio);
  EXPECT_NEAR(ratio, 3.0, 0.09);
}

TEST(SchedulerTest, AnIdleTenantEarnsNothing) {
  SchedulerOptions options = Priced(10'000);
  options.tenants = {{}, {}};
  options.max_batch_seqs = 2;
  FakeEngine engine(options, 1000);
  const auto submit = [&](int32_t tenant) {
    while (engine.scheduler().waiting(tenant) < 4) {
      ASSERT_TRUE(engine
                      .Submit({.spec = {.tenant = tenant, .max_context = 50},
                               .prompt_tokens = 40,
                               .decode_tokens = 10})
                      .ok());
    }
  };
  for (int step = 0; step < 5000; ++step) {  // alone
    submit(0);
    engine.Step();
  }
  const int64_t before = engine.tenant_ns(0);
  for (int step = 0; step < 5000; ++step) {  // then with the other, who has none of it to make up
    submit(0);
    submit(1);
    engine.Step();
  }
  const double ratio =
      static_cast<double>(engine.tenant_ns(1)) / static_cast<double>(engine.tenant_ns(0) - before);
  EXPECT_NEAR(ratio, 1.0, 0.05);
}

TEST(SchedulerTest, PriorityThenEarliestDeadlineGoFirstWithinATenant) {
  House house({.max_batch_seqs = 1});
  const JobId plain = house.Add({});
  const JobId later = house.Add({.deadline_us = 2'000'000});
  const JobId sooner = house.Add({.deadline_us = 1'000'000});
  const JobId high = house.Add({.priority = 1});
  for (const JobId id : {high, sooner, later, plain}) {
    EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(id));
    house.scheduler.Remove(id);
  }
}

TEST(SchedulerTest, TheBudgetGoesToPriorityThenDeadlineWithinATenant) {
  House house(Priced(2'000));  // of a step, a pass and 20 tokens
  const JobWork work{.kind = WorkKind::kPrefill, .amount = 20};
  const JobId plain = house.Admitted({}, work);
  const JobId soon = house.Admitted({.deadline_us = 1'000'000}, work);
  const JobId high = house.Admitted({.priority = 1}, work);
  EXPECT_THAT(house.Step(), ElementsAre(Prefill(high, 20)));
  EXPECT_THAT(house.Step(), ElementsAre(Prefill(soon, 20)));
  EXPECT_THAT(house.Step(), ElementsAre(Prefill(plain, 20)));
}

TEST(SchedulerTest, TheBudgetGoesToTheTenantThatHadLeast) {
  SchedulerOptions options = Priced(2'000);
  options.tenants = {{}, {}};
  House house(options);
  const JobId a = house.Admitted({.tenant = 0}, {.kind = WorkKind::kPrefill, .amount = 1000});
  const JobId b = house.Admitted({.tenant = 1}, {.kind = WorkKind::kPrefill, .amount = 1000});
  std::map<JobId, int32_t> tokens;
  for (int step = 0; step < 10; ++step) {
    for (const PlanItem& item : house.Step()) tokens[item.job] += item.amount;
  }
  EXPECT_EQ(tokens[a], 100);
  EXPECT_EQ(tokens[b], 100);
}

TEST(SchedulerTest, NobodyWaitsInLineBeyondTheStarvationTimeForHigherPriorities) {
  SchedulerOptions options = Priced(10'000);
  options.max_batch_seqs = 1;
  options.starvation_us = 200'000;
  FakeEngine engine(options, 100);
  const FakeRequest urgent{.spec = {.priority = 9, .max_context = 20},
                           .prompt_tokens = 10,
                           .decode_tokens = 10};  // 1.5 + 9 * 1.1 ms
  FakeRequest humble = urgent;
  humble.spec.priority = 0;
  ASSERT_TRUE(engine.Submit(urgent).ok());
  ASSERT_TRUE(engine.Submit(urgent).ok());
  const JobId id = *engine.Submit(humble);
  const int64_t arrived = engine.now_us();
  while (!engine.Find(id)->admitted) {
    while (engine.scheduler().waiting() < 3) ASSERT_TRUE(engine.Submit(urgent).ok());
    engine.Step();
  }
  EXPECT_GE(engine.now_us() - arrived, 200'000);
  EXPECT_LE(engine.now_us() - arrived, 200'000 + 2 * 13'000);  // those who were there before it
}

TEST(SchedulerTest, AnAdmittedJobThatGotNothingForTheStarvationTimeGoesFirst) {
  SchedulerOptions options = Priced(2'000);
  options.starvation_us = 100'000;
  House house(options);
  const JobWork forever{.kind = WorkKind::kPrefill, .amount = 1'000'000};
  const JobId humble = house.Admitted({}, forever);
  house.Admitted({.priority = 1}, forever);
  int64_t last = 0, longest = 0;
  for (int step = 0; step < 1000; ++step) {
    const int64_t now = house.now_us;
    for (const PlanItem& item : house.Step()) {
      if (item.job != humble) continue;
      longest = std::max(longest, now - last);
      last = now;
    }
  }
  EXPECT_GE(longest, 100'000);
  EXPECT_LE(longest, 100'000 + 2'000);
}

// Found by review: a counter of 0, as a new house's tenants have it, beat the starving.
TEST(SchedulerTest, TheStarvingGoBeforeATenantThatNeverHadAnything) {
  SchedulerOptions options = Priced(2'000);
  options.starvation_us = 100'000;
  options.tenants = {{}, {}};
  House house(options);
  const JobWork work{.kind = WorkKind::kPrefill, .amount = 20};
  const JobId starving = house.Admitted({}, work);
  house.now_us = 99'000;
  house.Admitted({.tenant = 1, .priority = 1}, work);
  house.now_us = 100'000;
  EXPECT_THAT(house.Plan(), ElementsAre(Prefill(starving, 20)));
}

TEST(SchedulerTest, ATenantRunsNoMoreThanItsLimitAndHoldsUpNobodyElse) {
  House house({.tenants = {{.max_running = 1}, {}}});
  const JobId first = house.Add({});
  const JobId second = house.Add({});
  const JobId other = house.Add({.tenant = 1});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first, other));
  EXPECT_THAT(house.scheduler.Admit(0), IsEmpty());
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second));
}

TEST(SchedulerTest, ATenantHoldsNoMoreBlocksThanItsLimitAndHoldsUpNobodyElse) {
  House house({.tenants = {{.max_blocks = 3}, {}}}, 10);
  const JobId first = house.Add({.max_context = 32});
  const JobId second = house.Add({.max_context = 32});
  const JobId other = house.Add({.tenant = 1, .max_context = 128});
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(first, other));
  house.scheduler.Remove(first);
  EXPECT_THAT(house.scheduler.Admit(0), ElementsAre(second));
}

// ---- Ends ---------------------------------------------------------------------------------------

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
  EXPECT_EQ(house.scheduler.cost(id), (JobCost{.encode_ns = 8'000'000,
                                               .prefill_ns = 2'000'000,
                                               .decode_ns = 1'100'000,
                                               .block_ns = 2 * 11'100'000}));
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
