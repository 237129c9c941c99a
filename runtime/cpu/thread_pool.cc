#include "runtime/cpu/thread_pool.h"

#include <algorithm>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include "runtime/base/check.h"

namespace sensorium {
namespace {

// About 40 us on a 4 GHz core: longer than the gap between two ops of a forward pass, shorter than
// anybody's patience for a core that spins with nothing to do.
constexpr int kSpins = 1000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Binds `thread` to the n-th core (round robin) that this process may use.
void PinTo(std::thread& thread, int n) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int cores = CPU_COUNT(&allowed);
  if (cores == 0) return;
  n %= cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || n-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);  // failing only costs speed
    return;
  }
#endif
}

constexpr uint64_t Pack(uint32_t generation, uint32_t left) {
  return uint64_t{generation} << 32 | left;
}
constexpr uint32_t Generation(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
constexpr uint32_t Left(uint64_t state) { return static_cast<uint32_t>(state); }

}  // namespace

ThreadPool::ThreadPool(int threads, bool pin) {
  CHECK_GE(threads, 1);
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { WorkerLoop(i); });
    if (pin) PinTo(workers_.back(), i);  // core 0 is left to the caller
  }
}

ThreadPool::~ThreadPool() {
  CHECK(!busy_.load()) << "a ThreadPool was destroyed while its loop was running";
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t)> body) {
  ParallelForWorkers(tasks, [&body](int64_t task, int) { body(task); });
}

void ThreadPool::ParallelForWorkers(int64_t tasks, Body body) {
  CHECK(tasks < (int64_t{1} << 31)) << tasks;
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty() || busy_.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < tasks; ++i) body(i, 0);
    return;
  }
  // Long runs keep the hand-out word cool, short ones the threads level at the end.
  const int64_t run = std::max<int64_t>(1, tasks / (int64_t{16} * threads()));
  run_.store(static_cast<uint32_t>(run), std::memory_order_relaxed);
  tasks_.store(static_cast<uint32_t>(tasks), std::memory_order_relaxed);
  body_.store(&body, std::memory_order_relaxed);
  unfinished_.store(tasks, std::memory_order_relaxed);
  const uint32_t generation = Generation(state_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent, as is the sleeper's count: either it sees this loop or we see it.
  state_.store(Pack(generation, static_cast<uint32_t>(tasks)));
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mu_); }  // a worker between its last look and its wait
    if (tasks - 1 >= static_cast<int64_t>(workers_.size())) {
      wake_.notify_all();
    } else {
      for (int64_t i = 0; i < tasks - 1; ++i) wake_.notify_one();
    }
  }
  TakeTasks(generation, 0);
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    // The last task is some microseconds from its end, unless its thread has lost its core.
    spins < kSpins ? Pause() : std::this_thread::yield();
  }
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::TakeTasks(uint32_t generation, int worker) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while (Generation(state) == generation) {
    // That none is left is told by the word itself: the next loop's caller fills tasks_ and the
    // others in before it renews the word, and a thread that compared with those would find tasks
    // in a loop that is over.
    const uint32_t left = Left(state);
    if (left == 0) return;
    // These may already be the next loop's; then the word is renewed and the exchange fails.
    const uint32_t tasks = tasks_.load(std::memory_order_relaxed);
    const uint32_t run = run_.load(std::memory_order_relaxed);
    const Body* body = body_.load(std::memory_order_relaxed);
    const uint32_t begin = tasks - left;
    const uint32_t end = begin + std::min(run, left);
    if (!state_.compare_exchange_weak(state, Pack(generation, left - (end - begin)),
                                      std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    // The taken tasks keep the loop, and so the body, alive.
    for (uint32_t i = begin; i < end; ++i) (*body)(i, worker);
    unfinished_.fetch_sub(end - begin, std::memory_order_acq_rel);
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint32_t done = 0;  // the last loop this thread took part in
  while (true) {
    uint32_t generation = Generation(state_.load(std::memory_order_acquire));
    for (int spins = 0; generation == done && spins < kSpins; ++spins) {
      Pause();
      generation = Generation(state_.load(std::memory_order_acquire));
    }
    if (generation == done) {
      std::unique_lock<std::mutex> lock(mu_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return stop_.load() || Generation(state_.load()) != done; });
      sleepers_.fetch_sub(1);
      if (stop_.load()) return;
      generation = Generation(state_.load());
    }
    TakeTasks(generation, worker);
    done = generation;
  }
}

}  // namespace sensorium
