// The scheduler under a made-up engine: random jobs come, go and change their minds for thousands
// of steps, each step is checked against the rules of scheduler.h, and everybody's blocks are real.
#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/kv_cache/block_table.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {
namespace {

struct House {
  SchedulerOptions options;
  int32_t num_blocks;
  int32_t block_size;
};

// One request: `rounds` times encode, prefill, decode; like a recording's windows.
struct FakeJob {
  JobSpec spec;
  int32_t rounds, units, prompt, decode_steps;
  // Where it is in its round.
  WorkKind kind = WorkKind::kNone;
  int32_t amount = 0;
  int32_t steps_left = 0;
  int64_t tokens = 0;  // in each of tables
  bool parked = false;
  std::vector<BlockTable> tables;
};

class FakeEngine {
 public:
  FakeEngine(const House& house, uint64_t seed)
      : house_(house),
        random_(seed),
        blocks_(house.num_blocks),
        scheduler_(house.options, blocks_) {}

  void Arrive() {
    FakeJob job;
    job.spec = {.id = next_id_++,
                .rows = Uniform(1, 6),
                .unit_cost = Uniform(1, 2 * house_.options.max_encode_units)};
    job.rounds = Uniform(1, 3);
    job.units = Uniform(0, 4);
    job.prompt = Uniform(1, 3 * house_.options.max_batch_tokens);
    job.decode_steps = Uniform(1, 40);
    job.spec.blocks =
        job.spec.rows * BlockTable::BlocksFor(job.prompt + job.decode_steps, house_.block_size);
    const bool fits = job.spec.blocks <= house_.num_blocks &&
                      job.spec.rows <= house_.options.max_batch_seqs &&
                      job.spec.rows <= house_.options.max_batch_tokens;
    ASSERT_EQ(scheduler_.Fits(job.spec), fits);
    if (!fits) return;
    scheduler_.Add(job.spec);
    waiting_.push_back(std::move(job));
  }

  void CancelSomebody() {
    const size_t which = random_() % (waiting_.size() + running_.size() + 1);
    if (which < waiting_.size()) {
      scheduler_.Remove(waiting_[which].spec.id);
      waiting_.erase(waiting_.begin() + static_cast<int64_t>(which));
    } else if (which < waiting_.size() + running_.size()) {
      const size_t i = which - waiting_.size();
      running_[i].tables.clear();
      scheduler_.Remove(running_[i].spec.id);
      running_.erase(running_.begin() + static_cast<int64_t>(i));
    }
  }

  // A reader that fell behind, or caught up.
  void ParkOrResumeSomebody() {
    if (running_.empty()) return;
    FakeJob& job = running_[random_() % running_.size()];
    job.parked = !job.parked;
    Tell(job);
  }
  void ResumeEverybody() {
    for (FakeJob& job : running_) {
      job.parked = false;
      Tell(job);
    }
  }

  void Step() {
    AdmitInOrder();
    const std::vector<PlanItem> plan = scheduler_.Schedule();
    CheckPlan(plan);
    if (testing::Test::HasFatalFailure()) return;
    for (const PlanItem& item : plan) Perform(item);
    std::erase_if(running_, [&](FakeJob& job) {
      if (job.rounds > 0) return false;
      scheduler_.Remove(job.spec.id);
      ++num_finished_;
      return true;
    });
    scheduler_.CheckInvariants();
    blocks_.CheckInvariants();
    ASSERT_EQ(scheduler_.waiting(), static_cast<int32_t>(waiting_.size()));
    ASSERT_EQ(scheduler_.running(), static_cast<int32_t>(running_.size()));
  }

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t num_finished() const { return num_finished_; }
  int32_t used() const { return blocks_.used(); }
  int32_t reserved() const { return blocks_.reserved(); }
  // Every item that a plan may still hold, were each of amount 1: no run takes more steps.
  int64_t WorkLeft() const {
    int64_t work = 0;
    for (const auto* jobs : {&waiting_, &running_}) {
      for (const FakeJob& job : *jobs) {
        work += int64_t{job.rounds} * (job.units + job.prompt + job.decode_steps);
      }
    }
    return work;
  }

 private:
  int32_t Uniform(int32_t low, int32_t high) {  // both inclusive
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }

  void Tell(const FakeJob& job) {
    scheduler_.SetWork(job.spec.id, job.parked ? WorkKind::kNone : job.kind, job.amount);
  }

  // Exactly the oldest that fit, and no one past the first that does not.
  void AdmitInOrder() {
    int32_t rows = 0;
    for (const FakeJob& job : running_) rows += job.spec.rows;
    int32_t reserved = blocks_.reserved();
    for (const JobId id : scheduler_.Admit()) {
      ASSERT_FALSE(waiting_.empty());
      ASSERT_EQ(id, waiting_.front().spec.id);
      rows += waiting_.front().spec.rows;
      reserved += waiting_.front().spec.blocks;
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
      StartRound(running_.back());
      Tell(running_.back());
    }
    const int32_t row_limit =
        std::min(house_.options.max_batch_seqs, house_.options.max_batch_tokens);
    ASSERT_LE(rows, row_limit);
    ASSERT_LE(reserved, house_.num_blocks);
    ASSERT_EQ(reserved, blocks_.reserved());
    if (!waiting_.empty()) {
      const JobSpec& next = waiting_.front().spec;
      ASSERT_TRUE(rows + next.rows > row_limit || reserved + next.blocks > house_.num_blocks);
    }
  }

  void StartRound(FakeJob& job) {
    job.tables.clear();
    job.tables.emplace_back(blocks_, house_.block_size);
    job.tokens = 0;
    job.steps_left = job.decode_steps;
    job.kind = job.units > 0 ? WorkKind::kEncode : WorkKind::kPrefill;
    job.amount = job.units > 0 ? job.units : job.prompt;
  }

  // The rules, by kind, over the running jobs in order of admission.
  void CheckPlan(const std::vector<PlanItem>& plan) {
    std::map<JobId, PlanItem> item_of;
    for (const PlanItem& item : plan) {
      ASSERT_GT(item.amount, 0);
      ASSERT_TRUE(item_of.emplace(item.job, item).second) << "twice: " << item.job;
    }
    int32_t tokens = 0, cost = 0;
    std::set<WorkKind> oldest;  // the kinds whose oldest job has gone by
    size_t seen = 0;
    for (const FakeJob& job : running_) {
      const auto it = item_of.find(job.spec.id);
      const bool planned = it != item_of.end();
      if (job.parked) {
        ASSERT_FALSE(planned) << job.spec.id;
        continue;
      }
      // Nobody starves: all decodes are in, and the oldest of each other kind.
      if (job.kind == WorkKind::kDecode || oldest.insert(job.kind).second) {
        ASSERT_TRUE(planned) << "nothing for job " << job.spec.id;
      }
      if (!planned) continue;
      ++seen;
      const PlanItem& item = it->second;
      ASSERT_EQ(item.kind, job.kind);
      ASSERT_LE(item.amount, job.amount);
      if (job.kind == WorkKind::kDecode) {
        ASSERT_EQ(item.amount, job.amount);
      }
      if (job.kind == WorkKind::kEncode) {
        // Only alone may a unit cost more than the budget.
        if (cost > 0 || item.amount > 1) {
          ASSERT_LE(cost + item.amount * job.spec.unit_cost, house_.options.max_encode_units);
        }
        cost += item.amount * job.spec.unit_cost;
      } else {
        tokens += item.amount;
      }
    }
    ASSERT_EQ(seen, plan.size()) << "an item of nobody";
    ASSERT_LE(tokens, house_.options.max_batch_tokens);
    if (house_.options.chaos_seed == 0) {
      ASSERT_TRUE(std::is_sorted(plan.begin(), plan.end(), [](const auto& a, const auto& b) {
        return a.kind > b.kind || (a.kind == b.kind && a.job < b.job);
      })) << "not decode, prefill, encode, oldest first";
    }
  }

  void Perform(const PlanItem& item) {
    FakeJob& job = *std::find_if(running_.begin(), running_.end(),
                                 [&](const FakeJob& j) { return j.spec.id == item.job; });
    switch (item.kind) {
      case WorkKind::kNone:
        FAIL();
      case WorkKind::kEncode:
        job.amount -= item.amount;
        if (job.amount == 0) {
          job.kind = WorkKind::kPrefill;
          job.amount = job.prompt;
        }
        break;
      case WorkKind::kPrefill:
        job.tokens += item.amount;
        job.tables[0].Grow(job.tokens);
        job.amount -= item.amount;
        if (job.amount == 0) {
          job.kind = WorkKind::kDecode;
          job.amount = Uniform(1, job.spec.rows);
          std::vector<BlockCopy> copies;
          while (static_cast<int32_t>(job.tables.size()) < job.spec.rows) {
            job.tables.push_back(job.tables[0].Fork(job.tokens, copies));
          }
        }
        break;
      case WorkKind::kDecode:
        ++job.tokens;
        for (BlockTable& table : job.tables) table.Grow(job.tokens);
        job.amount = Uniform(1, job.spec.rows);  // hypotheses end and branch
        if (--job.steps_left == 0) {
          job.tables.clear();
          if (--job.rounds == 0) return;
          StartRound(job);
        }
        break;
    }
    Tell(job);
  }

  const House house_;
  std::mt19937_64 random_;
  BlockAllocator blocks_;  // outlives the tables of the jobs
  Scheduler scheduler_;
  std::deque<FakeJob> waiting_, running_;  // in order of arrival
  JobId next_id_ = 1;
  int64_t num_finished_ = 0;
};

std::vector<House> Houses(uint64_t chaos_seed) {
  return {
      {{.max_batch_tokens = 64,
        .max_batch_seqs = 16,
        .max_encode_units = 4,
        .chaos_seed = chaos_seed},
       200,
       16},
      {{.max_batch_tokens = 8,
        .max_batch_seqs = 64,
        .max_encode_units = 1,
        .chaos_seed = chaos_seed},
       6,
       32},
      {{.max_batch_tokens = 512,
        .max_batch_seqs = 6,
        .max_encode_units = 8,
        .chaos_seed = chaos_seed},
       300,
       48},
      {{.max_batch_tokens = 1,
        .max_batch_seqs = 1,
        .max_encode_units = 2,
        .chaos_seed = chaos_seed},
       1,
       64},
  };
}

void RunHouse(const House& house, uint64_t seed) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << house.num_blocks << " blocks of "
                                  << house.block_size << ", chaos " << house.options.chaos_seed);
  FakeEngine engine(house, seed);
  std::mt19937_64 random(seed + 1);
  for (int step = 0; step < 3000; ++step) {
    if (random() % 8 == 0) engine.Arrive();
    if (random() % 40 == 0) engine.CancelSomebody();
    if (random() % 10 == 0) engine.ParkOrResumeSomebody();
    engine.Step();
    if (testing::Test::HasFatalFailure()) return;
  }
  // The doors close: whoever is in, or waits, is served to the end.
  engine.ResumeEverybody();
  for (int64_t left = engine.WorkLeft(); !engine.idle(); --left) {
    ASSERT_GE(left, 0) << "some work is never planned";
    engine.Step();
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(engine.num_finished(), 0);
  EXPECT_EQ(engine.used(), 0);
  EXPECT_EQ(engine.reserved(), 0);
}

TEST(SchedulerPropertyTest, KeepsItsRulesAndServesEverybodyOverThousandsOfRandomSteps) {
  const uint64_t seed = std::random_device{}();
  for (const House& house : Houses(/*chaos_seed=*/0)) RunHouse(house, seed);
}

TEST(SchedulerPropertyTest, KeepsItsRulesAndServesEverybodyInChaos) {
  const uint64_t seed = std::random_device{}();
  for (const House& house : Houses(/*chaos_seed=*/seed | 1)) RunHouse(house, seed);
}

// Chaos is there to find code that depends on where a chunk ends or who comes first.
TEST(SchedulerPropertyTest, ChaosCutsAtDifferentPlacesAndShuffles) {
  BlockAllocator blocks(10);
  Scheduler scheduler({.max_batch_tokens = 64, .chaos_seed = 7}, blocks);
  for (JobId id : {1, 2, 3}) scheduler.Add({.id = id, .blocks = 1});
  ASSERT_EQ(scheduler.Admit().size(), 3u);
  scheduler.SetWork(1, WorkKind::kPrefill, 40);
  scheduler.SetWork(2, WorkKind::kDecode, 1);
  scheduler.SetWork(3, WorkKind::kEncode, 4);
  std::set<int32_t> cuts;
  std::set<JobId> first;
  for (int step = 0; step < 200; ++step) {
    const std::vector<PlanItem> plan = scheduler.Schedule();
    ASSERT_EQ(plan.size(), 3u);
    first.insert(plan[0].job);
    for (const PlanItem& item : plan) {
      if (item.kind == WorkKind::kPrefill) cuts.insert(item.amount);
    }
  }
  EXPECT_GT(cuts.size(), 20u);
  EXPECT_EQ(first.size(), 3u);
}

}  // namespace
}  // namespace sensorium
