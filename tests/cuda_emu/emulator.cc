#include "tests/cuda_emu/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>

// This file is not instrumented, what it runs is: it tells the sanitizer of the threads it switches
// and of what a cp.async reads and writes on their behalf.
#if defined(SENSORIUM_EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
extern "C" void __asan_loadN(const void* p, size_t bytes);
extern "C" void __asan_storeN(void* p, size_t bytes);
#endif
#if defined(SENSORIUM_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read1_pc(const void* p, void* pc);
extern "C" void __tsan_write16_pc(void* p, void* pc);
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
#if defined(SENSORIUM_EMULATOR_ASAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// What ThreadSanitizer is told. Its clocks are as long as there are threads, and every barrier
// would cost their number squared: 32 of its fibers stand for the threads of a block. In one block
// a fiber is a warp, so that two warps without a barrier between them race; in another it is a lane
// of every warp, so that two lanes without a rendezvous between them do. Which of both, a block's
// number decides. Switching orders nothing: only barriers, warp rendezvous and the beginning and
// end of a block do, so that a missing one is a race between two named lines. Not seen: races
// between blocks, which run one by one; and a shuffle orders memory here, which CUDA does not
// promise.
constexpr unsigned kFibers = 32;
#if defined(SENSORIUM_EMULATOR_TSAN)
void Release(void* what) { __tsan_release(what); }
void Acquire(void* what) { __tsan_acquire(what); }
#else
void Release(void*) {}
void Acquire(void*) {}
#endif

constexpr size_t kCopyBytes = 16;  // of a cp.async
struct PendingCopy {
  void* shared;
  const void* global;
  size_t source_bytes;
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
  Thread *next, *before;            // a ring of the threads that have not ended
  const char* waits_for = nullptr;  // a barrier or a rendezvous: the one behind the
  uint64_t waits_past = 0;          // so-many-th that was complete
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
  bool warps_run_ahead = false;  // in this block
  bool fiber_is_warp = false;    // in this block
  uint64_t blocks = 0;
  // Only their addresses count. Not one for both: who begins late is not behind who has ended.
  uint64_t block_begins = 0, block_ends = 0;
  void* tsan_fibers[kFibers] = {};
  alignas(128) std::byte shared[kMaxSharedBytes];
  size_t open_bytes = kMaxSharedBytes;  // of `shared`, to AddressSanitizer
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
#if defined(SENSORIUM_EMULATOR_ASAN)
  const bool to_host = to == &emulator.host;
  __sanitizer_start_switch_fiber(ending ? nullptr : &from->fake_stack,
                                 to_host ? emulator.host_stack : to->stack,
                                 to_host ? emulator.host_stack_bytes : kStackBytes);
#endif
#if defined(SENSORIUM_EMULATOR_TSAN)
  if (to->tsan_fiber != from->tsan_fiber) {
    __tsan_switch_to_fiber(to->tsan_fiber, __tsan_switch_to_fiber_no_sync);
  }
#endif
  const transfer_t back = jump_fcontext(to->context, from);
  static_cast<Thread*>(back.data)->context = back.fctx;
#if defined(SENSORIUM_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(emulator.self->fake_stack, nullptr, nullptr);
#endif
}

constexpr char kBarrier[] = "__syncthreads";

bool CanGoOn(const Thread& t) {
  if (t.waits_for == nullptr) return true;
  const uint64_t complete =
      t.waits_for == kBarrier ? emulator.barriers : emulator.warps[t.warp].rounds;
  return complete != t.waits_past;
}

// The next thread of the ring behind `self` that can go on.
Thread* WhoCanGoOn(const Thread& self) {
  for (Thread* t = self.next; t != &self; t = t->next) {
    if (CanGoOn(*t)) return t;
  }
  Fail("block (%u, %u, %u) hangs: thread %u waits in %s, the next one in %s", current.block.x,
       current.block.y, current.block.z, self.linear, self.waits_for, self.next->waits_for);
}

// A lane that the rendezvous of self's warp lacks and that can go on; else the next such thread of
// the ring. A warp that is given its lanes first runs ahead of all others as far as barriers let
// it: with everybody in turn no warp would ever overtake one that is still reading.
Thread* WhoMayComplete(const Thread& self) {
  Emulator& e = emulator;
  const Warp& warp = e.warps[self.warp];
  if (e.warps_run_ahead && self.waits_for != kBarrier) {
    for (uint32_t missing = warp.mask & ~warp.arrived; missing != 0; missing &= missing - 1) {
      Thread& t = e.threads[self.warp * 32 + static_cast<unsigned>(std::countr_zero(missing))];
      if (!t.ended && CanGoOn(t)) return &t;
    }
  }
  return WhoCanGoOn(self);
}

// Lets the others run until more than `complete` barriers or rendezvous of the warp are.
void Wait(const char* what, uint64_t complete) {
  Thread* self = emulator.self;
  self->waits_for = what;
  self->waits_past = complete;
  SwitchTo(WhoMayComplete(*self), /*ending=*/false);
  self->waits_for = nullptr;
}

void Enter(transfer_t transfer) {
  Emulator& e = emulator;
  static_cast<Thread*>(transfer.data)->context = transfer.fctx;
#if defined(SENSORIUM_EMULATOR_ASAN)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (transfer.data == &e.host) e.host_stack = bottom, e.host_stack_bytes = bytes;
#endif
  Acquire(&e.block_begins);
  (*e.kernel)();
  Release(&e.block_ends);
  Thread* self = e.self;
  if (e.at_barrier > 0) {
    Fail("thread %u of block (%u, %u, %u) ends while %u threads wait at a barrier", self->linear,
         current.block.x, current.block.y, current.block.z, e.at_barrier);
  }
  e.thread_ended = self->ended = true;
  self->copies.clear();
  self->before->next = self->next;
  self->next->before = self->before;
  Thread* next = --e.alive == 0 ? &e.host : self->next;
  if (e.alive > 0 && !CanGoOn(*next)) next = WhoCanGoOn(*next);
  SwitchTo(next, /*ending=*/true);
  Fail("an ended thread runs again");
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
  }
}

// Before a block begins: the block's bytes are NaN, those behind them nobody's.
void OpenSharedMemory(size_t bytes) {
  Emulator& e = emulator;
#if defined(SENSORIUM_EMULATOR_ASAN)
  const size_t end = (bytes + 7) / 8 * 8;
  if (end != e.open_bytes) {
    __asan_unpoison_memory_region(e.shared, kMaxSharedBytes);
    __asan_poison_memory_region(e.shared + end, kMaxSharedBytes - end);
    e.open_bytes = end;
  }
#endif
  // A loop, not memset: ThreadSanitizer would note every byte of it.
  auto* words = reinterpret_cast<uint64_t*>(e.shared);
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = ~uint64_t{0};
  for (size_t i = bytes / 8 * 8; i < bytes; ++i) e.shared[i] = std::byte{0xff};
}

void ChooseFibers(unsigned count) {
#if defined(SENSORIUM_EMULATOR_TSAN)
  Emulator& e = emulator;
  e.host.tsan_fiber = __tsan_get_current_fiber();
  for (void*& fiber : e.tsan_fibers) {
    if (fiber == nullptr) fiber = __tsan_create_fiber(0);
  }
  // A bit of a hash (Knuth, TAOCP 6.4), lest a grid's last block be always of one kind.
  e.fiber_is_warp = count > 32 && (++e.blocks * 0x9e3779b97f4a7c15u >> 63) != 0;
  for (unsigned i = 0; i < count; ++i) {
    e.threads[i].tsan_fiber = e.tsan_fibers[e.fiber_is_warp ? i / 32 : i % 32];
  }
#endif
}

void RunBlock(unsigned count, size_t shared_bytes) {
  Emulator& e = emulator;
  OpenSharedMemory(shared_bytes);
  ChooseFibers(count);
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
      t.before = last;
      if (last) last->next = &t;
      if (!first) first = &t;
      last = &t;
    }
  }
  last->next = first;
  first->before = last;
  const dim3& d = current.block_dim;
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = e.threads[i];
    t.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
    t.linear = i, t.lane = i % 32, t.warp = i / 32;
    t.waits_for = nullptr, t.open_group = 0, t.fake_stack = nullptr, t.ended = false;
    t.copies.clear();
    t.context = make_fcontext(t.stack + kStackBytes, kStackBytes, &Enter);
  }
  e.alive = count;
  e.at_barrier = 0;
  e.thread_ended = false;
  e.self = &e.host;
  Release(&e.block_begins);
  SwitchTo(first, /*ending=*/false);
  Acquire(&e.block_ends);
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
  Release(&e.barriers);
  if (++e.at_barrier == e.alive) {
    e.at_barrier = 0;
    ++e.barriers;
  } else {
    Wait(kBarrier, before);
  }
  Acquire(&e.barriers);
}

namespace {

// The running thread's warp, in which a rendezvous of `mask` is open or opens now.
Warp& EnterWarp(uint32_t mask, const char* kind) {
  const Thread& self = *emulator.self;
  Warp& warp = emulator.warps[self.warp];
  if (!(mask >> self.lane & 1)) Fail("%s: lane %u is not in its own mask", kind, self.lane);
  if (warp.arrived == 0) {
    warp.mask = mask, warp.kind = kind;
  } else if (warp.mask != mask || (warp.kind != kind && std::strcmp(warp.kind, kind) != 0)) {
    Fail("lanes of one warp meet in %s with mask %08x and %s with mask %08x", warp.kind, warp.mask,
         kind, mask);
  }
  return warp;
}

// Returns when every lane of the mask has come; the last one calls combine(), if there is one.
template <typename Combine>
void MeetWarp(Warp& warp, const char* kind, Combine combine) {
  const bool ordered = !emulator.fiber_is_warp;  // else the lanes are one thread to the sanitizer
  if (ordered) Release(&warp);
  warp.arrived |= 1u << emulator.self->lane;
  if (warp.arrived == warp.mask) {
    combine();
    warp.arrived = 0;
    ++warp.rounds;
  } else {
    Wait(kind, warp.rounds);
  }
  if (ordered) Acquire(&warp);
}

// What ThreadSanitizer and AddressSanitizer would have seen, had the kernel's thread done it at pc.
void NoteRead(const void* p, size_t bytes, void* pc) {
#if defined(SENSORIUM_EMULATOR_TSAN)
  for (size_t i = 0; i < bytes; ++i) __tsan_read1_pc(static_cast<const std::byte*>(p) + i, pc);
#elif defined(SENSORIUM_EMULATOR_ASAN)
  if (bytes > 0) __asan_loadN(p, bytes);
#endif
}
void NoteWrite(void* p, void* pc) {  // of kCopyBytes
#if defined(SENSORIUM_EMULATOR_TSAN)
  __tsan_write16_pc(p, pc);
#elif defined(SENSORIUM_EMULATOR_ASAN)
  __asan_storeN(p, kCopyBytes);
#endif
}

}  // namespace

void SyncWarp(uint32_t mask) {
  constexpr char kKind[] = "__syncwarp";
  MeetWarp(EnterWarp(mask, kKind), kKind, [] {});
}

uint64_t ExchangeBits(uint32_t mask, const char* kind, uint64_t bits, unsigned from) {
  Warp& warp = EnterWarp(mask, kind);
  std::byte(&slots)[32][kSlotBytes] = warp.in[warp.rounds & 1];
  std::memcpy(slots[emulator.self->lane], &bits, sizeof(bits));
  MeetWarp(warp, kind, [] {});
  std::memcpy(&bits, slots[from % 32], sizeof(bits));
  return bits;
}

const std::byte* CombineSlots(const char* kind, const void* in, size_t in_bytes, Combine combine) {
  Warp& warp = EnterWarp(0xffffffffu, kind);
  const uint64_t half = warp.rounds & 1;
  std::memcpy(warp.in[half][emulator.self->lane], in, in_bytes);
  MeetWarp(warp, kind, [&] { combine(warp.in[half][0], warp.out[half][0]); });
  return warp.out[half][emulator.self->lane];
}

void AsyncCopy(void* shared, const void* global, size_t source_bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % kCopyBytes) {
    Fail("cp.async of %zu bytes at an address that is not a multiple of that", kCopyBytes);
  }
  if (source_bytes > kCopyBytes) Fail("cp.async of %zu of %zu bytes", source_bytes, kCopyBytes);
  NoteWrite(shared, __builtin_return_address(0));
  std::memset(shared, 0xff, kCopyBytes);
  if (on_async_read != nullptr) on_async_read(global, source_bytes);
  Thread& self = *emulator.self;
  self.copies.push_back({shared, global, source_bytes, self.open_group});
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
    NoteRead(c.global, c.source_bytes, __builtin_return_address(0));
    NoteWrite(c.shared, __builtin_return_address(0));
    auto* to = static_cast<std::byte*>(c.shared);
    const auto* from = static_cast<const std::byte*>(c.global);
    for (size_t i = 0; i < kCopyBytes; ++i) to[i] = i < c.source_bytes ? from[i] : std::byte{0};
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
