// What three kernels share: elements of either storage type, sums and maxima over a warp and a
// block.
//
// Numerics    every reduction is one fixed tree, whatever else runs: a butterfly over the lanes of
// a
//             warp (addition commutes, so all lanes end with the same bits), then the warps in
//             ascending order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/kernels/types.h"

namespace sensorium::cuda {

inline constexpr unsigned kWholeWarpMask = 0xffffffffu;

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T>
__device__ __forceinline__ T FromFloat(float v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return __float2bfloat16(v);
  }
}
__device__ __forceinline__ float RoundToBf16(float v) {
  return __bfloat162float(__float2bfloat16(v));
}
// Two values as the halves of a register, `low` at the lower address.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Element i of an array whose type is known at run time only.
__device__ __forceinline__ float Load(const void* p, Type type, int64_t i) {
  return type == Type::kFloat32 ? static_cast<const float*>(p)[i]
                                : __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}
__device__ __forceinline__ void Store(void* p, Type type, int64_t i, float v) {
  if (type == Type::kFloat32) {
    static_cast<float*>(p)[i] = v;
  } else {
    static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16(v);
  }
}

__device__ __forceinline__ float WarpSum(float v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kWholeWarpMask, v, step);
  return v;
}
__device__ __forceinline__ float WarpMax(float v) {
  for (int step = 16; step > 0; step /= 2) {
    v = fmaxf(v, __shfl_xor_sync(kWholeWarpMask, v, step));
  }
  return v;
}

// All values of a one-dimensional block of whole warps as one by `op`, for every thread. `scratch`
// [32] in shared memory. Its barriers also order what was read before against what is written
// after.
template <typename T, typename Op>
__device__ __forceinline__ T BlockReduce(T v, T* scratch, Op op) {
  for (int step = 16; step > 0; step /= 2) v = op(v, __shfl_xor_sync(kWholeWarpMask, v, step));
  __syncthreads();  // a former result may still be read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();  // the warps' results are there
  T all = scratch[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) all = op(all, scratch[w]);
  return all;
}
__device__ __forceinline__ float BlockSum(float v, float* scratch) {
  return BlockReduce(v, scratch, [](float a, float b) { return a + b; });
}

// The sum over the threads up to and with this one. REQUIRES: a barrier since `scratch` was last
// read.
template <typename T>
__device__ __forceinline__ T BlockScan(T v, T* scratch) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(kWholeWarpMask, v, step);
    if (lane >= step) v += before;
  }
  if (lane == 31) scratch[warp] = v;
  __syncthreads();  // the warps' sums are there
  for (unsigned w = 0; w < warp; ++w) v += scratch[w];
  return v;
}

// ---- Host
// ----------------------------------------------------------------------------------------

// Calls f.template operator()<T>() with the C++ type of `type`.
template <typename F>
void WithType(Type type, F f) {
  if (type == Type::kFloat32) {
    f.template operator()<float>();
  } else {
    f.template operator()<__nv_bfloat16>();
  }
}

// Whole warps enough for `columns`, at most `most`: how a row's reduction is cut depends on the
// row's length alone.
inline unsigned ThreadsFor(int64_t columns, unsigned most) {
  return columns >= most ? most : static_cast<unsigned>(CeilDiv<int64_t>(columns, 32) * 32);
}

}  // namespace sensorium::cuda
