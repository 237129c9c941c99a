// CUDA's execution model on the CPU: a block's threads are fibers of one OS thread, run one block
// at a time. It is there to execute the product's kernels as they are, in any order the hardware
// could choose, under sanitizers: what is tested is their arithmetic and their synchronisation, not
// speed.
//
//   - Barriers and warp operations are rendezvous: a thread that waits hands over to the next one.
//     A rendezvous that cannot complete aborts with the reason instead of hanging.
//   - The order of warps and of lanes within a warp is shuffled for each block, from SetSeed; in
//     half of the blocks all threads take turns, in the others a warp runs ahead as far as barriers
//     let it.
//   - Shared memory is NaN before each block; a copy by cp.async writes NaN where it will land when
//     it is issued and its data when it is waited for.
//   - Streams are queues that run when something waits for them (runtime.cc).
//
// One OS thread only. Aborts on misuse: a kernel that breaks the rules is a bug of ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "tests/cuda_emu/vector_types.h"

namespace cuda_emu {

// What the running thread's threadIdx and the like read.
struct Indices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Indices current;

// The block's dynamic shared memory, 128-byte aligned.
std::byte* SharedMemory();

void BlockBarrier();

// Rendezvous of the lanes in `mask`: each returns when all have come. `kind` names the operation:
// lanes that meet in different ones abort.
void SyncWarp(uint32_t mask);
unsigned Lane();

// What lane `from` brought.
uint64_t ExchangeBits(uint32_t mask, const char* kind, uint64_t bits, unsigned from);
template <typename T>
T WarpExchange(uint32_t mask, const char* kind, const T& value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = ExchangeBits(mask, kind, bits, from);
  T other;
  std::memcpy(&other, &bits, sizeof(T));
  return other;
}

// Whole warps: every lane brings `in_bytes`, at most kSlotBytes; the lane that comes last makes all
// results of them, slot by slot. Returns the running lane's, which stays as it is until the lane's
// next rendezvous is complete.
inline constexpr size_t kSlotBytes = 64;
using Combine = void (*)(const std::byte* in, std::byte* out);  // both [32][kSlotBytes]
const std::byte* CombineSlots(const char* kind, const void* in, size_t in_bytes, Combine combine);

// cp.async of the running thread to 16 bytes: `source_bytes` of them, zeros behind.
void AsyncCopy(void* shared, const void* global, size_t source_bytes);
void AsyncCommit();
void AsyncWait(int groups_left);  // until at most this many committed groups are pending

// Called for what a cp.async reads of device memory; null: nobody counts.
extern void (*on_async_read)(const void* global, size_t bytes);

// Runs every block of a grid to its end, now.
void RunGrid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

// The orders of the blocks that follow. 0: ascending.
void SetSeed(uint64_t seed);

[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace cuda_emu
