// Marks in a queue, and the device's time between two of them.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/cuda_error.h"
#include "cuda/kernels/queue.h"

namespace sensorium::cuda {

class Events {
 public:
  Events() = default;
  ~Events() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  // There are `count` of them afterwards, at least. Throws CudaError, as all below.
  void Reserve(size_t count) {
    events_.reserve(count);
    while (events_.size() < count) {
      cudaEvent_t event;
      CUDA_CHECK(cudaEventCreate(&event));
      events_.push_back(event);
    }
  }
  void Record(size_t i, Queue& queue) {
    CUDA_CHECK(cudaEventRecord(events_.at(i), queue.stream()));
  }
  // REQUIRES: the queue has come to both.
  int64_t NanosBetween(size_t from, size_t to) const {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, events_.at(from), events_.at(to)));
    return std::llround(static_cast<double>(ms) * 1e6);
  }

 private:
  std::vector<cudaEvent_t> events_;
};

}  // namespace sensorium::cuda
