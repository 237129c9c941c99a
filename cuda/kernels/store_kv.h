// New keys and values into the cache, and how they lie there.  CPU twin: runtime/cpu/store_kv.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// One layer of a model's KV blocks: block b's heads begin at data + b * block_stride elements; a
// head is K [block_size, head_dim], then V the same. 16-byte aligned.
struct KvLayer {
  void* data;
  int64_t block_stride;
  int block_size, kv_heads, head_dim;
  Type type;

  __host__ __device__ int64_t head_elements() const { return int64_t{2} * block_size * head_dim; }
  bool operator==(const KvLayer&) const = default;
};

// k, v [tokens, kv_heads, head_dim]; slots [tokens], negative: skipped.
void StoreKv(const KvLayer& kv, ConstRows k, ConstRows v, const int64_t* slots, int64_t tokens,
             Queue& queue);

}  // namespace sensorium::cuda
