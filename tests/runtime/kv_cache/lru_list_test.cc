#include "runtime/kv_cache/lru_list.h"

#include <algorithm>
#include <list>
#include <random>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(LruListTest, KeepsTheOrderOfItsIdsOverThousandsOfRandomSteps) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t num_ids : {1, 2, 5, 40}) {
    LruList list(num_ids);
    std::list<int32_t> model;
    for (int step = 0; step < 3000; ++step) {
      const auto id = static_cast<int32_t>(random() % num_ids);
      const auto found = std::find(model.begin(), model.end(), id);
      ASSERT_EQ(list.Contains(id), found != model.end());
      if (found != model.end()) {
        list.Remove(id);
        model.erase(found);
      } else {
        list.PushBack(id);
        model.push_back(id);
      }
      ASSERT_EQ(list.size(), static_cast<int32_t>(model.size()));
      if (!model.empty()) {
        ASSERT_EQ(list.front(), model.front());
      }
    }
    for (; !model.empty(); model.pop_front()) {  // the whole order, not the front alone
      ASSERT_EQ(list.front(), model.front());
      list.Remove(list.front());
    }
  }
}

TEST(LruListDeathTest, AbortsOnAnIdThatIsTwiceInOrNotThere) {
  LruList list(2);
  EXPECT_DEATH((void)list.front(), "CHECK failed");
  EXPECT_DEATH(list.Remove(0), "CHECK failed");
  list.PushBack(0);
  EXPECT_DEATH(list.PushBack(0), "CHECK failed");
}

}  // namespace
}  // namespace sensorium
