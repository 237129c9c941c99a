#include "runtime/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnceForAnyNumberOfTasksAndThreads) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads, /*pin=*/threads == 2);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t tasks : {0, 1, 2, 3, 7, 97, 1000, 20011}) {
      std::vector<int> runs(tasks);  // plain: each task is one thread's
      pool.ParallelFor(tasks, [&](int64_t i) { ++runs[i]; });
      EXPECT_EQ(runs, std::vector<int>(tasks, 1));
    }
  }
}

TEST(ThreadPoolTest, LoopsFollowEachOtherWithoutMixing) {
  // Small loops with bodies on the stack, back to back: a thread that comes late to one must not
  // take a task of the next with the old body.
  ThreadPool pool(4);
  std::mt19937 rng(7);
  for (int loop = 0; loop < 3000; ++loop) {
    const int64_t tasks = 1 + rng() % 9;
    std::vector<int64_t> sums(tasks);
    pool.ParallelFor(tasks, [&sums, loop](int64_t i) { sums[i] += loop + i; });
    for (int64_t i = 0; i < tasks; ++i) ASSERT_EQ(sums[i], loop + i);
  }
}

// A thread that comes late to a loop finds it over while the caller already writes a longer one's
// size down: it must not find tasks there.
TEST(ThreadPoolTest, ALoopThatIsOverHasNoTasksForWhoComesLate) {
  ThreadPool pool(3);
  std::vector<int> runs(64);
  for (int loop = 0; loop < 20000; ++loop) {
    const int64_t tasks = 2 + loop % 62;  // longer than the one before, but once in a while
    std::fill(runs.begin(), runs.end(), 0);
    pool.ParallelFor(tasks, [&](int64_t i) { __atomic_fetch_add(&runs[i], 1, __ATOMIC_RELAXED); });
    for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(runs[i], i < tasks) << "loop " << loop << ", " << i;
  }
}

TEST(ThreadPoolTest, WorkersSleepAndWakeAgain) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    // Longer than the threads spin: they sleep, and the next loop must wake them or do without.
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
    while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum, 4950);
  }
}

TEST(ThreadPoolTest, TwoTasksThatWaitForEachOtherFinish) {
  // Only possible when a second thread really takes part, also after it went to sleep.
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> arrived{0};
    pool.ParallelFor(2, [&](int64_t) {
      ++arrived;
      while (arrived != 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 2);
  }
}

TEST(ThreadPoolTest, ALoopWithinALoopRunsInItsOwnThread) {
  ThreadPool pool(4);
  std::vector<int> runs(64 * 10);
  pool.ParallelFor(64, [&](int64_t i) {
    const std::thread::id outer = std::this_thread::get_id();
    pool.ParallelFor(10, [&](int64_t j) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++runs[i * 10 + j];
    });
  });
  EXPECT_EQ(runs, std::vector<int>(640, 1));
}

TEST(ThreadPoolTest, TwoCallersShareThePool) {
  ThreadPool pool(3);
  const auto call = [&pool] {
    for (int loop = 0; loop < 500; ++loop) {
      std::vector<int> runs(17);
      pool.ParallelFor(17, [&](int64_t i) { ++runs[i]; });
      ASSERT_EQ(runs, std::vector<int>(17, 1));
    }
  };
  std::thread other(call);
  call();
  other.join();
}

TEST(ThreadPoolTest, WorkerNumbersNeverMeet) {
  ThreadPool pool(4);
  std::vector<int64_t> scratch(4);  // plain: TSan sees two threads with one number
  for (int loop = 0; loop < 200; ++loop) {
    pool.ParallelForWorkers(50, [&](int64_t, int worker) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, 4);
      ++scratch[worker];
    });
  }
  EXPECT_EQ(scratch[0] + scratch[1] + scratch[2] + scratch[3], 10000);
}

}  // namespace
}  // namespace sensorium
