// Where launchers put their work: one stream of the device, in order.
#pragma once

#include <cuda_runtime.h>

#include "cuda/cuda_error.h"

namespace sensorium::cuda {

class Queue {
 public:
  Queue() {  // throws CudaError
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Queue() { cudaStreamDestroy(stream_); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  cudaStream_t stream() const { return stream_; }
  // Until all that was put here has run. Throws CudaError, also for what failed in between.
  void Wait() { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace sensorium::cuda
