#include "runtime/kv_cache/block_cache.h"

#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/kv_cache/block_table.h"
#include "tests/runtime/kv_cache/allocation_count.h"

namespace sensorium {
namespace {

using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int32_t kBlockSize = 16;
constexpr CacheClass kPrefix = CacheClass::kPrefix;
constexpr CacheClass kEncoder = CacheClass::kEncoder;

// A pool that is reserved as a whole, since who reserves isn't the matter here.
struct Pool {
  explicit Pool(int32_t num_blocks, BlockCacheOptions options = {.max_idle_prefix_blocks = 100,
                                                                 .max_idle_encoder_blocks = 100})
      : blocks(num_blocks), cache(options, blocks) {
    CHECK(blocks.Reserve(num_blocks));
  }
  void Check() const {
    blocks.CheckInvariants();
    cache.CheckInvariants();
  }

  BlockAllocator blocks;
  BlockCache cache;
};

// `document` tells chains apart; the first n hashes are those of every longer chain of it.
std::vector<ContentHash> Chain(int document, int32_t num_blocks) {
  return BlockChain(ContentHasher().Update(int64_t{document}).Finish(), num_blocks);
}

// A sequence that found nothing and filled its blocks itself.
BlockTable Fill(Pool& pool, std::span<const ContentHash> chain, CacheClass cache_class = kPrefix) {
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(static_cast<int64_t>(chain.size()) * kBlockSize);
  pool.cache.Insert(cache_class, chain, table.blocks());
  return table;
}

std::vector<BlockId> Match(Pool& pool, std::span<const ContentHash> chain,
                           CacheClass cache_class = kPrefix) {
  std::vector<BlockId> found;
  found.reserve(chain.size());
  const int32_t length = pool.cache.Match(cache_class, chain, found);
  EXPECT_EQ(length, static_cast<int32_t>(found.size()));
  return found;
}

void ReleaseFromTheBack(Pool& pool, std::vector<BlockId>& held) {
  for (; !held.empty(); held.pop_back()) pool.blocks.Release(held.back());
}

std::vector<BlockId> Ids(const BlockTable& table) {
  return {table.blocks().begin(), table.blocks().end()};
}

TEST(BlockCacheTest, ASequenceFindsTheBlocksOfOneThatHasGone) {
  Pool pool(8);
  const auto chain = Chain(1, 3);
  std::vector<BlockId> filled;
  {
    const BlockTable first = Fill(pool, chain);
    filled = Ids(first);
  }
  EXPECT_EQ(pool.blocks.used(), 0);
  EXPECT_EQ(pool.blocks.idle(kPrefix), 3);
  pool.Check();

  BlockTable second(pool.blocks, kBlockSize);
  second.Adopt(Match(pool, Chain(1, 4)));
  EXPECT_THAT(second.blocks(), ElementsAreArray(filled));
  EXPECT_EQ(pool.blocks.used(), 3);
  EXPECT_EQ(pool.blocks.idle(), 0);
  second.Grow(4 * kBlockSize);
  EXPECT_THAT(second.blocks(), SizeIs(4));
  pool.Check();
}

TEST(BlockCacheTest, TwoLiveSequencesShareOnePrefix) {
  Pool pool(8);
  const BlockTable first = Fill(pool, Chain(1, 3));
  BlockTable second(pool.blocks, kBlockSize);
  second.Adopt(Match(pool, Chain(1, 2)));
  EXPECT_EQ(pool.blocks.used(), 3);
  EXPECT_EQ(pool.blocks.refs(first.blocks()[0]), 2);
  EXPECT_EQ(pool.blocks.refs(first.blocks()[1]), 2);
  EXPECT_EQ(pool.blocks.refs(first.blocks()[2]), 1);
}

TEST(BlockCacheTest, AMatchEndsWhereTheChainsPart) {
  Pool pool(8);
  const BlockTable table = Fill(pool, Chain(1, 3));
  auto parted = Chain(1, 3);
  parted[1] = Chain(2, 2)[1];  // and the third, though known, is out of reach
  std::vector<BlockId> found = Match(pool, parted);
  EXPECT_THAT(found, SizeIs(1));
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, parted), 1);
  ReleaseFromTheBack(pool, found);
  EXPECT_THAT(Match(pool, Chain(3, 3)), IsEmpty());
  EXPECT_THAT(Match(pool, {}), IsEmpty());
}

TEST(BlockCacheTest, MatchAppendsToWhatIsThere) {
  Pool pool(8);
  const BlockTable table = Fill(pool, Chain(1, 2));
  std::vector<BlockId> out = {77};
  out.reserve(3);
  EXPECT_EQ(pool.cache.Match(kPrefix, Chain(1, 2), out), 2);
  EXPECT_THAT(out, testing::ElementsAre(77, table.blocks()[0], table.blocks()[1]));
  out.erase(out.begin());
  ReleaseFromTheBack(pool, out);
}

TEST(BlockCacheTest, MatchLengthTakesNothingAndCountsNothing) {
  Pool pool(8);
  Fill(pool, Chain(1, 3)).Clear();
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 5)), 3);
  EXPECT_EQ(pool.blocks.used(), 0);
  EXPECT_EQ(pool.cache.stats(kPrefix).hits, 0);
  EXPECT_EQ(pool.cache.stats(kPrefix).misses, 0);
}

TEST(BlockCacheTest, IdleBlocksCanAllBeAllocated) {
  Pool pool(6);
  Fill(pool, Chain(1, 3)).Clear();
  Fill(pool, Chain(2, 3), kEncoder).Clear();
  EXPECT_EQ(pool.blocks.idle(), 6);
  EXPECT_EQ(pool.blocks.free(), 0);
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(6 * kBlockSize);
  EXPECT_EQ(pool.blocks.used(), 6);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 0);
  EXPECT_EQ(pool.cache.MatchLength(kEncoder, Chain(2, 3)), 0);
  pool.Check();
}

TEST(BlockCacheTest, AllocateEvictsNothingWhileABlockIsFree) {
  Pool pool(6);
  Fill(pool, Chain(1, 3)).Clear();
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(3 * kBlockSize);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 3);
  EXPECT_EQ(pool.cache.stats(kPrefix).evictions, 0);
  table.Grow(4 * kBlockSize);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 2);
  EXPECT_EQ(pool.cache.stats(kPrefix).evictions, 1);
}

TEST(BlockCacheTest, TheDeepestLeafOfThePromptUsedLongestAgoGoesFirst) {
  Pool pool(9);
  for (const int document : {1, 2, 3}) Fill(pool, Chain(document, 3)).Clear();
  std::vector<BlockId> again = Match(pool, Chain(1, 3));  // document 2 is now the oldest
  ReleaseFromTheBack(pool, again);
  BlockTable table(pool.blocks, kBlockSize);
  std::vector<std::vector<int32_t>> left;  // of documents 2, 3 and 1 after each eviction
  for (int i = 1; i <= 9; ++i) {
    table.Grow(i * kBlockSize);
    left.push_back({pool.cache.MatchLength(kPrefix, Chain(2, 3)),
                    pool.cache.MatchLength(kPrefix, Chain(3, 3)),
                    pool.cache.MatchLength(kPrefix, Chain(1, 3))});
    pool.Check();
  }
  EXPECT_EQ(left, (std::vector<std::vector<int32_t>>{{2, 3, 3},
                                                     {1, 3, 3},
                                                     {0, 3, 3},
                                                     {0, 2, 3},
                                                     {0, 1, 3},
                                                     {0, 0, 3},
                                                     {0, 0, 2},
                                                     {0, 0, 1},
                                                     {0, 0, 0}}));
}

TEST(BlockCacheTest, APrefixThatTwoPromptsShareOutlivesTheirTails) {
  Pool pool(4);
  auto other_tail = Chain(1, 3);
  other_tail[2] = Chain(2, 3)[2];
  BlockTable first = Fill(pool, Chain(1, 3));
  BlockTable second(pool.blocks, kBlockSize);
  second.Adopt(Match(pool, std::span(other_tail).first(2)));
  second.Grow(3 * kBlockSize);
  pool.cache.Insert(kPrefix, other_tail, second.blocks());
  second.Clear();
  first.Clear();
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(2 * kBlockSize);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, other_tail), 2);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 2);
  pool.Check();
}

TEST(BlockCacheTest, EachClassKeepsToItsOwnLimitOfIdleBlocks) {
  Pool pool(20, {.max_idle_prefix_blocks = 3, .max_idle_encoder_blocks = 2});
  Fill(pool, Chain(1, 2), kEncoder).Clear();
  for (const int document : {2, 3, 4}) Fill(pool, Chain(document, 2)).Clear();
  EXPECT_EQ(pool.cache.stats(kPrefix).idle, 3);
  EXPECT_EQ(pool.cache.stats(kPrefix).evictions, 3);
  EXPECT_EQ(pool.cache.stats(kEncoder).idle, 2);
  EXPECT_EQ(pool.cache.MatchLength(kEncoder, Chain(1, 2)), 2);  // no flood of prompts takes them
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(4, 2)), 2);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(3, 2)), 1);
  pool.Check();
}

TEST(BlockCacheTest, OfAChainLongerThanTheLimitTheStartStays) {
  Pool pool(8, {.max_idle_prefix_blocks = 3});
  Fill(pool, Chain(1, 7)).Clear();
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 7)), 3);
  EXPECT_EQ(pool.blocks.free(), 5);
}

TEST(BlockCacheTest, BlocksInUseCountInNoLimit) {
  Pool pool(8, {.max_idle_prefix_blocks = 1});
  const BlockTable table = Fill(pool, Chain(1, 5));
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 5)), 5);
  pool.Check();
}

TEST(BlockCacheTest, AClassWithoutRoomIsOff) {
  Pool pool(8, {.max_idle_prefix_blocks = 0, .max_idle_encoder_blocks = 4});
  const BlockTable table = Fill(pool, Chain(1, 2));
  EXPECT_THAT(Match(pool, Chain(1, 2)), IsEmpty());
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 2)), 0);
  EXPECT_EQ(pool.cache.stats(kPrefix).misses, 0);
  Fill(pool, Chain(2, 2), kEncoder).Clear();
  EXPECT_EQ(pool.blocks.idle(), 2);
}

TEST(BlockCacheTest, TheOlderOfTwoClassesIdleBlocksIsAllocatedFirst) {
  Pool pool(4);
  Fill(pool, Chain(1, 2), kEncoder).Clear();
  Fill(pool, Chain(2, 2)).Clear();
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(2 * kBlockSize);
  EXPECT_EQ(pool.blocks.idle(kEncoder), 0);
  EXPECT_EQ(pool.blocks.idle(kPrefix), 2);
}

TEST(BlockCacheTest, AKnownHashKeepsItsFirstBlock) {
  Pool pool(8);
  const BlockTable first = Fill(pool, Chain(1, 2));
  BlockTable second = Fill(pool, Chain(1, 2));  // prefilled beside the first, found nothing
  EXPECT_FALSE(pool.blocks.cached(second.blocks()[0]));
  second.Clear();
  EXPECT_EQ(pool.blocks.idle(), 0);
  EXPECT_EQ(pool.blocks.free(), 6);
  std::vector<BlockId> found = Match(pool, Chain(1, 2));
  EXPECT_THAT(found, ElementsAreArray(Ids(first)));
  ReleaseFromTheBack(pool, found);
}

// Else the second's third block would be in use and known while its parent, the first's, has gone.
TEST(BlockCacheTest, BehindAnUncachedCopyNothingIsCached) {
  Pool pool(5);
  BlockTable first = Fill(pool, Chain(1, 2));
  const BlockTable second = Fill(pool, Chain(1, 3));
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 2);
  EXPECT_FALSE(pool.blocks.cached(second.blocks()[2]));
  first.Clear();
  pool.cache.Insert(kPrefix, Chain(1, 3), second.blocks());  // the idle ones are still the known
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 2);
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(2 * kBlockSize);  // evicts both
  pool.cache.Insert(kPrefix, Chain(1, 3), second.blocks());
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 3);
  pool.Check();
}

TEST(BlockCacheTest, InsertGoesOnWhereItEndedAsTheTableFills) {
  Pool pool(8);
  BlockTable table(pool.blocks, kBlockSize);
  const auto chain = Chain(1, 6);
  for (int32_t full = 0; full <= 6; ++full) {
    table.Grow(full * kBlockSize);
    pool.cache.Insert(kPrefix, std::span(chain).first(full), table.blocks());
    EXPECT_EQ(pool.cache.MatchLength(kPrefix, chain), full);
  }
  pool.cache.Insert(kPrefix, std::span(chain).first(4), table.blocks().first(4));  // no news
  pool.Check();
}

TEST(BlockCacheTest, ForksShareCachedBlocksUntilTheLastOfThemGoes) {
  Pool pool(8);
  BlockTable parent = Fill(pool, Chain(1, 2));
  parent.Grow(2 * kBlockSize + 5);
  std::vector<BlockCopy> copies;
  BlockTable fork = parent.Fork(2 * kBlockSize + 5, copies);
  EXPECT_THAT(copies, SizeIs(1));  // the third block alone: nobody writes into the cached ones
  EXPECT_EQ(pool.blocks.refs(parent.blocks()[0]), 2);
  EXPECT_FALSE(pool.blocks.cached(fork.blocks()[2]));
  parent.Clear();
  EXPECT_EQ(pool.blocks.idle(), 0);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 2)), 2);
  fork.Clear();
  EXPECT_EQ(pool.blocks.idle(), 2);
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 2)), 2);
  pool.Check();
}

TEST(BlockCacheTest, AForksFullBlocksCanBeInsertedByEitherTable) {
  Pool pool(8);
  BlockTable parent(pool.blocks, kBlockSize);
  parent.Grow(3 * kBlockSize);
  std::vector<BlockCopy> copies;
  const BlockTable fork = parent.Fork(3 * kBlockSize, copies);
  pool.cache.Insert(kPrefix, Chain(1, 3), fork.blocks());
  pool.cache.Insert(kPrefix, Chain(1, 3), parent.blocks());
  EXPECT_EQ(pool.cache.MatchLength(kPrefix, Chain(1, 3)), 3);
  EXPECT_EQ(pool.blocks.refs(parent.blocks()[2]), 2);
  pool.Check();
}

// A fork inside a full block writes on into a copy of its own.
TEST(BlockCacheTest, AForkInsideACachedBlockLeavesItAsItIs) {
  Pool pool(8);
  const BlockTable parent = Fill(pool, Chain(1, 2));
  std::vector<BlockCopy> copies;
  BlockTable fork = parent.Fork(kBlockSize + 1, copies);
  ASSERT_THAT(copies, SizeIs(1));
  EXPECT_NE(fork.blocks()[1], parent.blocks()[1]);
  EXPECT_FALSE(pool.blocks.cached(fork.blocks()[1]));
}

TEST(BlockCacheTest, StatsCountHitsMissesAndEvictionsByClass) {
  Pool pool(4);
  Fill(pool, Chain(1, 2)).Clear();
  std::vector<BlockId> found = Match(pool, Chain(1, 3));
  ReleaseFromTheBack(pool, found);
  EXPECT_THAT(Match(pool, Chain(9, 4), kEncoder), IsEmpty());
  BlockTable table(pool.blocks, kBlockSize);
  table.Grow(3 * kBlockSize);
  const BlockCacheStats prefix = pool.cache.stats(kPrefix);
  EXPECT_EQ(prefix.hits, 2);
  EXPECT_EQ(prefix.misses, 1);
  EXPECT_EQ(prefix.evictions, 1);
  EXPECT_EQ(prefix.idle, 1);
  const BlockCacheStats encoder = pool.cache.stats(kEncoder);
  EXPECT_EQ(encoder.hits, 0);
  EXPECT_EQ(encoder.misses, 4);
}

TEST(BlockCacheTest, ACacheThatEndsLeavesTheBlocksToTheirTables) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(4));
  std::optional<BlockCache> cache(std::in_place, BlockCacheOptions{.max_idle_prefix_blocks = 4},
                                  blocks);
  BlockTable gone(blocks, kBlockSize), alive(blocks, kBlockSize);
  gone.Grow(kBlockSize);
  alive.Grow(kBlockSize);
  cache->Insert(kPrefix, Chain(1, 1), gone.blocks());
  cache->Insert(kPrefix, Chain(2, 1), alive.blocks());
  gone.Clear();
  cache.reset();
  EXPECT_EQ(blocks.idle(), 0);
  EXPECT_EQ(blocks.used(), 1);
  alive.Clear();
  EXPECT_EQ(blocks.free(), 4);
  blocks.CheckInvariants();
  const BlockCache another({}, blocks);
}

TEST(BlockCacheTest, AllocatesNoMemoryAfterConstruction) {
  constexpr int32_t kBlocks = 64;
  Pool pool(kBlocks, {.max_idle_prefix_blocks = 20, .max_idle_encoder_blocks = 20});
  std::vector<std::vector<ContentHash>> chains;
  for (int document = 0; document < 4; ++document) chains.push_back(Chain(document, 16));
  BlockTable table(pool.blocks, kBlockSize, kBlocks);
  std::vector<BlockId> found;
  found.reserve(kBlocks);
  int64_t hits = 0;
  const AllocationCount count;
  for (int round = 0; round < 200; ++round) {
    const size_t document = round % 4;
    const CacheClass cache_class = document % 2 == 0 ? kPrefix : kEncoder;
    found.clear();
    hits += pool.cache.Match(cache_class, chains[document], found);
    table.Adopt(found);
    table.Grow((8 + round % 9) * kBlockSize);
    pool.cache.Insert(cache_class, std::span(chains[document]).first(table.blocks().size()),
                      table.blocks());
    table.Clear();
  }
  EXPECT_EQ(count.since_construction(), 0);
  EXPECT_GT(hits, 0);
  EXPECT_GT(pool.cache.stats(kPrefix).evictions, 0);
  pool.Check();
}

TEST(BlockCacheDeathTest, AbortsWhenItsCallersBreakTheirPromise) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(2));
  BlockCache cache({.max_idle_prefix_blocks = 4, .max_idle_encoder_blocks = 4}, blocks);
  const auto chain = Chain(1, 2);
  BlockTable table(blocks, kBlockSize);
  table.Grow(2 * kBlockSize);
  cache.Insert(kPrefix, chain, table.blocks());
  std::vector<BlockId> out;
  EXPECT_DEATH((void)cache.Match(kPrefix, chain, out), "CHECK failed");  // no capacity
  out.reserve(2);
  EXPECT_DEATH((void)cache.Match(kEncoder, chain, out), "of another class");
  EXPECT_DEATH(cache.Insert(kPrefix, chain, table.blocks().first(1)), "CHECK failed");
  EXPECT_DEATH(cache.Insert(kPrefix, Chain(2, 2), table.blocks()), "another chain");
  EXPECT_DEATH(BlockCache({}, blocks), "one cache at a time");
  table.Clear();
  blocks.Unreserve(1);
  EXPECT_DEATH((void)cache.Match(kPrefix, chain, out), "a match outgrew its reservation");
}

}  // namespace
}  // namespace sensorium
