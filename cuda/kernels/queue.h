// Where launchers put their work: one stream of the device, in order. All of it passes through
// Queue::Do with everything it was given, so that a list of calls can be remembered and others be
// compared with it: what recorded_passes.h builds on.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/cuda_error.h"

namespace sensorium::cuda {

// Whether a call sees no difference: numbers and pointers bit for bit, a struct by its own ==
// (defaulted: its padding says nothing).
template <typename T>
bool SameArgument(const T& a, const T& b) {
  if constexpr (std::is_scalar_v<T>) {
    return std::memcmp(&a, &b, sizeof(T)) == 0;
  } else {
    return a == b;
  }
}
inline bool SameArgument(const dim3& a, const dim3& b) {
  return a.x == b.x && a.y == b.y && a.z == b.z;
}

// Calls in order, each with all that it was given: its function first.
class CallList {
 public:
  template <typename... Given>
  void Add(const Given&... given) {
    calls_.push_back(std::make_unique<CallOf<Given...>>(given...));
  }
  // Whether call n is this one.
  template <typename... Given>
  bool Is(size_t n, const Given&... given) const {
    if (n >= calls_.size()) return false;
    const auto* call = dynamic_cast<const CallOf<Given...>*>(calls_[n].get());
    return call != nullptr&& [&]<size_t... i>(std::index_sequence<i...>) {
      return (SameArgument(std::get<i>(call->given), given) && ...);
    }
    (std::index_sequence_for<Given...>());
  }
  size_t size() const { return calls_.size(); }

 private:
  struct Call {
    virtual ~Call() = default;
  };
  template <typename... Given>
  struct CallOf final : Call {
    explicit CallOf(const Given&... g) : given(g...) {}
    const std::tuple<Given...> given;
  };
  std::vector<std::unique_ptr<Call>> calls_;
};

// One thread only.
class Queue {
 public:
  Queue() {  // throws CudaError
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Queue() { cudaStreamDestroy(stream_); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Makes a call on the stream, or only looks at what it is `given`, as the mode says.
  template <typename Call, typename... Given>
  void Do(const Call& call, const Given&... given) {
    if (compared_with_ != nullptr) {
      same_ = same_ && compared_with_->Is(next_++, given...);
      return;
    }
    if (recorded_in_ != nullptr) {
      if (gave_up_ != nullptr) return;
      recorded_in_->Add(given...);
    }
    call();
  }

  // Until all that was put here has run. Throws CudaError, also for what failed in between.
  void Wait() {
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    ++waits_;
  }
  int64_t waits() const { return waits_; }

  // From here to Stop calls are remembered in `calls`, too; or not made, but compared with `calls`.
  void Record(CallList& calls) { recorded_in_ = &calls, same_ = true, gave_up_ = nullptr; }
  void Compare(const CallList& calls) {
    compared_with_ = &calls, same_ = true, gave_up_ = nullptr, next_ = 0;
  }
  // By what cannot be done the same way each time: from here to Stop nothing is queued any more.
  // Not an exception: a step that throws one takes memory. REQUIRES: not plain().
  void GiveUp(const char* reason) {
    if (gave_up_ == nullptr) gave_up_ = reason;
    same_ = false;
  }
  const char* gave_up() const { return gave_up_; }  // since Record or Compare; null: nothing did
  bool plain() const { return recorded_in_ == nullptr && compared_with_ == nullptr; }
  bool same() const { return same_; }  // so far
  // Calls are made again. Whether the compared ones were the same, all of them.
  bool Stop() {
    const bool all = compared_with_ == nullptr || next_ == compared_with_->size();
    recorded_in_ = nullptr, compared_with_ = nullptr;
    return same_ && all;
  }

 private:
  cudaStream_t stream_ = nullptr;
  int64_t waits_ = 0;
  CallList* recorded_in_ = nullptr;
  const CallList* compared_with_ = nullptr;
  size_t next_ = 0;  // call of compared_with_
  bool same_ = true;
  const char* gave_up_ = nullptr;
};

}  // namespace sensorium::cuda
