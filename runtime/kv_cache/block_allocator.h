// Hands out KV block ids; knows nothing of the bytes behind them. Engine thread only.
//
// One pool for every kind of KV (LLM, Whisper self-attention, Whisper cross-attention). A request
// reserves its worst case before it is admitted, so Allocate never fails for who keeps to it.
//
// A block is in one of three states:
//   free  nobody holds it and nobody wants what is in it;
//   used  refs(id) > 0, and
//   idle  nobody holds it, but what is in it is cached (MarkCached): it can be revived as it is.
// Idle blocks cost nothing: Allocate takes them, least recently used first, once no block is free,
// and they count in neither used() nor reserved(). Invariant: every id is in free_, in one list of
// idle_, or has refs(id) > 0, only one of the three; used() <= reserved() <= total(); idle(c) <=
// the limit of class c. Every call but AttachCache, DetachCache and CheckInvariants is O(1), and
// only the constructor allocates.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/base/block_id.h"
#include "runtime/kv_cache/lru_list.h"

namespace sensorium {

// What a cached block holds. Each class has its own limit of idle blocks, so that a flood of one
// doesn't wash the other out.
enum class CacheClass : uint8_t {
  kPrefix,   // LLM self-attention KV of a prompt's full blocks
  kEncoder,  // Whisper cross-attention KV of an encoded window
};
inline constexpr int kNumCacheClasses = 2;

// Hears of cached content that is about to be overwritten.
class EvictionListener {
 public:
  // `id` isn't cached any more. Called from within Allocate, Release and DetachCache; must not call
  // the allocator back.
  virtual void OnEvict(BlockId id, CacheClass cache_class) = 0;

 protected:
  ~EvictionListener() = default;
};

class BlockAllocator {
 public:
  explicit BlockAllocator(int32_t num_blocks);

  // Sets `count` blocks aside; false: fewer than that are unreserved, and nothing has changed.
  [[nodiscard]] bool Reserve(int32_t count);
  void Unreserve(int32_t count);  // REQUIRES: count <= reserved(), used() <= what remains

  BlockId Allocate();        // a free block, else the LRU idle one. REQUIRES: used() < reserved()
  void AddRef(BlockId id);   // a block now shared by one more table. REQUIRES: refs(id) > 0
  void Release(BlockId id);  // the last one frees it, or leaves it idle. REQUIRES: refs(id) > 0

  // For the one BlockCache. `listener` outlives the attachment; max_idle is by class.
  // REQUIRES: none is attached.
  void AttachCache(EvictionListener* listener, std::array<int32_t, kNumCacheClasses> max_idle);
  void DetachCache();  // evicts what is idle; what is used will be free after its last Release
  // What is in the block is complete and worth keeping, until evicted.
  // REQUIRES: a cache is attached, refs(id) > 0, !cached(id), the class has a limit above 0.
  void MarkCached(BlockId id, CacheClass cache_class);
  void Revive(BlockId id);  // the first reference again. REQUIRES: idle; used() < reserved()

  bool cached(BlockId id) const { return cache_class_[id] != kNotCached; }
  CacheClass cache_class(BlockId id) const {  // REQUIRES: cached(id)
    CHECK(cached(id)) << id;
    return static_cast<CacheClass>(cache_class_[id]);
  }
  int32_t refs(BlockId id) const { return refs_[id]; }
  int32_t total() const { return static_cast<int32_t>(refs_.size()); }
  int32_t used() const { return total() - free() - idle(); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t idle() const;
  int32_t idle(CacheClass cache_class) const { return idle_[static_cast<int>(cache_class)].size(); }
  int32_t max_idle(CacheClass cache_class) const {
    return max_idle_[static_cast<int>(cache_class)];
  }
  int32_t reserved() const { return reserved_; }
  // Of all blocks together: as many as all tables together hold.
  int64_t references() const { return references_; }

  void CheckInvariants() const;  // CHECKs the invariant above; O(total)

 private:
  static constexpr int8_t kNotCached = -1;
  BlockId EvictFrom(int cache_class);  // REQUIRES: idle_[cache_class] isn't empty

  std::vector<int32_t> refs_;  // by block id
  std::vector<BlockId> free_;  // a stack: the block freed last is the one still warm in cache
  int32_t reserved_ = 0;
  int64_t references_ = 0;  // sum of refs_

  EvictionListener* listener_ = nullptr;
  std::array<int32_t, kNumCacheClasses> max_idle_{};
  std::vector<int8_t> cache_class_;  // by block id: a CacheClass or kNotCached
  std::vector<int64_t> idle_since_;  // by block id: num_idle_ever_ when it last became idle
  int64_t num_idle_ever_ = 0;        // a clock, by which two classes' lists compare their fronts
  std::array<LruList, kNumCacheClasses> idle_;
};

}  // namespace sensorium
