// Hands out KV block ids; knows nothing of the bytes behind them. Engine thread only.
//
// One pool for every kind of KV (LLM, Whisper self-attention, Whisper cross-attention). A request
// reserves its worst case before it is admitted, so Allocate never fails for who keeps to it.
// Invariant: every id is in free_ or has refs_[id] > 0, never both; used() <= reserved() <=
// total().
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/base/block_id.h"

namespace sensorium {

class BlockAllocator {
 public:
  explicit BlockAllocator(int32_t num_blocks);

  // Sets `count` blocks aside; false: fewer than that are unreserved, and nothing has changed.
  [[nodiscard]] bool Reserve(int32_t count);
  void Unreserve(int32_t count);  // REQUIRES: count <= reserved(), used() <= what remains

  BlockId Allocate();        // REQUIRES: used() < reserved()
  void AddRef(BlockId id);   // a block now shared by one more table. REQUIRES: refs_[id] > 0
  void Release(BlockId id);  // REQUIRES: refs_[id] > 0

  int32_t refs(BlockId id) const { return refs_[id]; }
  int32_t total() const { return static_cast<int32_t>(refs_.size()); }
  int32_t used() const { return total() - static_cast<int32_t>(free_.size()); }
  int32_t reserved() const { return reserved_; }

  void CheckInvariants() const;  // CHECKs the invariant above; O(total)

 private:
  std::vector<int32_t> refs_;  // by block id
  std::vector<BlockId> free_;  // a stack: the block freed last is the one still warm in cache
  int32_t reserved_ = 0;
};

}  // namespace sensorium
