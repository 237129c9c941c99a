#include "runtime/kv_cache/block_table.h"

#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/kv_cache/allocation_count.h"

namespace sensorium {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(BlockTableTest, TakesNoMoreBlocksThanItsTokensNeed) {
  for (const int32_t block_size : {16, 32, 48, 64}) {
    BlockAllocator blocks(20);
    ASSERT_TRUE(blocks.Reserve(20));
    BlockTable table(blocks, block_size);
    for (int64_t tokens = 0; tokens <= 5 * block_size; ++tokens) {
      table.Grow(tokens);
      const int32_t expected = BlockTable::BlocksFor(tokens, block_size);
      EXPECT_EQ(expected, (tokens + block_size - 1) / block_size);
      ASSERT_THAT(table.blocks(), SizeIs(expected));
      ASSERT_EQ(blocks.used(), expected);
    }
    table.Grow(1);  // never shrinks
    EXPECT_THAT(table.blocks(), SizeIs(5));
  }
}

TEST(BlockTableTest, GivesEveryTokenASlotOfItsOwn) {
  BlockAllocator blocks(8);
  ASSERT_TRUE(blocks.Reserve(8));
  BlockTable a(blocks, 16), b(blocks, 16);
  std::set<int64_t> slots;
  for (int64_t tokens = 1; tokens <= 64; ++tokens) {  // interleaved, as two sequences decode
    for (BlockTable* table : {&a, &b}) {
      table->Grow(tokens);
      const int64_t slot = table->Slot(tokens - 1);
      EXPECT_TRUE(slot >= 0 && slot < 8 * 16) << slot;
      EXPECT_TRUE(slots.insert(slot).second) << slot;
      EXPECT_EQ(slot % 16, (tokens - 1) % 16);
    }
  }
}

TEST(BlockTableTest, GivesItsBlocksBackWhenClearedMovedOverOrDestroyed) {
  BlockAllocator blocks(10);
  ASSERT_TRUE(blocks.Reserve(10));
  {
    BlockTable a(blocks, 16), b(blocks, 16);
    a.Grow(50);
    b.Grow(20);
    EXPECT_EQ(blocks.used(), 6);
    const std::vector<BlockId> of_a(a.blocks().begin(), a.blocks().end());
    b = std::move(a);
    EXPECT_EQ(blocks.used(), 4);
    EXPECT_THAT(b.blocks(), testing::ElementsAreArray(of_a));
    EXPECT_THAT(a.blocks(), IsEmpty());
    BlockTable c(std::move(b));
    EXPECT_EQ(blocks.used(), 4);
    c.Clear();
    EXPECT_EQ(blocks.used(), 0);
    c.Grow(1);
    a.Grow(16);  // a moved-from table can start again
    EXPECT_EQ(blocks.used(), 2);
  }
  EXPECT_EQ(blocks.used(), 0);
  blocks.CheckInvariants();
}

TEST(BlockTableTest, AForkSharesFullBlocksAndCopiesOnlyTheLast) {
  BlockAllocator blocks(10);
  ASSERT_TRUE(blocks.Reserve(10));
  BlockTable parent(blocks, 16);
  parent.Grow(40);
  std::vector<BlockCopy> copies;

  const BlockTable at_boundary = parent.Fork(32, copies);
  EXPECT_THAT(copies, IsEmpty());
  EXPECT_EQ(blocks.used(), 3);

  const BlockTable inside = parent.Fork(40, copies);
  ASSERT_THAT(copies, SizeIs(1));
  EXPECT_EQ(copies[0].from, parent.blocks()[2]);
  EXPECT_EQ(copies[0].to, inside.blocks()[2]);
  EXPECT_EQ(blocks.used(), 4);
  EXPECT_EQ(blocks.refs(parent.blocks()[0]), 3);
  EXPECT_EQ(blocks.refs(parent.blocks()[2]), 1);

  const BlockTable empty = parent.Fork(0, copies);
  EXPECT_THAT(empty.blocks(), IsEmpty());
  EXPECT_THAT(copies, SizeIs(1));
}

TEST(BlockTableTest, GivesItsBlocksBackFromTheLastToTheFirst) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(4));
  BlockTable table(blocks, 16);
  table.Grow(48);
  const std::vector<BlockId> ids(table.blocks().begin(), table.blocks().end());
  table.Clear();
  for (const BlockId id : ids) EXPECT_EQ(blocks.Allocate(), id);  // the one freed last comes first
}

TEST(BlockTableTest, TakesAdoptedReferencesOverAndGrowsBehindThem) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(4));
  BlockTable first(blocks, 16), second(blocks, 16);
  first.Grow(32);
  for (const BlockId id : first.blocks()) blocks.AddRef(id);
  second.Adopt(first.blocks());
  EXPECT_EQ(blocks.refs(first.blocks()[0]), 2);
  EXPECT_EQ(second.Slot(17), first.Slot(17));
  second.Grow(33);
  EXPECT_EQ(blocks.used(), 3);
  second.Clear();
  EXPECT_EQ(blocks.refs(first.blocks()[0]), 1);
  EXPECT_EQ(blocks.used(), 2);
}

TEST(BlockTableTest, GrowingWithinItsReservedBlocksAllocatesNoMemory) {
  BlockAllocator blocks(40);
  ASSERT_TRUE(blocks.Reserve(40));
  BlockTable table(blocks, 1, /*reserve_blocks=*/20);
  BlockTable other(blocks, 1, /*reserve_blocks=*/20);
  std::vector<BlockCopy> copies;
  table.Grow(2);
  BlockTable fork = table.Fork(2, copies);  // takes its memory here
  const AllocationCount count;
  for (int64_t tokens = 0; tokens <= 20; ++tokens) table.Grow(tokens);
  fork.Grow(20);
  fork.Clear();
  other = std::move(table);  // the memory of both is kept
  table.Grow(20);
  other.Clear();
  other.Grow(20);
  EXPECT_EQ(count.since_construction(), 0);
}

TEST(BlockTableDeathTest, AbortsWhenATableWithBlocksAdopts) {
  BlockAllocator blocks(2);
  ASSERT_TRUE(blocks.Reserve(2));
  BlockTable table(blocks, 16);
  table.Grow(1);
  const std::vector<BlockId> other = {1};
  EXPECT_DEATH(table.Adopt(other), "1 blocks are there");
}

TEST(BlockTableDeathTest, AbortsOnAForkOfTokensThatAreNotThere) {
  BlockAllocator blocks(4);
  ASSERT_TRUE(blocks.Reserve(4));
  BlockTable table(blocks, 16);
  table.Grow(16);
  std::vector<BlockCopy> copies;
  EXPECT_DEATH((void)table.Fork(17, copies), "CHECK failed");
}

// A sequence as its owner sees it: what it wrote, beside where the table says that it is.
struct Sequence {
  BlockTable table;
  std::vector<int64_t> history;
};

// The device's memory with one integer for a token's KV.
class Arena {
 public:
  Arena(int32_t num_blocks, int32_t block_size)
      : block_size_(block_size), slots_(int64_t{num_blocks} * block_size, -1) {}

  void Append(Sequence& sequence) {
    const auto position = static_cast<int64_t>(sequence.history.size());
    sequence.table.Grow(position + 1);
    sequence.history.push_back(next_value_);
    slots_.at(sequence.table.Slot(position)) = next_value_++;
  }
  // In order: a later copy may overwrite what an earlier one read.
  void Run(std::vector<BlockCopy>& copies) {
    for (const BlockCopy& copy : copies) {
      for (int32_t i = 0; i < block_size_; ++i) {
        slots_.at(int64_t{copy.to} * block_size_ + i) =
            slots_.at(int64_t{copy.from} * block_size_ + i);
      }
    }
    copies.clear();
  }
  std::vector<int64_t> Read(const Sequence& sequence) const {
    std::vector<int64_t> values;
    for (size_t i = 0; i < sequence.history.size(); ++i) {
      values.push_back(slots_.at(sequence.table.Slot(static_cast<int64_t>(i))));
    }
    return values;
  }

 private:
  int32_t block_size_;
  std::vector<int64_t> slots_;  // [num_blocks * block_size]
  int64_t next_value_ = 0;
};

Sequence Fork(const Sequence& parent, int64_t tokens, std::vector<BlockCopy>& copies) {
  return {parent.table.Fork(tokens, copies),
          {parent.history.begin(), parent.history.begin() + tokens}};
}

TEST(BlockTableTest, EveryForkReadsItsOwnHistoryAfterDivergentWrites) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t block_size : {16, 32, 64}) {
    constexpr int32_t kBlocks = 60;
    BlockAllocator blocks(kBlocks);
    ASSERT_TRUE(blocks.Reserve(kBlocks));
    Arena arena(kBlocks, block_size);
    std::vector<Sequence> sequences;
    std::vector<BlockCopy> copies;
    for (int step = 0; step < 1500; ++step) {
      const size_t which = sequences.empty() ? 0 : random() % sequences.size();
      const uint64_t action = random() % 8;
      if (sequences.empty() || (action == 0 && blocks.used() < kBlocks)) {
        sequences.push_back({BlockTable(blocks, block_size), {}});
      } else if (action == 1 || blocks.used() + 4 > kBlocks) {
        sequences.erase(sequences.begin() + static_cast<int64_t>(which));
      } else if (action == 2) {
        const Sequence& parent = sequences[which];
        const auto tokens = static_cast<int64_t>(random() % (parent.history.size() + 1));
        sequences.push_back(Fork(parent, tokens, copies));
        arena.Run(copies);
      } else {
        const uint64_t tokens = random() % block_size;
        for (uint64_t i = 0; i < tokens; ++i) arena.Append(sequences[which]);
      }
      blocks.CheckInvariants();
      for (const Sequence& s : sequences) ASSERT_EQ(arena.Read(s), s.history) << "step " << step;
    }
    sequences.clear();
    EXPECT_EQ(blocks.used(), 0);
  }
}

// Beam search replaces its beams by children of some of them. Forking all children before the old
// beams go needs one more block a beam; the copies of one reordering run together, in order.
TEST(BlockTableTest, BeamsThatAreAllForkedReadTheirParentsHistory) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t block_size : {16, 32, 64}) {
    constexpr int32_t kBeams = 5, kTokens = 200;
    const int32_t worst = kBeams * BlockTable::BlocksFor(kTokens, block_size) + kBeams;
    BlockAllocator blocks(worst);
    ASSERT_TRUE(blocks.Reserve(worst));
    Arena arena(worst, block_size);
    std::vector<Sequence> beams;
    for (int i = 0; i < kBeams; ++i) beams.push_back({BlockTable(blocks, block_size), {}});
    std::vector<BlockCopy> copies;
    for (int step = 0; step < kTokens; ++step) {
      for (Sequence& beam : beams) arena.Append(beam);
      std::vector<Sequence> children;
      for (int i = 0; i < kBeams; ++i) {
        const Sequence& parent = beams[random() % kBeams];
        children.push_back(Fork(parent, static_cast<int64_t>(parent.history.size()), copies));
      }
      beams = std::move(children);
      arena.Run(copies);
      blocks.CheckInvariants();
      for (const Sequence& beam : beams) ASSERT_EQ(arena.Read(beam), beam.history) << step;
    }
  }
}

// With the dead beams dropped first and each living one's first child taking its table over, the
// beams never need more than a table each.
TEST(BlockTableTest, BeamsThatTakeTablesOverNeedNoSpareBlock) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr int32_t kBeams = 5, kTokens = 200, kBlockSize = 16;
  const int32_t worst = kBeams * BlockTable::BlocksFor(kTokens, kBlockSize);
  BlockAllocator blocks(worst);
  ASSERT_TRUE(blocks.Reserve(worst));
  Arena arena(worst, kBlockSize);
  std::vector<Sequence> beams;
  for (int i = 0; i < kBeams; ++i) beams.push_back({BlockTable(blocks, kBlockSize), {}});
  std::vector<BlockCopy> copies;
  for (int step = 0; step < kTokens; ++step) {
    for (Sequence& beam : beams) arena.Append(beam);
    std::map<size_t, int> num_children;  // by parent
    for (int i = 0; i < kBeams; ++i) ++num_children[random() % kBeams];
    for (size_t i = 0; i < beams.size(); ++i) {
      if (!num_children.contains(i)) beams[i].table.Clear();
    }
    std::vector<Sequence> next;
    for (const auto& [parent, count] : num_children) {
      const auto tokens = static_cast<int64_t>(beams[parent].history.size());
      for (int i = 1; i < count; ++i) next.push_back(Fork(beams[parent], tokens, copies));
      next.push_back(std::move(beams[parent]));
    }
    beams = std::move(next);
    arena.Run(copies);
    for (const Sequence& beam : beams) ASSERT_EQ(arena.Read(beam), beam.history) << step;
  }
}

}  // namespace
}  // namespace sensorium
