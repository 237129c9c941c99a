#include "tests/cuda_emu/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SENSORIUM_EMULATOR_TSAN)  // this file is not instrumented, what it runs is
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_emu {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

Indices current;
void (*on_async_read)(const void*, size_t) = nullptr;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 99 * 1024;  // of sm_86 and sm_89, the least of our targets
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// What ThreadSanitizer is told. Every device thread is a fiber of its own to it, and switching
// orders nothing: only barriers, warp rendezvous and the beginning and end of a block do, so that a
// missing one is a race between two named lines. Not seen: races between blocks, which run one by
// one; and a shuffle orders memory here, which CUDA does not promise.
#if defined(SENSORIUM_EMULATOR_TSAN)
void Release(void* what) { __tsan_release(what); }
void Acquire(void* what) { __tsan_acquire(what); }
#else
void Release(void*) {}
void Acquire(void*) {}
#endif

struct PendingCopy {
  std::byte* shared;
  const std::byte* global;
  size_t bytes, source_bytes;
  int group;
};

struct Warp {
  uint32_t arrived = 0;
  uint32_t mask = 0;
  const char* kind = nullptr;
  uint64_t rounds = 0;  // completed rendezvous
  // Double-buffered: a lane may enter the next rendezvous before all have read the last result.
  alignas(64) std::byte in[2][32][kSlotBytes];
  alignas(64) std::byte out[2][32][kSlotBytes];
};

struct Thread {
  fcontext_t context;
  std::byte* stack = nullptr;  // kStackBytes
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;
  uint3 index;
  unsigned linear, lane, warp;
  Thread* next;  // a ring of the threads that have not ended
  const char* waits_for = nullptr;
  uint64_t barrier = 0;  // which one it waits for, when it does
  bool ended = false;
  int open_group = 0;
  std::vector<PendingCopy> copies;
};

// All state of the block that runs. One OS thread, one block.
struct Emulator {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> order;
  const std::function<void()>* kernel = nullptr;
  Thread* self = nullptr;
  Thread host;  // only its context: who called RunGrid
  const void* host_stack = nullptr;
  size_t host_stack_bytes = 0;
  unsigned alive = 0, at_barrier = 0;
  uint64_t barriers = 0;
  bool thread_ended = false;     // some thread of the block has returned
  uint64_t progress = 0;         // arrivals at a rendezvous and threads ended
  bool warps_run_ahead = false;  // in this block
  alignas(128) std::byte shared[kMaxSharedBytes];
  uint64_t seed = 0, random = 0;
};
Emulator emulator;

uint64_t NextRandom() {  // Marsaglia 2003, xorshift64
  uint64_t& x = emulator.random;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return x;
}

void SwitchTo(Thread* to, bool ending) {
  Thread* from = emulator.self;
  emulator.self = to;
  current.thread = to->index;
#if defined(__SANITIZE_ADDRESS__)
  const bool to_host = to == &emulator.host;
  __sanitizer_start_switch_fiber(ending ? nullptr : &from->fake_stack,
                                 to_host ? emulator.host_stack : to->stack,
                                 to_host ? emulator.host_stack_bytes : kStackBytes);
#endif
#if defined(SENSORIUM_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to->tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  const transfer_t back = jump_fcontext(to->context, from);
  static_cast<Thread*>(back.data)->context = back.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(emulator.self->fake_stack, nullptr, nullptr);
#endif
}

void Enter(transfer_t transfer) {
  Emulator& e = emulator;
  static_cast<Thread*>(transfer.data)->context = transfer.fctx;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (transfer.data == &e.host) e.host_stack = bottom, e.host_stack_bytes = bytes;
#endif
  Acquire(&e.at_barrier);  // the block begins
  (*e.kernel)();
  Release(&e.at_barrier);
  Thread* self = e.self;
  if (e.at_barrier > 0) {
    Fail("thread %u of block (%u, %u, %u) ends while %u threads wait at a barrier", self->linear,
         current.block.x, current.block.y, current.block.z, e.at_barrier);
  }
  e.thread_ended = self->ended = true;
  ++e.progress;
  self->copies.clear();
  Thread* before = self;
  while (before->next != self) before = before->next;
  before->next = self->next;
  --e.alive;
  SwitchTo(e.alive == 0 ? &e.host : self->next, /*ending=*/true);
  Fail("an ended thread runs again");
}

constexpr char kBarrier[] = "__syncthreads";

// A lane that the rendezvous of self's warp lacks and that can go on; else the next thread of the
// ring. A warp that is given its lanes first runs ahead of all others as far as barriers let it:
// with everybody in turn no warp would ever overtake one that is still reading.
Thread* WhoMayComplete(const Thread& self) {
  Emulator& e = emulator;
  const Warp& warp = e.warps[self.warp];
  if (e.warps_run_ahead && self.waits_for != kBarrier) {
    for (uint32_t missing = warp.mask & ~warp.arrived; missing != 0; missing &= missing - 1) {
      Thread& t = e.threads[self.warp * 32 + static_cast<unsigned>(std::countr_zero(missing))];
      const bool blocked = t.waits_for == kBarrier && t.barrier == e.barriers;
      if (!t.ended && !blocked) return &t;
    }
  }
  return self.next;
}

// Lets the others run until done() holds.
template <typename Done>
void WaitUntil(const char* what, Done done) {
  Emulator& e = emulator;
  Thread* self = e.self;
  self->waits_for = what;
  uint64_t seen = e.progress;
  while (!done()) {
    SwitchTo(WhoMayComplete(*self), /*ending=*/false);
    if (done()) break;
    // A whole trip around the ring in which nobody got anywhere: nobody will.
    if (e.progress == seen) {
      Fail("block (%u, %u, %u) hangs: thread %u waits in %s, the next one in %s", current.block.x,
           current.block.y, current.block.z, self->linear, what,
           self->next->waits_for ? self->next->waits_for : "nothing");
    }
    seen = e.progress;
  }
  self->waits_for = nullptr;
}

void MakeStacks(unsigned count) {
  Emulator& e = emulator;
  const size_t have = e.threads.size();
  if (have >= count) return;
  e.threads.resize(count);
  for (size_t i = have; i < count; ++i) {
    // The lowest page stays closed: an overflow is a fault, not a neighbour's data.
    void* p = mmap(nullptr, kStackBytes + 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_NONE) != 0) Fail("no memory for fibers");
    e.threads[i].stack = static_cast<std::byte*>(p) + 4096;
#if defined(SENSORIUM_EMULATOR_TSAN)
    e.threads[i].tsan_fiber = __tsan_create_fiber(0);
#endif
  }
}

void RunBlock(unsigned count, size_t shared_bytes) {
  Emulator& e = emulator;
#if defined(__SANITIZE_ADDRESS__)
  const size_t end = (shared_bytes + 7) / 8 * 8;
  __asan_unpoison_memory_region(e.shared, kMaxSharedBytes);
  __asan_poison_memory_region(e.shared + end, kMaxSharedBytes - end);
#endif
  std::memset(e.shared, 0xff, shared_bytes);  // NaN in every float type
  const unsigned warps = (count + 31) / 32;
  e.warps.resize(warps);
  e.order.clear();
  std::vector<unsigned>& order = e.order;
  for (unsigned w = 0; w < warps; ++w) {
    e.warps[w].arrived = 0;
    order.push_back(w);
  }
  const auto shuffle = [&](auto begin, auto end) {
    for (auto n = end - begin; e.seed != 0 && n > 1; --n) {
      std::swap(begin[n - 1], begin[NextRandom() % n]);
    }
  };
  shuffle(order.begin(), order.end());
  e.warps_run_ahead = e.seed != 0 && NextRandom() % 2 == 0;
  Thread* last = nullptr;
  Thread* first = nullptr;
  for (unsigned w = 0; w < warps; ++w) {
    unsigned lanes[32];
    unsigned n = 0;
    for (unsigned l = order[w] * 32; l < std::min(count, order[w] * 32 + 32); ++l) lanes[n++] = l;
    shuffle(lanes, lanes + n);
    for (unsigned l = 0; l < n; ++l) {
      Thread& t = e.threads[lanes[l]];
      if (last) last->next = &t;
      if (!first) first = &t;
      last = &t;
    }
  }
  last->next = first;
  const dim3& d = current.block_dim;
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = e.threads[i];
    t.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
    t.linear = i, t.lane = i % 32, t.warp = i / 32;
    t.waits_for = nullptr, t.open_group = 0, t.fake_stack = nullptr, t.ended = false;
    t.copies.clear();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(t.stack, kStackBytes);
#endif
    t.context = make_fcontext(t.stack + kStackBytes, kStackBytes, &Enter);
  }
  e.alive = count;
  e.at_barrier = 0;
  e.thread_ended = false;
  e.self = &e.host;
#if defined(SENSORIUM_EMULATOR_TSAN)
  e.host.tsan_fiber = __tsan_get_current_fiber();
#endif
  Release(&e.at_barrier);
  SwitchTo(first, /*ending=*/false);
  Acquire(&e.at_barrier);  // all threads have ended
}

}  // namespace

void Fail(const char* format, ...) {
  std::va_list args;
  va_start(args, format);
  std::fprintf(stderr, "cuda_emu: ");
  std::vfprintf(stderr, format, args);
  std::fprintf(stderr, "\n");
  va_end(args);
  std::abort();
}

std::byte* SharedMemory() { return emulator.shared; }
unsigned Lane() { return emulator.self->lane; }

void SetSeed(uint64_t seed) {
  emulator.seed = seed;
  emulator.random = seed * 0x9e3779b97f4a7c15u + 1;
}

void BlockBarrier() {
  Emulator& e = emulator;
  if (e.thread_ended) {
    Fail("thread %u of block (%u, %u, %u) is at a barrier that another has returned before",
         e.self->linear, current.block.x, current.block.y, current.block.z);
  }
  const uint64_t before = e.barriers;
  ++e.progress;
  Release(&e.barriers);
  if (++e.at_barrier == e.alive) {
    e.at_barrier = 0;
    ++e.barriers;
  } else {
    e.self->barrier = before;
    WaitUntil(kBarrier, [&] { return e.barriers != before; });
  }
  Acquire(&e.barriers);
}

WarpSlots EnterWarp(uint32_t mask, const char* kind) {
  const Thread& self = *emulator.self;
  Warp& warp = emulator.warps[self.warp];
  if (!(mask >> self.lane & 1)) Fail("%s: lane %u is not in its own mask", kind, self.lane);
  if (warp.arrived == 0) {
    warp.mask = mask, warp.kind = kind;
  } else if (warp.mask != mask || (warp.kind != kind && std::strcmp(warp.kind, kind) != 0)) {
    Fail("lanes of one warp meet in %s with mask %08x and %s with mask %08x", warp.kind, warp.mask,
         kind, mask);
  }
  return {warp.in[warp.rounds & 1][0], warp.out[warp.rounds & 1][0]};
}

void MeetWarp(uint32_t mask, const char* kind, Combine combine) {
  const Thread& self = *emulator.self;
  Warp& warp = emulator.warps[self.warp];
  const uint64_t round = warp.rounds;
  warp.arrived |= 1u << self.lane;
  ++emulator.progress;
  Release(&warp);
  if (warp.arrived == mask) {
    Acquire(&warp);
    if (combine) combine(warp.in[round & 1][0], warp.out[round & 1][0]);
    Release(&warp);
    warp.arrived = 0;
    ++warp.rounds;
  } else {
    WaitUntil(kind, [&] { return warp.rounds != round; });
    Acquire(&warp);
  }
}

void AsyncCopy(void* shared, const void* global, size_t bytes, size_t source_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(shared);
  if (address % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    Fail("cp.async of %zu bytes at an address that is not a multiple of that", bytes);
  }
  if (source_bytes > bytes) Fail("cp.async of %zu of %zu bytes", source_bytes, bytes);
  std::memset(shared, 0xff, bytes);
  if (on_async_read != nullptr) on_async_read(global, source_bytes);
  Thread& self = *emulator.self;
  self.copies.push_back({static_cast<std::byte*>(shared), static_cast<const std::byte*>(global),
                         bytes, source_bytes, self.open_group});
}

void AsyncCommit() { ++emulator.self->open_group; }

void AsyncWait(int groups_left) {
  Thread& self = *emulator.self;
  const int done = self.open_group - groups_left;  // groups [0, done) have landed
  size_t kept = 0;
  for (const PendingCopy& c : self.copies) {
    if (c.group >= done) {
      self.copies[kept++] = c;
      continue;
    }
    std::memcpy(c.shared, c.global, c.source_bytes);
    std::memset(c.shared + c.source_bytes, 0, c.bytes - c.source_bytes);
  }
  self.copies.resize(kept);
}

void RunGrid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count > kMaxThreads) Fail("a block of %u threads", count);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    Fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  }
  if (shared_bytes > kMaxSharedBytes) Fail("%zu bytes of shared memory", shared_bytes);
  MakeStacks(count);
  emulator.kernel = &kernel;
  current.block_dim = block;
  current.grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        current.block = {x, y, z};
        RunBlock(count, shared_bytes);
      }
    }
  }
}

}  // namespace cuda_emu
