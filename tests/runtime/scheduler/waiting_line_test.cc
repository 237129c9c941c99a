#include "runtime/scheduler/waiting_line.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kStarvationUs = 1'000'000;

// The slots in the order in which they would be admitted at `now_us`; empties the line.
std::vector<int32_t> Drain(WaitingLine& line, int64_t now_us) {
  const std::vector<char> nobody(line.num_tenants());
  std::vector<int32_t> order;
  for (int32_t slot; (slot = line.Head(now_us, nobody)) >= 0;) {
    order.push_back(slot);
    line.Erase(slot);
  }
  return order;
}

TEST(WaitingLineTest, HigherPriorityThenEarlierDeadlineThenEarlierArrivalGoesFirst) {
  WaitingLine line({{}}, kStarvationUs, 8);
  for (int i = 0; i < 6; ++i) line.Enter(0);
  line.Push(0, {.order = 0});
  line.Push(1, {.order = 1});
  line.Push(2, {.deadline_us = 900, .order = 2});
  line.Push(3, {.deadline_us = 500, .order = 3});
  line.Push(4, {.priority = 1, .order = 4});
  line.Push(5, {.priority = -1, .deadline_us = 1, .order = 5});
  line.CheckInvariants();
  EXPECT_THAT(Drain(line, 0), ElementsAre(4, 3, 2, 0, 1, 5));
}

TEST(WaitingLineTest, WhoHasWaitedTheStarvationTimeGoesBeforeAllYoungerOnes) {
  WaitingLine line({{}}, kStarvationUs, 8);
  line.Push(0, {.priority = -5, .arrival_us = 0, .order = 0});
  line.Push(1, {.priority = -9, .arrival_us = 10, .order = 1});
  line.Push(2, {.priority = 9, .arrival_us = 20, .order = 2});
  EXPECT_EQ(line.HeadOf(0, kStarvationUs - 1), 2);
  EXPECT_EQ(line.HeadOf(0, kStarvationUs), 0);
  EXPECT_THAT(Drain(line, kStarvationUs + 10), ElementsAre(0, 1, 2));
}

TEST(WaitingLineTest, AStreamOfHighPriorityHoldsNobodyUpBeyondTheStarvationTime) {
  WaitingLine line({{}}, kStarvationUs, 4);
  const std::vector<char> nobody(1);
  line.Push(0, {.priority = 0, .arrival_us = 0, .order = 0});
  int64_t order = 1;
  for (int64_t now = 0;; now += 1000) {  // one comes and one is admitted every millisecond
    line.Push(1, {.priority = 7, .arrival_us = now, .order = order++});
    const int32_t slot = line.Head(now, nobody);
    if (slot == 0) {
      EXPECT_EQ(now, kStarvationUs);
      return;
    }
    line.Erase(slot);
  }
}

TEST(WaitingLineTest, APreemptedOneTakesItsOldPlace) {
  WaitingLine line({{}}, kStarvationUs, 8);
  for (int32_t slot = 0; slot < 5; ++slot) {
    line.Enter(0);
    line.Push(slot, {.order = slot});
  }
  line.Erase(2);
  line.Erase(0);
  line.Push(2, {.order = 2});
  line.Push(0, {.order = 0});
  line.CheckInvariants();
  EXPECT_THAT(Drain(line, 0), ElementsAre(0, 1, 2, 3, 4));
}

TEST(WaitingLineTest, TheTenantThatHadLeastOfItsShareGoesNext) {
  WaitingLine line({{.weight = 1000}, {.weight = 3000}}, kStarvationUs, 8);
  for (int32_t tenant : {0, 1}) line.Enter(tenant);
  line.Push(0, {.tenant = 0, .order = 0});
  line.Push(1, {.tenant = 1, .order = 1});
  const std::vector<char> nobody(2);
  line.Charge(0, 10'000);
  line.Charge(1, 29'000);  // of three times the weight: less
  EXPECT_EQ(line.Head(0, nobody), 1);
  line.Charge(1, 2'000);
  EXPECT_EQ(line.Head(0, nobody), 0);
}

TEST(WaitingLineTest, BetweenTenantsTheShareDecidesAlsoForTheStarving) {
  WaitingLine line({{}, {}}, kStarvationUs, 8);
  for (int32_t tenant : {0, 1}) line.Enter(tenant);
  line.Push(0, {.tenant = 0, .arrival_us = 0, .order = 0});
  line.Push(1, {.tenant = 1, .arrival_us = 5 * kStarvationUs, .order = 1});
  const std::vector<char> nobody(2);
  line.Charge(0, 10'000);
  EXPECT_EQ(line.Head(5 * kStarvationUs, nobody), 1);
  line.Charge(1, 10'001);  // so much of its share is all that the starving one waits for
  EXPECT_EQ(line.Head(5 * kStarvationUs, nobody), 0);
}

TEST(WaitingLineTest, ABlockedTenantIsPassedOver) {
  WaitingLine line({{}, {}}, kStarvationUs, 8);
  line.Push(0, {.tenant = 0, .order = 0});
  line.Push(1, {.tenant = 1, .order = 1});
  EXPECT_EQ(line.Head(0, {1, 0}), 1);
  EXPECT_EQ(line.Head(0, {1, 1}), -1);
}

TEST(WaitingLineTest, IdleTimeEarnsNothing) {
  WaitingLine line({{}, {}, {}}, kStarvationUs, 8);
  line.Enter(0);
  line.Charge(0, 1'000'000);
  line.Enter(1);  // was never there: starts where the others are, not at 0
  EXPECT_EQ(line.counter(1), 1'000'000);
  line.Charge(1, 500'000);
  line.Leave(0);
  line.Charge(1, 500'000);
  line.Enter(0);  // was away meanwhile
  EXPECT_EQ(line.counter(0), 2'000'000);
  // Nor does it when the whole house was empty.
  line.Charge(0, 1'000'000);
  line.Leave(1);
  line.Leave(0);
  line.Enter(2);
  EXPECT_EQ(line.counter(2), 3'000'000);
}

TEST(WaitingLineTest, ComingBackDoesNotWipeOutWhatATenantHad) {
  WaitingLine line({{}, {}}, kStarvationUs, 8);
  for (int32_t tenant : {0, 1}) line.Enter(tenant);
  line.Charge(0, 5'000);
  line.Leave(0);
  line.Enter(0);
  EXPECT_EQ(line.counter(0), 5'000);
  EXPECT_EQ(line.counter(1), 0);
}

// Against a list that is sorted anew for each question.
TEST(WaitingLineTest, AgreesWithANaiveLineOnRandomTraffic) {
  constexpr int32_t kSlots = 12, kTenants = 3;
  const std::vector<TenantOptions> tenants(kTenants);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    WaitingLine line(tenants, /*starvation_us=*/300, kSlots);
    struct Waiting {
      int32_t slot;
      WaitingLine::Entry entry;
    };
    std::vector<Waiting> naive, gone;  // gone: may come back, as a preempted one does
    std::vector<int32_t> free;
    for (int32_t slot = 0; slot < kSlots; ++slot) free.push_back(slot);
    int64_t order = 0;
    for (int64_t now = 0; now < 5000; ++now) {
      const int32_t what = dice.Uniform(0, 9);
      if (what < 4 && !free.empty()) {
        const Waiting w{free.back(),
                        {.tenant = dice.Uniform(0, kTenants - 1),
                         .priority = dice.Uniform(-1, 1),
                         .deadline_us = dice.OneIn(2) ? kNever : dice.Uniform(0, 6000),
                         .arrival_us = now,
                         .order = order++}};
        free.pop_back();
        naive.push_back(w);
        line.Enter(w.entry.tenant);
        line.Push(w.slot, w.entry);
      } else if (what < 7 && !naive.empty()) {
        const int32_t i = dice.Uniform(0, static_cast<int32_t>(naive.size()) - 1);
        line.Erase(naive[i].slot);
        if (dice.OneIn(3)) {
          gone.push_back(naive[i]);
        } else {
          line.Leave(naive[i].entry.tenant);
          free.push_back(naive[i].slot);
        }
        naive.erase(naive.begin() + i);
      } else if (what < 8 && !gone.empty()) {
        naive.push_back(gone.back());
        line.Push(gone.back().slot, gone.back().entry);
        gone.pop_back();
      }
      line.CheckInvariants();
      ASSERT_EQ(line.size(), static_cast<int32_t>(naive.size()));
      for (int32_t tenant = 0; tenant < kTenants; ++tenant) {
        const Waiting* oldest = nullptr;
        const Waiting* best = nullptr;
        for (const Waiting& w : naive) {
          if (w.entry.tenant != tenant) continue;
          const auto key = [](const Waiting* x) {
            return std::tuple(-x->entry.priority, x->entry.deadline_us, x->entry.order);
          };
          if (!oldest || w.entry.order < oldest->entry.order) oldest = &w;
          if (!best || key(&w) < key(best)) best = &w;
        }
        if (oldest && now - oldest->entry.arrival_us >= 300) best = oldest;
        ASSERT_EQ(line.HeadOf(tenant, now), best ? best->slot : -1);
      }
    }
  }
}

TEST(WaitingLineDeathTest, AbortsWhenASlotWaitsTwiceOrLeavesTwice) {
  WaitingLine line({{}}, kStarvationUs, 2);
  line.Push(0, {});
  EXPECT_DEATH(line.Push(0, {.order = 1}), "CHECK failed");
  line.Erase(0);
  EXPECT_DEATH(line.Erase(0), "CHECK failed");
  EXPECT_DEATH(line.Leave(0), "CHECK failed");
}

}  // namespace
}  // namespace sensorium
