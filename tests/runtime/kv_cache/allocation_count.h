// Counts the calls of operator new in the whole test, so that it can show that a piece of code
// makes none.
#pragma once

#include <cstdint>

namespace sensorium {

class AllocationCount {
 public:
  AllocationCount() : start_(total()) {}
  int64_t since_construction() const { return total() - start_; }

 private:
  static int64_t total();

  int64_t start_;
};

}  // namespace sensorium
