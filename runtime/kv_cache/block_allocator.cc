#include "runtime/kv_cache/block_allocator.h"

#include "runtime/base/check.h"

namespace sensorium {

BlockAllocator::BlockAllocator(int32_t num_blocks)
    : idle_{LruList(num_blocks), LruList(num_blocks)} {
  refs_.assign(num_blocks, 0);
  cache_class_.assign(num_blocks, kNotCached);
  idle_since_.assign(num_blocks, 0);
  free_.reserve(num_blocks);
  for (BlockId id = num_blocks - 1; id >= 0; --id) free_.push_back(id);  // 0 comes out first
}

bool BlockAllocator::Reserve(int32_t count) {
  CHECK_GE(count, 0);
  if (count > total() - reserved_) return false;
  reserved_ += count;
  return true;
}

void BlockAllocator::Unreserve(int32_t count) {
  CHECK(count >= 0 && count <= reserved_) << count << " of " << reserved_;
  reserved_ -= count;
  CHECK_LE(used(), reserved_);
}

BlockId BlockAllocator::Allocate() {
  CHECK_LT(used(), reserved_) << "a sequence outgrew its reservation";
  BlockId id;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    // used() < total() and nothing is free, so something is idle.
    int oldest = -1;
    for (int c = 0; c < kNumCacheClasses; ++c) {
      if (idle_[c].size() == 0) continue;
      if (oldest < 0 || idle_since_[idle_[c].front()] < idle_since_[idle_[oldest].front()]) {
        oldest = c;
      }
    }
    id = EvictFrom(oldest);
  }
  CHECK_EQ(refs_[id], 0);
  refs_[id] = 1;
  ++references_;
  return id;
}

void BlockAllocator::AddRef(BlockId id) {
  CHECK_GT(refs_[id], 0);
  ++refs_[id];
  ++references_;
}

void BlockAllocator::Release(BlockId id) {
  CHECK_GT(refs_[id], 0);
  --references_;
  if (--refs_[id] > 0) return;
  if (!cached(id)) {
    free_.push_back(id);
    return;
  }
  const int c = cache_class_[id];
  idle_since_[id] = num_idle_ever_++;
  idle_[c].PushBack(id);
  if (idle_[c].size() > max_idle_[c]) free_.push_back(EvictFrom(c));
}

void BlockAllocator::AttachCache(EvictionListener* listener,
                                 std::array<int32_t, kNumCacheClasses> max_idle) {
  CHECK(listener_ == nullptr && listener != nullptr) << "one cache at a time";
  for (const int32_t limit : max_idle) CHECK_GE(limit, 0);
  listener_ = listener;
  max_idle_ = max_idle;
}

void BlockAllocator::DetachCache() {
  CHECK(listener_ != nullptr);
  for (int c = 0; c < kNumCacheClasses; ++c) {
    while (idle_[c].size() > 0) free_.push_back(EvictFrom(c));
  }
  cache_class_.assign(cache_class_.size(), kNotCached);
  listener_ = nullptr;
  max_idle_ = {};
}

void BlockAllocator::MarkCached(BlockId id, CacheClass cache_class) {
  CHECK_GT(refs_[id], 0);
  CHECK(!cached(id)) << id;
  CHECK_GT(max_idle(cache_class), 0);
  cache_class_[id] = static_cast<int8_t>(cache_class);
}

void BlockAllocator::Revive(BlockId id) {
  CHECK_LT(used(), reserved_) << "a match outgrew its reservation";
  CHECK(refs_[id] == 0 && cached(id)) << id;
  idle_[cache_class_[id]].Remove(id);
  refs_[id] = 1;
  ++references_;
}

int32_t BlockAllocator::idle() const {
  int32_t count = 0;
  for (const LruList& list : idle_) count += list.size();
  return count;
}

BlockId BlockAllocator::EvictFrom(int cache_class) {
  const BlockId id = idle_[cache_class].front();
  idle_[cache_class].Remove(id);
  cache_class_[id] = kNotCached;
  listener_->OnEvict(id, static_cast<CacheClass>(cache_class));
  return id;
}

void BlockAllocator::CheckInvariants() const {
  std::vector<bool> is_free(refs_.size(), false);
  int64_t references = 0;
  for (BlockId id : free_) {
    CHECK(!is_free[id]) << "block " << id << " is twice in the free list";
    CHECK(!cached(id)) << "block " << id << " is free, so its content is lost";
    is_free[id] = true;
  }
  for (BlockId id = 0; id < total(); ++id) {
    references += refs_[id];
    int states = (is_free[id] ? 1 : 0) + (refs_[id] > 0 ? 1 : 0);
    for (int c = 0; c < kNumCacheClasses; ++c) {
      if (!idle_[c].Contains(id)) continue;
      CHECK_EQ(cache_class_[id], c) << id;
      ++states;
    }
    CHECK_EQ(states, 1) << "block " << id;
  }
  for (int c = 0; c < kNumCacheClasses; ++c) CHECK_LE(idle_[c].size(), max_idle_[c]);
  CHECK_EQ(references, references_);
  CHECK_LE(used(), reserved_);
  CHECK_LE(reserved_, total());
}

}  // namespace sensorium
