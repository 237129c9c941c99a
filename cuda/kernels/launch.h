// The one place kernels are launched from, and where dynamic shared memory comes from. Under nvcc
// it is the runtime's launch; where the sources are compiled as plain C++ (tests/cuda_emu) it
// queues the same call for the emulated device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/cuda_error.h"
#include "cuda/kernels/queue.h"

namespace sensorium::cuda {

#if defined(__CUDACC__)

template <typename... Params>
cudaError_t LaunchNow(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                      cudaStream_t stream, Params... params) {
  constexpr size_t kWithoutAsking = 48 * 1024;  // CUDA programming guide, 7.7 "Compute Capability"
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

// The block's dynamic shared memory; all kernels use this one array.
template <typename T>
__device__ T& shared_memory() {
  extern __shared__ __align__(128) unsigned char sensorium_shared_memory[];
  return *reinterpret_cast<T*>(sensorium_shared_memory);
}

#else

template <typename... Params>
cudaError_t LaunchNow(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                      cudaStream_t stream, Params... params) {
  const AllowedAllocation allowed;  // for what the emulated device keeps of the call
  return cuda_emu::Launch(
      grid, block, shared_bytes, stream, [=] { kernel(params...); },
      reinterpret_cast<const void*>(kernel));
}

template <typename T>
T& shared_memory() {
  return *reinterpret_cast<T*>(cuda_emu::SharedMemory());
}

#endif

// A struct among a kernel's parameters has a defaulted operator== (queue.h).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Queue& queue,
            Args... args) {
  queue.Do(
      [&] {
        CUDA_CHECK(LaunchNow<Params...>(kernel, grid, block, shared_bytes, queue.stream(),
                                        static_cast<Params>(args)...));
      },
      kernel, grid, block, shared_bytes, static_cast<Params>(args)...);
}

}  // namespace sensorium::cuda
