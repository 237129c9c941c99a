#include "tests/cuda_emu/traffic.h"

#include <cstdint>
#include <vector>

#include "tests/cuda_emu/emulator.h"

namespace cuda_emu {
namespace {

struct Array {
  const std::byte* begin;
  std::vector<bool> read, written;  // by byte
};
std::vector<Array> arrays;
Traffic traffic;

void Count(const void* p, size_t bytes, bool write) {
  for (Array& a : arrays) {
    const auto* at = static_cast<const std::byte*>(p);
    if (at < a.begin || at >= a.begin + a.read.size()) continue;
    traffic.asked_bytes += static_cast<int64_t>(bytes);
    std::vector<bool>& seen = write ? a.written : a.read;
    for (size_t i = at - a.begin; bytes > 0 && i < seen.size(); ++i, --bytes) {
      traffic.touched_bytes += !seen[i];
      seen[i] = true;
    }
    return;
  }
}

}  // namespace

void Watch(const void* array, size_t bytes) {
  on_async_read = [](const void* p, size_t n) { Count(p, n, /*write=*/false); };
  arrays.push_back(
      {static_cast<const std::byte*>(array), std::vector<bool>(bytes), std::vector<bool>(bytes)});
}

Traffic TakeTraffic() {
  const Traffic taken = traffic;
  traffic = {};
  arrays.clear();
  return taken;
}

}  // namespace cuda_emu

// GCC's names, gcc/sanitizer.def.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
#define HOOKS(size)                                                             \
  void __tsan_read##size(void* p) { cuda_emu::Count(p, size, false); }          \
  void __tsan_write##size(void* p) { cuda_emu::Count(p, size, true); }          \
  void __tsan_volatile_read##size(void* p) { cuda_emu::Count(p, size, false); } \
  void __tsan_volatile_write##size(void* p) { cuda_emu::Count(p, size, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS
// Atomics are on shared memory, which nobody watches.
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t* p, uint32_t v, int) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
uint64_t __tsan_atomic64_fetch_add(volatile uint64_t* p, uint64_t v, int) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
uint32_t __tsan_atomic32_fetch_or(volatile uint32_t* p, uint32_t v, int) {
  return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
void __tsan_read_range(void* p, size_t bytes) { cuda_emu::Count(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { cuda_emu::Count(p, bytes, true); }
}
