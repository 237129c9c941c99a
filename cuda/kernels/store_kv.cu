// store_kv.cu: writes new keys and values into their slots.
//
// Source    blocks as in Kwon et al. 2023 (arXiv:2309.06180).
// Shapes    k, v [tokens, kv_heads, head_dim], any token stride, float or bfloat16; slots [tokens]
//           int64: block * block_size + offset.
// Launch    grid (tokens, kv_heads), up to 128 threads: a CTA moves one head of one token.
// Traffic   k and v once in, once out. Memory-bound.
// Numerics  one rounding to the cache's type.
#include "cuda/kernels/store_kv.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

template <typename T>
__global__ void store_kv_kernel(KvLayer kv, ConstRows k, ConstRows v, const int64_t* slots) {
  const int64_t token = blockIdx.x, head = blockIdx.y, slot = slots[token];
  if (slot < 0) return;
  T* key = static_cast<T*>(kv.data) + slot / kv.block_size * kv.block_stride +
           head * kv.head_elements() + slot % kv.block_size * kv.head_dim;
  T* value = key + int64_t{kv.block_size} * kv.head_dim;
  const int64_t k_row = token * k.stride + head * kv.head_dim;
  const int64_t v_row = token * v.stride + head * kv.head_dim;
  for (int d = threadIdx.x; d < kv.head_dim; d += blockDim.x) {
    key[d] = FromFloat<T>(Load(k.data, k.type, k_row + d));
    value[d] = FromFloat<T>(Load(v.data, v.type, v_row + d));
  }
}

}  // namespace

void StoreKv(const KvLayer& kv, ConstRows k, ConstRows v, const int64_t* slots, int64_t tokens,
             Queue& queue) {
  if (tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(kv.kv_heads));
  WithType(kv.type, [&]<typename T>() {
    launch(store_kv_kernel<T>, grid, ThreadsFor(kv.head_dim, 128), 0, queue, kv, k, v, slots);
  });
}

}  // namespace sensorium::cuda
