// Counts the bytes of device memory that kernels move. Kernels compiled with -fsanitize=thread call
// a hook for every load and store; traffic.cc has those hooks, in the place of that sanitizer's
// runtime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emu {

struct Traffic {
  // By all threads: what two threads read, or one reads twice, counts twice. What caches and the
  // coalescing of a warp's loads spare is in here.
  int64_t asked_bytes = 0;
  // Each byte read counts once, each byte written once: what must cross the bus at least.
  int64_t touched_bytes = 0;
};

// Counts accesses to this array from now on.
void Watch(const void* array, size_t bytes);
// What was counted since the first Watch; forgets all arrays.
Traffic TakeTraffic();

}  // namespace cuda_emu
