// What a broken device throws: the engine loop catches it, fails what is in flight and ends the
// process. Never thrown for what a caller can get wrong.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sensorium::cuda {

class CudaError : public std::runtime_error {
 public:
  CudaError(cudaError_t error, const std::string& what)
      : std::runtime_error(what + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")"),
        error_(error) {}
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_;
};

inline void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw CudaError(error, what);
}

}  // namespace sensorium::cuda

#define CUDA_CHECK(call) ::sensorium::cuda::Check((call), #call)
