#include "runtime/kv_cache/block_cache.h"

#include <optional>

#include "runtime/base/check.h"

namespace sensorium {

BlockCache::BlockCache(const BlockCacheOptions& options, BlockAllocator& blocks)
    : blocks_(blocks), index_(blocks.total()) {
  blocks_.AttachCache(this, {options.max_idle_prefix_blocks, options.max_idle_encoder_blocks});
}

BlockCache::~BlockCache() { blocks_.DetachCache(); }

int32_t BlockCache::Match(CacheClass cache_class, std::span<const ContentHash> chain,
                          std::vector<BlockId>& out) {
  if (blocks_.max_idle(cache_class) == 0) return 0;
  int32_t matched = 0;
  for (const ContentHash& hash : chain) {
    const std::optional<BlockId> id = index_.Find(hash);
    if (!id) break;
    CHECK(blocks_.cache_class(*id) == cache_class) << "block " << *id << " is of another class";
    CHECK_LT(out.size(), out.capacity());
    if (blocks_.refs(*id) > 0) {
      blocks_.AddRef(*id);
    } else {
      blocks_.Revive(*id);
    }
    out.push_back(*id);
    ++matched;
  }
  BlockCacheStats& stats = stats_[static_cast<int>(cache_class)];
  stats.hits += matched;
  stats.misses += static_cast<int64_t>(chain.size()) - matched;
  return matched;
}

int32_t BlockCache::MatchLength(CacheClass cache_class, std::span<const ContentHash> chain) const {
  if (blocks_.max_idle(cache_class) == 0) return 0;
  int32_t length = 0;
  while (length < static_cast<int32_t>(chain.size()) && index_.Find(chain[length])) ++length;
  return length;
}

void BlockCache::Insert(CacheClass cache_class, std::span<const ContentHash> chain,
                        std::span<const BlockId> blocks) {
  CHECK_EQ(chain.size(), blocks.size());
  if (blocks_.max_idle(cache_class) == 0) return;
  // The cached ones are a prefix: the first from the back says where the new ones start.
  size_t next = blocks.size();
  while (next > 0 && !blocks_.cached(blocks[next - 1])) --next;
  if (next > 0) CHECK(index_.hash(blocks[next - 1]) == chain[next - 1]) << "another chain";
  for (; next < blocks.size(); ++next) {
    if (index_.Find(chain[next])) return;
    blocks_.MarkCached(blocks[next], cache_class);
    index_.Insert(chain[next], blocks[next]);
  }
}

BlockCacheStats BlockCache::stats(CacheClass cache_class) const {
  BlockCacheStats stats = stats_[static_cast<int>(cache_class)];
  stats.idle = blocks_.idle(cache_class);
  return stats;
}

void BlockCache::CheckInvariants() const {
  int32_t num_cached = 0;
  for (BlockId id = 0; id < blocks_.total(); ++id) {
    if (!blocks_.cached(id)) continue;
    ++num_cached;
    CHECK(index_.Find(index_.hash(id)) == id) << "block " << id << " can't be found";
  }
  CHECK_EQ(num_cached, index_.size());
}

void BlockCache::OnEvict(BlockId id, CacheClass cache_class) {
  index_.Erase(id);
  ++stats_[static_cast<int>(cache_class)].evictions;
}

}  // namespace sensorium
