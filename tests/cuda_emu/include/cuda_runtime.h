// Stands in for the toolkit's header of this name where the product's CUDA sources are compiled as
// plain C++ (tests/cuda_emu): the qualifiers, the built-in variables and the intrinsics the kernels
// use, and the calls of the runtime API that the backend makes.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <functional>

#include "tests/cuda_emu/allowed_allocation.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/warp_operations.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::cuda_emu::current.thread)
#define blockIdx (::cuda_emu::current.block)
#define blockDim (::cuda_emu::current.block_dim)
#define gridDim (::cuda_emu::current.grid_dim)

inline void __syncthreads() { cuda_emu::BlockBarrier(); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int from) {
  return cuda_emu::WarpExchange(mask, "__shfl_sync", value, static_cast<unsigned>(from));
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask) {
  return cuda_emu::WarpExchange(mask, "__shfl_xor_sync", value,
                                cuda_emu::Lane() ^ static_cast<unsigned>(lane_mask));
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned lane = cuda_emu::Lane();
  return cuda_emu::WarpExchange(mask, "__shfl_up_sync", value, lane < delta ? lane : lane - delta);
}
inline int __any_sync(uint32_t mask, int predicate) {
  // Whole warps only: what an absent lane left in its slot would count.
  if (mask != 0xffffffffu) cuda_emu::Fail("__any_sync of a part of a warp");
  return cuda_emu::AnyLane(predicate != 0);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) { cuda_emu::SyncWarp(mask); }

inline unsigned atomicAdd(unsigned* p, unsigned v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned atomicOr(unsigned* p, unsigned v) {
  return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned long long __float2ull_rn(float x) {
  return static_cast<unsigned long long>(llrintf(x));
}
inline int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }
inline int __double2int_rn(double x) { return static_cast<int>(lrint(x)); }

// ---- Runtime API: the calls the backend makes --------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
enum cudaDeviceAttr {
  cudaDevAttrMemoryClockRate = 36,
  cudaDevAttrGlobalMemoryBusWidth = 37,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
struct cudaDeviceProp {
  char name[256];
};
inline constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

namespace cuda_emu {
struct Stream;
struct Graph;
struct GraphExec;
}  // namespace cuda_emu
using cudaStream_t = cuda_emu::Stream*;
using cudaGraph_t = cuda_emu::Graph*;
using cudaGraphExec_t = cuda_emu::GraphExec*;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
namespace cuda_emu {
struct Event;
}
using cudaEvent_t = cuda_emu::Event*;
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t row_bytes, size_t rows, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

namespace cuda_emu {
// What cudaLaunchKernelEx is there: queues the kernel. `code`: which one it is, for those who load
// it at its first launch; null: nobody does.
cudaError_t Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::function<void()> kernel, const void* code = nullptr);
}  // namespace cuda_emu
