// The KV blocks of one sequence, in order. Owns one reference to each. Engine thread only.
//
// Blocks that a BlockCache knows are a prefix of a table, and nobody writes into them: they are
// full, and tokens are written at the end. Growing never allocates memory within reserve_blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/kv_cache/block_allocator.h"

namespace sensorium {

// Whole-block copy that a fork asks the device for. Copies run in the order they were asked for
// (when a table goes between two forks, its block may be the second fork's `to`) and before any
// table grows: the parent may let `from` go, and its next owner, of any model, writes to it.
struct BlockCopy {
  BlockId to;
  BlockId from;
};

class BlockTable {
 public:
  // `reserve_blocks`: the most that it will hold, for which it takes memory now.
  BlockTable(BlockAllocator& allocator, int32_t block_size, int32_t reserve_blocks = 0)
      : allocator_(&allocator), block_size_(block_size) {
    blocks_.reserve(reserve_blocks);
  }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { Clear(); }

  static int32_t BlocksFor(int64_t tokens, int32_t block_size) {
    return static_cast<int32_t>((tokens + block_size - 1) / block_size);
  }

  // Makes room for `tokens` tokens in all; never shrinks. REQUIRES: the reservation covers it.
  void Grow(int64_t tokens);
  // Gives every block back, from the last: of the blocks that stay cached, deeper ones are then the
  // older, and leave before those that they build on.
  void Clear();
  // Starts with these blocks and takes their references over: what BlockCache::Match returned.
  // REQUIRES: the table is empty.
  void Adopt(std::span<const BlockId> blocks);

  // Makes `fork`, an empty table, one with the same first `tokens` tokens: full blocks are shared
  // (nobody writes a full block again), a partly filled last one gets a copy of its own, which the
  // device is to make before the next write to either.
  void ForkInto(BlockTable& fork, int64_t tokens, std::vector<BlockCopy>& copies) const;
  // The same as a new table, with memory for as many blocks as this one has memory for.
  BlockTable Fork(int64_t tokens, std::vector<BlockCopy>& copies) const;

  // Where token `position` lives: block_id * block_size + offset. REQUIRES: within Grow's tokens.
  int64_t Slot(int64_t position) const {
    return int64_t{blocks_[position / block_size_]} * block_size_ + position % block_size_;
  }
  std::span<const BlockId> blocks() const { return blocks_; }
  int32_t block_size() const { return block_size_; }

 private:
  BlockAllocator* allocator_;
  int32_t block_size_;
  std::vector<BlockId> blocks_;
};

}  // namespace sensorium
