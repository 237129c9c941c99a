#include "runtime/kv_cache/encoder_cache.h"

#include <algorithm>
#include <list>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/kv_cache/allocation_count.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;

ContentHash Image(int64_t number) { return ContentHasher().Update(number).Finish(); }

// Encodes the image at once, for tests that care about what comes after.
int32_t Encode(EncoderCache& cache, int64_t image, EncoderCache::HolderId holder) {
  const std::optional<EncoderCache::Lease> lease = cache.Acquire(Image(image), holder);
  EXPECT_TRUE(lease && lease->writer);
  cache.MarkReady(lease->slot);
  return lease->slot;
}

TEST(EncoderCacheTest, TheFirstToAskWritesAndTheSecondWaitsForTheSameSlot) {
  EncoderCache cache(2, 4);
  const auto first = cache.Acquire(Image(1), 10);
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->ready);
  EXPECT_TRUE(first->writer);
  const auto second = cache.Acquire(Image(1), 11);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->slot, first->slot);
  EXPECT_FALSE(second->ready);
  EXPECT_FALSE(second->writer);
  EXPECT_EQ(cache.pinned(), 1);
  EXPECT_EQ(cache.writer(first->slot), 10);
  cache.CheckInvariants();

  cache.MarkReady(first->slot);
  EXPECT_TRUE(cache.ready(second->slot));
  EXPECT_EQ(cache.writer(first->slot), std::nullopt);
  const auto third = cache.Acquire(Image(1), 12);
  ASSERT_TRUE(third);
  EXPECT_TRUE(third->ready);
  EXPECT_FALSE(third->writer);
  EXPECT_THAT(cache.holders(first->slot), ElementsAre(10, 11, 12));
}

TEST(EncoderCacheTest, AnImageAskedAboutAgainIsFoundWhenNobodyHoldsIt) {
  EncoderCache cache(2, 4);
  const int32_t slot = Encode(cache, 1, 10);
  cache.Release(slot, 10);
  EXPECT_EQ(cache.idle(), 1);
  EXPECT_EQ(cache.pinned(), 0);
  const auto again = cache.Acquire(Image(1), 11);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->slot, slot);
  EXPECT_TRUE(again->ready);
  EXPECT_EQ(cache.idle(), 0);
  cache.CheckInvariants();
}

TEST(EncoderCacheTest, AWriterThatEndsHandsTheWritingToWhoHasWaitedLongest) {
  EncoderCache cache(1, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  ASSERT_TRUE(cache.Acquire(Image(1), 12));
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  cache.Release(slot, 10);
  EXPECT_EQ(cache.writer(slot), 12);
  EXPECT_FALSE(cache.ready(slot));
  cache.CheckInvariants();
  cache.Release(slot, 12);
  EXPECT_EQ(cache.writer(slot), 11);
  cache.MarkReady(slot);
  cache.Release(slot, 11);
  EXPECT_EQ(cache.idle(), 1);
}

TEST(EncoderCacheTest, AWaiterThatEndsLeavesTheWriterAlone) {
  EncoderCache cache(1, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  cache.Release(slot, 11);
  EXPECT_EQ(cache.writer(slot), 10);
  EXPECT_THAT(cache.holders(slot), ElementsAre(10));
}

TEST(EncoderCacheTest, ContentThatNobodyFinishedIsNotKept) {
  EncoderCache cache(1, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  cache.Release(slot, 10);
  EXPECT_EQ(cache.free(), 1);
  EXPECT_EQ(cache.idle(), 0);
  EXPECT_EQ(cache.writer(slot), std::nullopt);
  const auto again = cache.Acquire(Image(1), 11);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->ready);
  EXPECT_TRUE(again->writer);
  cache.CheckInvariants();
}

TEST(EncoderCacheTest, TakesFreeSlotsFirstThenTheIdleOneUsedLongestAgo) {
  EncoderCache cache(3, 4);
  const int32_t a = Encode(cache, 1, 10), b = Encode(cache, 2, 10);
  cache.Release(a, 10);
  cache.Release(b, 10);
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  cache.Release(a, 11);  // image 1 was used last
  const auto third = cache.Acquire(Image(3), 10);
  ASSERT_TRUE(third);
  EXPECT_TRUE(third->slot != a && third->slot != b);
  EXPECT_EQ(cache.stats().evictions, 0);
  const auto fourth = cache.Acquire(Image(4), 10);
  ASSERT_TRUE(fourth);
  EXPECT_EQ(fourth->slot, b);
  EXPECT_FALSE(fourth->ready);
  EXPECT_EQ(cache.stats().evictions, 1);
  EXPECT_TRUE(cache.Acquire(Image(1), 12)->ready);
  cache.CheckInvariants();
}

TEST(EncoderCacheTest, RefusesNewContentWhileEverySlotIsPinned) {
  EncoderCache cache(2, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  ASSERT_TRUE(cache.Acquire(Image(2), 10));
  EXPECT_FALSE(cache.Acquire(Image(3), 11));
  EXPECT_TRUE(cache.Acquire(Image(1), 11));  // what is there can still be shared
  EXPECT_EQ(cache.stats().misses, 2);
  cache.CheckInvariants();
  cache.Release(slot, 10);
  EXPECT_FALSE(cache.Acquire(Image(3), 11));
  cache.Release(slot, 11);
  EXPECT_TRUE(cache.Acquire(Image(3), 11));
  EXPECT_FALSE(EncoderCache(0, 1).Acquire(Image(1), 1));
}

TEST(EncoderCacheTest, RefusesMoreHoldersThanASlotHasRoomFor) {
  EncoderCache cache(2, 2);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  EXPECT_FALSE(cache.Acquire(Image(1), 12));
  EXPECT_THAT(cache.holders(slot), ElementsAre(10, 11));
  EXPECT_EQ(cache.stats().hits, 1);
  cache.Release(slot, 10);
  EXPECT_TRUE(cache.Acquire(Image(1), 12));
}

TEST(EncoderCacheTest, ARequestWithOneImageTwiceHoldsItsSlotTwice) {
  EncoderCache cache(2, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  const auto twice = cache.Acquire(Image(1), 10);
  ASSERT_TRUE(twice);
  EXPECT_EQ(twice->slot, slot);
  EXPECT_TRUE(twice->writer);  // it is, whichever of its images is asked about
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  cache.Release(slot, 10);
  EXPECT_EQ(cache.writer(slot), 10);
  cache.Release(slot, 10);
  EXPECT_EQ(cache.writer(slot), 11);
  cache.CheckInvariants();
}

TEST(EncoderCacheTest, StatsCountWhoMustEncodeAndWhoNeedNot) {
  EncoderCache cache(1, 4);
  const int32_t slot = cache.Acquire(Image(1), 10)->slot;
  ASSERT_TRUE(cache.Acquire(Image(1), 11));
  cache.MarkReady(slot);
  ASSERT_TRUE(cache.Acquire(Image(1), 12));
  EXPECT_EQ(cache.stats().misses, 1);
  EXPECT_EQ(cache.stats().hits, 2);
  EXPECT_EQ(cache.stats().evictions, 0);
}

TEST(EncoderCacheTest, AllocatesNoMemoryAfterConstruction) {
  EncoderCache cache(4, 3);
  std::vector<ContentHash> images;
  for (int i = 0; i < 9; ++i) images.push_back(Image(i));
  const AllocationCount count;
  for (int round = 0; round < 300; ++round) {
    const auto first = cache.Acquire(images[round % 9], round);
    const auto second = cache.Acquire(images[round % 9], round + 1);
    if (round % 3 > 0 && cache.writer(first->slot)) cache.MarkReady(first->slot);
    cache.Release(first->slot, round);
    cache.Release(second->slot, round + 1);
  }
  EXPECT_EQ(count.since_construction(), 0);
  EXPECT_GT(cache.stats().evictions, 0);
}

TEST(EncoderCacheDeathTest, AbortsWhenItsCallersBreakTheirPromise) {
  EncoderCache cache(1, 1);
  EXPECT_DEATH(cache.MarkReady(0), "nobody writes slot 0");
  EXPECT_DEATH(cache.Release(0, 10), "10 doesn't hold slot 0");
  Encode(cache, 1, 10);
  EXPECT_DEATH(cache.MarkReady(0), "nobody writes slot 0");
  EXPECT_DEATH(cache.Release(0, 11), "11 doesn't hold slot 0");
  EXPECT_DEATH(EncoderCache(1, 0), "CHECK failed");
  EXPECT_DEATH(EncoderCache(-1, 1), "CHECK failed");
}

// Any order of calls that keeps the contracts, against a model that says it in the plainest words.
TEST(EncoderCacheTest, DoesAsAPlainModelDoesOverThousandsOfRandomSteps) {
  struct Entry {
    std::vector<int64_t> holders;
    bool ready = false;
    int64_t writer = -1;  // while not ready
    int32_t slot = -1;
  };
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr int kImages = 6, kHolders = 5;
  std::vector<ContentHash> images;
  for (int i = 0; i < kImages; ++i) images.push_back(Image(i));
  for (const int32_t num_slots : {0, 1, 2, 4, 8}) {
    const auto max_holders = static_cast<int32_t>(1 + random() % 4);
    EncoderCache cache(num_slots, max_holders);
    std::map<int, Entry> model;  // by image: what is pinned or idle
    std::list<int> idle;         // images, least recently used first
    for (int step = 0; step < 4000; ++step) {
      const auto image = static_cast<int>(random() % kImages);
      const auto holder = static_cast<int64_t>(random() % kHolders);
      const auto found = model.find(image);
      switch (random() % 4) {
        case 0:
        case 1: {
          const auto lease = cache.Acquire(images[image], holder);
          if (found == model.end()) {
            const bool fits = static_cast<int32_t>(model.size()) < num_slots || !idle.empty();
            ASSERT_EQ(lease.has_value(), fits);
            if (!fits) break;
            if (static_cast<int32_t>(model.size()) == num_slots) {
              ASSERT_EQ(lease->slot, model[idle.front()].slot);
              model.erase(idle.front());
              idle.pop_front();
            }
            for (const auto& [other, entry] : model) ASSERT_NE(entry.slot, lease->slot) << other;
            model[image] = {.holders = {holder}, .writer = holder, .slot = lease->slot};
            ASSERT_TRUE(lease->writer && !lease->ready);
            break;
          }
          Entry& entry = found->second;
          const bool fits = static_cast<int32_t>(entry.holders.size()) < max_holders;
          ASSERT_EQ(lease.has_value(), fits);
          if (!fits) break;
          if (entry.holders.empty()) idle.remove(image);
          entry.holders.push_back(holder);
          ASSERT_EQ(lease->slot, entry.slot);
          ASSERT_EQ(lease->ready, entry.ready);
          ASSERT_EQ(lease->writer, !entry.ready && entry.writer == holder);
          break;
        }
        case 2:
          if (found != model.end() && !found->second.ready) {
            cache.MarkReady(found->second.slot);
            found->second.ready = true;
          }
          break;
        case 3: {
          if (found == model.end()) break;
          Entry& entry = found->second;
          const auto held = std::find(entry.holders.begin(), entry.holders.end(), holder);
          if (held == entry.holders.end()) break;
          cache.Release(entry.slot, holder);
          entry.holders.erase(held);
          if (entry.holders.empty() && entry.ready) {
            idle.push_back(image);
          } else if (entry.holders.empty()) {
            model.erase(found);
          } else if (std::count(entry.holders.begin(), entry.holders.end(), entry.writer) == 0) {
            entry.writer = entry.holders.front();
          }
          break;
        }
      }
      cache.CheckInvariants();
      ASSERT_EQ(cache.idle(), static_cast<int32_t>(idle.size()));
      ASSERT_EQ(cache.free(), num_slots - static_cast<int32_t>(model.size()));
      for (const auto& [other, entry] : model) {
        ASSERT_THAT(cache.holders(entry.slot), testing::ElementsAreArray(entry.holders)) << other;
        ASSERT_EQ(cache.ready(entry.slot), entry.ready);
        if (!entry.ready) {
          ASSERT_EQ(cache.writer(entry.slot), entry.writer);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sensorium
