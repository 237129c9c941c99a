#include "runtime/scheduler/preemption_order.h"

#include <map>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;

// The slots in the order in which they would go; empties it.
std::vector<int32_t> Drain(PreemptionOrder& order) {
  std::vector<int32_t> slots;
  while (order.First() >= 0) {
    slots.push_back(order.First());
    order.Erase(order.First());
    order.CheckInvariants();
  }
  return slots;
}

TEST(PreemptionOrderTest, TheEarlyThenTheLowestPriorityThenTheYoungestGoFirst) {
  PreemptionOrder order(1, 8);
  order.Insert(0, {.order = 10});
  order.Insert(1, {.order = 11});
  order.Insert(2, {.priority = 1, .order = 12});
  order.Insert(3, {.early = true, .priority = 5, .order = 1});
  order.Insert(4, {.priority = -1, .order = 2});
  order.CheckInvariants();
  EXPECT_THAT(Drain(order), ElementsAre(3, 4, 1, 0, 2));
}

TEST(PreemptionOrderTest, ATenantsFirstIsTheFirstOfItsOwn) {
  PreemptionOrder order(3, 4);
  order.Insert(0, {.tenant = 0, .order = 5});
  order.Insert(1, {.tenant = 1, .order = 6});
  order.Insert(2, {.tenant = 0, .order = 7});
  EXPECT_EQ(order.First(), 2);
  EXPECT_EQ(order.FirstOf(0), 2);
  EXPECT_EQ(order.FirstOf(1), 1);
  EXPECT_EQ(order.FirstOf(2), -1);
}

// Against a map that is looked through.
TEST(PreemptionOrderTest, AgreesWithANaiveOneOnRandomTraffic) {
  constexpr int32_t kSlots = 100, kTenants = 3;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    PreemptionOrder order(kTenants, kSlots);
    std::map<int32_t, PreemptionOrder::Entry> naive;
    const auto first = [&](int32_t tenant) {
      int32_t chosen = -1;
      const auto key = [&](int32_t slot) {
        const PreemptionOrder::Entry& e = naive.at(slot);
        return std::tuple(!e.early, e.priority, -e.order);
      };
      for (const auto& [slot, entry] : naive) {
        if (tenant >= 0 && entry.tenant != tenant) continue;
        if (chosen < 0 || key(slot) < key(chosen)) chosen = slot;
      }
      return chosen;
    };
    for (int64_t step = 0; step < 3000; ++step) {
      const int32_t slot = dice.Uniform(0, kSlots - 1);
      // It fills up, then runs empty.
      const bool fills = step % 1000 < 500;
      if (!naive.contains(slot)) {
        if (!fills && !dice.OneIn(4)) continue;
        naive[slot] = {.tenant = dice.Uniform(0, kTenants - 1),
                       .early = dice.OneIn(4),
                       .priority = dice.Uniform(-1, 1),
                       .order = step};
        order.Insert(slot, naive[slot]);
      } else if (dice.OneIn(3)) {
        naive[slot].early = !naive[slot].early;
        order.SetEarly(slot, naive[slot].early);
      } else if (!fills || dice.OneIn(4)) {
        naive.erase(slot);
        order.Erase(slot);
      }
      order.CheckInvariants();
      ASSERT_EQ(order.Contains(slot), naive.contains(slot));
      ASSERT_EQ(order.First(), first(-1));
      for (int32_t tenant = 0; tenant < kTenants; ++tenant) {
        ASSERT_EQ(order.FirstOf(tenant), first(tenant));
      }
    }
  }
}

TEST(PreemptionOrderDeathTest, AbortsWhenASlotComesTwiceOrGoesTwice) {
  PreemptionOrder order(1, 2);
  order.Insert(0, {});
  EXPECT_DEATH(order.Insert(0, {}), "CHECK failed");
  EXPECT_DEATH(order.Erase(1), "CHECK failed");
  EXPECT_DEATH(order.SetEarly(1, true), "CHECK failed");
}

}  // namespace
}  // namespace sensorium
