// The KV blocks of one sequence, in order. Owns one reference to each. Engine thread only.
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
  BlockTable(BlockAllocator& allocator, int32_t block_size)
      : allocator_(&allocator), block_size_(block_size) {}
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { Clear(); }

  static int32_t BlocksFor(int64_t tokens, int32_t block_size) {
    return static_cast<int32_t>((tokens + block_size - 1) / block_size);
  }

  // Makes room for `tokens` tokens in all; never shrinks. REQUIRES: the reservation covers it.
  void Grow(int64_t tokens);
  void Clear();  // gives every block back

  // A second table with the same first `tokens` tokens: full blocks are shared (nobody writes a
  // full block again), a partly filled last one gets a copy of its own, which the device is to make
  // before the next write to either.
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
