#include "tests/runtime/kv_cache/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> num_allocations = 0;
}  // namespace

// The forms for arrays and sizes call these; nothing under test is over-aligned.
void* operator new(size_t size) {
  ++num_allocations;
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace sensorium {

int64_t AllocationCount::total() { return num_allocations; }

}  // namespace sensorium
