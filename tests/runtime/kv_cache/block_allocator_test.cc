#include "runtime/kv_cache/block_allocator.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(BlockAllocatorTest, HandsOutEachBlockOnceUntilTheReservationIsSpent) {
  BlockAllocator blocks(8);
  ASSERT_TRUE(blocks.Reserve(8));
  std::set<BlockId> ids;
  for (int i = 0; i < 8; ++i) {
    const BlockId id = blocks.Allocate();
    EXPECT_TRUE(id >= 0 && id < 8) << id;
    ids.insert(id);
    blocks.CheckInvariants();
  }
  EXPECT_EQ(ids.size(), 8u);
  EXPECT_EQ(blocks.used(), 8);
}

TEST(BlockAllocatorTest, ARefusedReservationChangesNothing) {
  BlockAllocator blocks(8);
  ASSERT_TRUE(blocks.Reserve(5));
  EXPECT_FALSE(blocks.Reserve(4));
  EXPECT_EQ(blocks.reserved(), 5);
  EXPECT_TRUE(blocks.Reserve(3));
  EXPECT_FALSE(blocks.Reserve(1));
  EXPECT_TRUE(blocks.Reserve(0));
  blocks.Unreserve(8);
  EXPECT_EQ(blocks.reserved(), 0);
  EXPECT_TRUE(blocks.Reserve(8));
}

TEST(BlockAllocatorTest, ReservingTakesNoBlockYet) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(4));
  EXPECT_EQ(blocks.used(), 0);
  EXPECT_EQ(blocks.total(), 4);
}

TEST(BlockAllocatorTest, KeepsASharedBlockUntilItsLastHolderReleasesIt) {
  BlockAllocator blocks(2);
  ASSERT_TRUE(blocks.Reserve(2));
  const BlockId shared = blocks.Allocate();
  blocks.AddRef(shared);
  EXPECT_EQ(blocks.refs(shared), 2);
  blocks.Release(shared);
  EXPECT_EQ(blocks.used(), 1);
  EXPECT_NE(blocks.Allocate(), shared);
  blocks.Release(shared);
  EXPECT_EQ(blocks.refs(shared), 0);
  EXPECT_EQ(blocks.used(), 1);
  blocks.CheckInvariants();
}

TEST(BlockAllocatorTest, ReusesTheBlockFreedLast) {
  BlockAllocator blocks(8);
  ASSERT_TRUE(blocks.Reserve(8));
  const BlockId a = blocks.Allocate();
  const BlockId b = blocks.Allocate();
  blocks.Release(a);
  blocks.Release(b);
  EXPECT_EQ(blocks.Allocate(), b);
  EXPECT_EQ(blocks.Allocate(), a);
}

TEST(BlockAllocatorDeathTest, AbortsWhenItsOwnersBreakTheirPromise) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(1));
  const BlockId id = blocks.Allocate();
  EXPECT_DEATH(blocks.Allocate(), "outgrew its reservation");
  EXPECT_DEATH(blocks.Unreserve(1), "CHECK failed");  // while its block is in use
  EXPECT_DEATH(blocks.Unreserve(2), "2 of 1");
  EXPECT_DEATH((void)blocks.Reserve(-1), "CHECK failed");
  blocks.Release(id);
  EXPECT_DEATH(blocks.Release(id), "CHECK failed");
  EXPECT_DEATH(blocks.AddRef(id), "CHECK failed");
  EXPECT_DEATH(BlockAllocator(-1), "CHECK failed");
}

struct Evictions : EvictionListener {
  void OnEvict(BlockId id, CacheClass) override { ids.push_back(id); }
  std::vector<BlockId> ids;
};

TEST(BlockAllocatorTest, ACachedBlockIsIdleWhenItsLastHolderHasGone) {
  BlockAllocator blocks(2);
  Evictions evictions;
  blocks.AttachCache(&evictions, {2, 2});
  ASSERT_TRUE(blocks.Reserve(2));
  const BlockId id = blocks.Allocate();
  blocks.AddRef(id);
  blocks.MarkCached(id, CacheClass::kPrefix);
  blocks.Release(id);
  EXPECT_EQ(blocks.used(), 1);
  blocks.Release(id);
  EXPECT_EQ(blocks.used(), 0);
  EXPECT_EQ(blocks.idle(CacheClass::kPrefix), 1);
  EXPECT_EQ(blocks.idle(CacheClass::kEncoder), 0);
  EXPECT_EQ(blocks.free(), 1);
  blocks.Unreserve(2);  // idle blocks are nobody's reservation
  blocks.CheckInvariants();

  ASSERT_TRUE(blocks.Reserve(1));
  blocks.Revive(id);
  EXPECT_EQ(blocks.refs(id), 1);
  EXPECT_EQ(blocks.used(), 1);
  EXPECT_TRUE(blocks.cached(id));
  EXPECT_THAT(evictions.ids, testing::IsEmpty());
}

TEST(BlockAllocatorTest, TakesFreeBlocksFirstThenIdleOnesByLastUse) {
  BlockAllocator blocks(4);
  Evictions evictions;
  blocks.AttachCache(&evictions, {4, 4});
  ASSERT_TRUE(blocks.Reserve(4));
  const BlockId a = blocks.Allocate(), b = blocks.Allocate(), c = blocks.Allocate();
  blocks.MarkCached(a, CacheClass::kPrefix);
  blocks.MarkCached(b, CacheClass::kEncoder);
  blocks.MarkCached(c, CacheClass::kPrefix);
  for (const BlockId id : {a, b, c}) blocks.Release(id);
  blocks.Revive(a);
  blocks.Release(a);  // a was used last
  EXPECT_THAT((std::vector{a, b, c}), testing::Not(testing::Contains(blocks.Allocate())));
  EXPECT_EQ(blocks.Allocate(), b);
  EXPECT_FALSE(blocks.cached(b));
  EXPECT_EQ(blocks.Allocate(), c);
  EXPECT_EQ(blocks.Allocate(), a);
  EXPECT_THAT(evictions.ids, testing::ElementsAre(b, c, a));
  blocks.CheckInvariants();
}

TEST(BlockAllocatorDeathTest, AbortsWhenTheCacheBreaksItsPromise) {
  BlockAllocator blocks(2);
  Evictions evictions;
  ASSERT_TRUE(blocks.Reserve(1));
  const BlockId id = blocks.Allocate();
  EXPECT_DEATH(blocks.MarkCached(id, CacheClass::kPrefix), "CHECK failed");  // none is attached
  blocks.AttachCache(&evictions, {1, 0});
  EXPECT_DEATH(blocks.MarkCached(id, CacheClass::kEncoder), "CHECK failed");  // switched off
  blocks.MarkCached(id, CacheClass::kPrefix);
  EXPECT_DEATH(blocks.MarkCached(id, CacheClass::kPrefix), "CHECK failed");
  EXPECT_DEATH(blocks.Revive(id), "outgrew its reservation");
  blocks.Release(id);
  EXPECT_DEATH(blocks.AddRef(id), "CHECK failed");  // idle ones are revived
  EXPECT_DEATH(blocks.Revive(1 - id), "CHECK failed");
  blocks.Unreserve(1);
  EXPECT_DEATH(blocks.Revive(id), "outgrew its reservation");
}

// Any order of calls that keeps the contracts, against a list of who holds what.
TEST(BlockAllocatorTest, CountsRightOverThousandsOfRandomSteps) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t total : {0, 1, 2, 7, 64}) {
    BlockAllocator blocks(total);
    std::vector<BlockId> held;  // one entry for every reference
    int32_t reserved = 0;
    for (int step = 0; step < 3000; ++step) {
      const std::set<BlockId> distinct(held.begin(), held.end());
      const auto used = static_cast<int32_t>(distinct.size());
      switch (random() % 6) {
        case 0: {
          const auto count = static_cast<int32_t>(random() % (total + 2));
          const bool fits = reserved + count <= total;
          ASSERT_EQ(blocks.Reserve(count), fits);
          if (fits) reserved += count;
          break;
        }
        case 1: {
          const auto count = static_cast<int32_t>(random() % (reserved - used + 1));
          blocks.Unreserve(count);
          reserved -= count;
          break;
        }
        case 2:
        case 3:
          if (used < reserved) {
            const BlockId id = blocks.Allocate();
            ASSERT_FALSE(distinct.contains(id)) << id;
            held.push_back(id);
          }
          break;
        case 4:
          if (!held.empty()) {
            held.push_back(held[random() % held.size()]);
            blocks.AddRef(held.back());
          }
          break;
        case 5:
          if (!held.empty()) {
            std::swap(held[random() % held.size()], held.back());
            blocks.Release(held.back());
            held.pop_back();
          }
          break;
      }
      blocks.CheckInvariants();
      ASSERT_EQ(blocks.reserved(), reserved);
      ASSERT_EQ(blocks.used(), static_cast<int32_t>(std::set(held.begin(), held.end()).size()));
      for (BlockId id = 0; id < total; ++id) {
        ASSERT_EQ(blocks.refs(id), std::count(held.begin(), held.end(), id));
      }
    }
  }
}

}  // namespace
}  // namespace sensorium
