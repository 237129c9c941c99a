// The emulated device's own memory, which is no step's: its calls may take it inside a
// NoAllocationScope, as a driver does what it likes.
#pragma once

#include <utility>

#include "runtime/base/no_allocation.h"

namespace sensorium {

class AllowedAllocation {
 public:
  AllowedAllocation() : depth_(std::exchange(NoAllocationScope::depth_, 0)) {}
  ~AllowedAllocation() { NoAllocationScope::depth_ = depth_; }
  AllowedAllocation(const AllowedAllocation&) = delete;
  AllowedAllocation& operator=(const AllowedAllocation&) = delete;

 private:
  const int depth_;
};

}  // namespace sensorium
