// Marks the part of a thread's work that takes nothing from the heap. Costs one thread-local store;
// a test replaces malloc by one that aborts inside a mark
// (tests/runtime/engine/allocation_test.cc).
#pragma once

namespace sensorium {

class NoAllocationScope {
 public:
  NoAllocationScope() { ++depth_; }
  ~NoAllocationScope() { --depth_; }
  NoAllocationScope(const NoAllocationScope&) = delete;
  NoAllocationScope& operator=(const NoAllocationScope&) = delete;

  // What a driver would do is done by something that takes memory, in tests of it alone: see
  // tests/cuda_emu/allowed_allocation.h.
  friend class AllowedAllocation;

  static bool Active() { return depth_ > 0; }  // on the calling thread

 private:
  static inline thread_local int depth_ = 0;
};

}  // namespace sensorium
