// The scheduler takes its memory at construction. This file's operator new counts for the whole
// test binary, and only while a test says so.
#include <cstdlib>
#include <new>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/scheduler.h"

namespace {
bool counting = false;
int64_t allocations = 0;

void* Take(std::size_t size) {
  allocations += counting;
  if (void* p = std::malloc(size > 0 ? size : 1)) return p;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return Take(size); }
void* operator new[](std::size_t size) { return Take(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace sensorium {
namespace {

struct Task {
  JobId id = 0;
  bool admitted = false;
  JobWork work;
};

// Everybody through encode, prefill and decode, or out when half done.
void LiveThrough(Scheduler& scheduler, std::vector<Task>& tasks) {
  const auto find = [&](JobId id) -> Task& {
    for (Task& task : tasks) {
      if (task.id == id) return task;
    }
    std::abort();
  };
  int64_t now_us = 0;
  for (int step = 0; step < 400; ++step) {
    if (tasks.size() < tasks.capacity() && step < 300) {
      const absl::StatusOr<JobId> id =
          scheduler.Add({.model = step % 2,
                         .tenant = step % 3,
                         .priority = step % 4 == 0,
                         .deadline_us = step % 5 ? kNever : now_us + 1'000'000'000,
                         .max_context = 12,
                         .expected_context = 4,
                         .feature_slots = 1,
                         .encode_units = 3,
                         .prefill_tokens = 4},
                        now_us);
      if (!id.ok()) std::abort();
      tasks.push_back({.id = *id});
    }
    for (const JobId id : scheduler.Admit(now_us)) {
      Task& task = find(id);
      task.admitted = true;
      task.work = {.kind = WorkKind::kEncode, .amount = 3};
      scheduler.SetWork(id, task.work);
    }
    const StepPlan& plan = scheduler.Schedule(now_us, [&](JobId id) { find(id).admitted = false; });
    now_us += plan.predicted_ns / 1000;
    for (const PlanItem& item : plan.items) {
      JobWork& work = find(item.job).work;
      if (item.kind != WorkKind::kEncode) work.context += item.amount;
      if (item.kind != WorkKind::kDecode) work.amount -= item.amount;
    }
    scheduler.Commit(plan.predicted_ns / 1000);
    for (size_t i = tasks.size(); i-- > 0;) {
      Task& task = tasks[i];
      JobWork& work = task.work;
      if (work.context >= 12 || (step % 50 == 49 && i % 4 == 0)) {
        scheduler.Remove(task.id);
        tasks.erase(tasks.begin() + static_cast<int64_t>(i));
      } else if (task.admitted && work.amount == 0) {
        const bool encoded = work.kind == WorkKind::kEncode;
        work.kind = encoded ? WorkKind::kPrefill : WorkKind::kDecode;
        work.amount = encoded ? 4 : 1;
        scheduler.SetWork(task.id, work);
      }
    }
  }
}

TEST(SchedulerAllocationTest, TakesAllItsMemoryAtConstruction) {
  const Prices prices{.encode_unit_ps = 1'000'000'000,
                      .forward_ps = 1'000'000'000,
                      .prefill_token_ps = 1'000'000,
                      .decode_row_ps = 1'000'000};
  for (const bool optimistic : {false, true}) {
    SCOPED_TRACE(optimistic);
    BlockAllocator blocks(40);
    Scheduler scheduler({.models = {{.block_size = 1, .feature_slots = 9, .prices = prices},
                                    {.block_size = 2, .feature_slots = 9, .prices = prices}},
                         .tenants = {{}, {}, {.max_running = 2}},
                         .max_batch_seqs = 8,
                         .max_waiting = 24,
                         .encoder_slots = 2,
                         .target_step_us = 3000,
                         .optimistic = optimistic},
                        blocks);
    std::vector<Task> tasks;
    tasks.reserve(24);
    allocations = 0;
    counting = true;
    LiveThrough(scheduler, tasks);
    scheduler.SetPrices(0, {});
    for (const Task& task : tasks) scheduler.Remove(task.id);
    counting = false;
    EXPECT_EQ(allocations, 0);
    EXPECT_EQ(optimistic, scheduler.preemptions() > 0);
    EXPECT_EQ(scheduler.running() + scheduler.waiting(), 0);
    scheduler.CheckInvariants();
  }
}

TEST(SchedulerAllocationTest, CountsAllocations) {
  allocations = 0;
  counting = true;
  ::operator delete(::operator new(1));
  counting = false;
  EXPECT_EQ(allocations, 1);
}

}  // namespace
}  // namespace sensorium
