// Passes captured at start as CUDA graphs, and replayed: one launch and one copy instead of some
// hundred of each.
//
// A replay can never compute something else than plain launches would. The pass's ops are run each
// time, and every call they would make on the stream is compared with the recorded one, down to the
// bits of a kernel's arguments; only when all are the same is the graph launched, and before that
// nothing is queued, so that a pass that differs can still be run plainly. What may change from one
// replay to the next is what the device reads from memory: above all the arrays of Uploads, which
// lie in a range of the pass's own.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cuda/kernels/queue.h"
#include "cuda/uploads.h"
#include "runtime/backend/backend.h"

namespace sensorium::cuda {

// Ops by name and how many of each: who may have failed.
class OpCounts {
 public:
  OpCounts() { counts_.reserve(kMostOps); }
  void Add(const char* name, int64_t times) {
    for (auto& [known, n] : counts_) {
      if (known == name) return void(n += times);
    }
    counts_.emplace_back(name, times);
  }
  void Add(const OpCounts& other) {
    for (const auto& [name, times] : other.counts_) Add(name, times);
  }
  void Clear() { counts_.clear(); }
  const std::vector<std::pair<const char*, int64_t>>& counts() const { return counts_; }

 private:
  static constexpr size_t kMostOps = 64;  // there are fewer names; more would take memory
  std::vector<std::pair<const char*, int64_t>> counts_;
};

// Engine thread only.
class RecordedPasses {
 public:
  RecordedPasses(Queue& queue, Uploads& uploads) : queue_(queue), uploads_(uploads) {}
  ~RecordedPasses();
  RecordedPasses(const RecordedPasses&) = delete;
  RecordedPasses& operator=(const RecordedPasses&) = delete;

  // Captures what `ops` queue, without running it. Takes memory of the host and of the driver: at
  // start only. false, and it says so in the log: there is no room for its arrays, or an op cannot
  // be done the same way each time. Throws CudaError.
  bool Record(const PassKey& key, absl::FunctionRef<void()> ops);
  // Queues the pass recorded for `key`, when that is what `ops` would queue now; its ops are added
  // to `queued`. false: nothing is queued, since there is none or since they differ, which the log
  // says once for each key. May wait for the last replay of the same key.
  bool Replay(const PassKey& key, absl::FunctionRef<void()> ops, OpCounts& queued);

  // An op of the pass that is recorded or compared has been through; REQUIRES: one is.
  void OpDone(const char* name);

  size_t size() const { return passes_.size(); }
  size_t range_bytes() const { return range_used_; }  // of Uploads

 private:
  struct Pass {
    CallList calls;
    OpCounts ops;
    cudaGraphExec_t graph = nullptr;
    size_t range_begin = 0, range_bytes = 0;
    int64_t replayed_at = -1;  // Queue::waits: not yet waited for when it is still the same
    bool told = false;         // that it differed
  };
  // Runs `ops` in the queue's mode within [begin, end) of Uploads' ranges; LeaveRange's result.
  size_t RunOps(absl::FunctionRef<void()> ops, size_t begin, size_t end);

  Queue& queue_;
  Uploads& uploads_;
  size_t range_used_ = 0;
  std::map<PassKey, Pass> passes_;
  OpCounts* recorded_ops_ = nullptr;          // while one is recorded
  const char* first_that_differs_ = nullptr;  // op of the pass that is compared
};

}  // namespace sensorium::cuda
