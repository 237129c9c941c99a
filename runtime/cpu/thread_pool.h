// A fixed set of threads that run one loop at a time: how every CPU op uses the machine's cores.
//
// The caller takes part, so a pool of n threads starts n - 1. Idle threads spin for some tens of
// microseconds (a model's ops follow each other closer than that), then sleep on a condition
// variable, so that RPC and media threads get the cores while the engine has nothing to do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace sensorium {

class ThreadPool {
 public:
  // REQUIRES: threads >= 1. `pin` binds each started thread to a core of its own among those this
  // process may use (Linux; elsewhere it does nothing). The caller's thread is never bound.
  explicit ThreadPool(int threads, bool pin = false);
  ~ThreadPool();  // REQUIRES: no loop is running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task) once for each task in [0, tasks), on all threads, and returns when all calls
  // have returned; what they wrote is visible to the caller. Tasks are handed out in ascending
  // order, in small runs. Allocates nothing. Called from within a body, or while another thread's
  // loop is running, it runs all tasks in the calling thread. REQUIRES: tasks < 2^31.
  void ParallelFor(int64_t tasks, absl::FunctionRef<void(int64_t task)> body);
  // The same; `worker` in [0, threads()) names the thread, for scratch memory of its own.
  void ParallelForWorkers(int64_t tasks, absl::FunctionRef<void(int64_t task, int worker)> body);

 private:
  using Body = absl::FunctionRef<void(int64_t, int)>;

  void WorkerLoop(int worker);
  // Runs tasks of loop `generation` until none is left to take or the loop is over.
  void TakeTasks(uint32_t generation, int worker);

  // The running loop: generation << 32 | tasks not yet handed out. One word, so that a thread that
  // comes late to loop g can never take a task of loop g + 1 with g's body, nor one of a loop g
  // that has none left.
  std::atomic<uint64_t> state_{0};
  std::atomic<const Body*> body_{nullptr};  // the loop's; on its caller's stack
  std::atomic<uint32_t> tasks_{0};
  std::atomic<uint32_t> run_{1};        // tasks handed out at a time
  std::atomic<int64_t> unfinished_{0};  // tasks of the loop that have not returned
  std::atomic<bool> busy_{false};       // a loop is running
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mu_;  // pairs with wake_ only; guards no data
  std::condition_variable wake_;
  std::vector<std::thread> workers_;  // constant after construction
};

}  // namespace sensorium
