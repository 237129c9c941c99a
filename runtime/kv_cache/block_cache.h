// Which full blocks hold what, so that a request whose first tokens were seen before starts behind
// them. Over a BlockAllocator, which keeps the blocks that nobody holds until their room is needed;
// this class knows their content's hashes. Engine thread only; only the constructor allocates.
//
// A hash names a block's tokens and all before them (content_hash.h), so hashes make chains, and
// many chains a tree. What makes the cache useful is that no block is in it without its parent,
// since Match starts at the root:
//
//   1. A table's cached blocks are a prefix of it. Match hands out a run from the chain's start,
//      Fork shares a prefix, and Insert goes on only where the block before is the cached one.
//      While a table holds a block it stays cached: eviction takes idle ones.
//   2. So whoever holds a cached child holds its cached parent, and lets go of it later (a table
//      clears from the back). Hence an idle parent's cached children are idle too, and have been
//      for longer; reviving a child revives its parent.
//   3. Both are in the same class, whose idle blocks leave in the order in which they became idle,
//      whether for Allocate's sake or the limit's. The child goes first: the deepest leaf of the
//      prompt used longest ago.
//
// It rests on callers that release in that order and write only behind the full blocks.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/kv_cache/block_allocator.h"
#include "runtime/kv_cache/content_hash.h"
#include "runtime/kv_cache/content_index.h"

namespace sensorium {

struct BlockCacheOptions {
  // Most idle blocks of each class; 0 turns the class off: nothing is found or kept, not even
  // blocks in use.
  int32_t max_idle_prefix_blocks = 0;
  int32_t max_idle_encoder_blocks = 0;
};

struct BlockCacheStats {  // of one class, in blocks
  int64_t hits = 0;       // found by Match
  int64_t misses = 0;     // asked of Match and not found
  int64_t evictions = 0;  // for Allocate's sake or the limit's
  int32_t idle = 0;       // now
};

class BlockCache final : private EvictionListener {
 public:
  // `blocks` outlives the cache and has no other.
  BlockCache(const BlockCacheOptions& options, BlockAllocator& blocks);
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache();  // tables may still hold blocks of it

  // Finds the longest cached run from the chain's start, takes a reference on each of its blocks
  // for the caller (who passes them to BlockTable::Adopt, or releases them from the last to the
  // first) and appends them to `out`. Returns their number.
  //
  // The block of a prompt's last token is not to be asked for: that token is computed anew for its
  // logits, and to do so writes its KV. So for n tokens the chain has (n - 1) / block_size hashes.
  // REQUIRES: out's capacity suffices; the caller's reservation covers the blocks; the chain is of
  // this class.
  int32_t Match(CacheClass cache_class, std::span<const ContentHash> chain,
                std::vector<BlockId>& out);

  // What Match would return, with nothing taken and nothing counted.
  int32_t MatchLength(CacheClass cache_class, std::span<const ContentHash> chain) const;

  // Makes a table's first blocks known by their hashes: those of the whole chain from the root,
  // complete in memory, with the caller's reference on each. May be called again with a longer
  // chain as the table fills: that costs what is new.
  //
  // Where another table's copy is known by the same hash it stays the one, and the caller's copy
  // goes uncached, with all behind it: they could outlive a parent that the caller does not hold.
  // REQUIRES: as many hashes as blocks, the chain is of this class.
  void Insert(CacheClass cache_class, std::span<const ContentHash> chain,
              std::span<const BlockId> blocks);

  BlockCacheStats stats(CacheClass cache_class) const;
  void CheckInvariants() const;  // CHECKs that index and allocator agree; O(total)

 private:
  void OnEvict(BlockId id, CacheClass cache_class) override;

  BlockAllocator& blocks_;
  ContentIndex index_;  // of the blocks that are cached() in blocks_, those and no others
  std::array<BlockCacheStats, kNumCacheClasses> stats_;  // all but `idle`
};

}  // namespace sensorium
