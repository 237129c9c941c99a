// What a broken device throws: the engine loop catches it, fails what is in flight and ends the
// process. Never thrown for what a caller can get wrong.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sensorium::cuda {

class CudaError : public std::runtime_error {
 public:
  // `what` failed; `hint` follows the error's own text.
  CudaError(cudaError_t error, const std::string& what, const std::string& hint = "")
      : std::runtime_error(what + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")" + hint),
        error_(error),
        failed_(what) {}
  cudaError_t error() const { return error_; }
  const std::string& failed() const { return failed_; }

 private:
  cudaError_t error_;
  std::string failed_;
};

inline void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw CudaError(error, what);
}

}  // namespace sensorium::cuda

#define CUDA_CHECK(call) ::sensorium::cuda::Check((call), #call)
