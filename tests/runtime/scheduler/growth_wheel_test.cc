#include "runtime/scheduler/growth_wheel.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(GrowthWheelTest, ASlotIsDueAtItsStepAndNotATurnBefore) {
  GrowthWheel wheel(2);
  wheel.Put(0, 3);
  wheel.Put(1, 3 + 1024);
  std::vector<int32_t> due;
  wheel.AppendDue(2, due);
  EXPECT_TRUE(due.empty());
  wheel.AppendDue(3, due);
  EXPECT_EQ(due, std::vector<int32_t>{0});
  wheel.Erase(0);
  due.clear();
  wheel.AppendDue(3 + 1024, due);
  EXPECT_EQ(due, std::vector<int32_t>{1});
}

TEST(GrowthWheelTest, AgreesWithASortedListOnRandomPutsMovesAndErasures) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  constexpr int32_t kSlots = 40;
  GrowthWheel wheel(kSlots);
  std::map<int32_t, int64_t> naive;
  size_t found = 0;
  for (int64_t step = 0; step < 20'000; ++step) {
    std::vector<int32_t> due, expected;
    wheel.AppendDue(step, due);
    for (const auto& [slot, when] : naive) {
      if (when == step) expected.push_back(slot);
    }
    std::sort(due.begin(), due.end());
    ASSERT_EQ(due, expected) << step;
    found += due.size();
    for (const int32_t slot : due) {  // some come again, later or much later
      naive.erase(slot);
      if (random() % 2 == 0) {
        wheel.Erase(slot);
      } else {
        wheel.Put(slot, naive[slot] = step + 1 + static_cast<int64_t>(random() % 3000));
      }
    }
    const auto slot = static_cast<int32_t>(random() % kSlots);
    if (random() % 4 == 0) {
      wheel.Erase(slot);
      naive.erase(slot);
    } else {
      wheel.Put(slot, naive[slot] = step + 1 + static_cast<int64_t>(random() % 50));
    }
    ASSERT_EQ(wheel.Contains(slot), naive.contains(slot));
  }
  EXPECT_GT(found, 1000u);
}

}  // namespace
}  // namespace sensorium
