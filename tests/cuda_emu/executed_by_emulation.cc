// In every test program of the emulated device: says so.
#include <cstdio>

#include "gtest/gtest.h"

namespace {

class Statement : public testing::Environment {
  void SetUp() override { std::puts("CUDA is executed by emulation here, never timed."); }
};
[[maybe_unused]] const testing::Environment* const kStatement =
    testing::AddGlobalTestEnvironment(new Statement);

}  // namespace
