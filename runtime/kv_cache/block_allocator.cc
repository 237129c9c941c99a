#include "runtime/kv_cache/block_allocator.h"

#include "runtime/base/check.h"

namespace sensorium {

BlockAllocator::BlockAllocator(int32_t num_blocks) {
  CHECK_GE(num_blocks, 0);
  refs_.assign(num_blocks, 0);
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
  const BlockId id = free_.back();
  free_.pop_back();
  CHECK_EQ(refs_[id], 0);
  refs_[id] = 1;
  return id;
}

void BlockAllocator::AddRef(BlockId id) {
  CHECK_GT(refs_[id], 0);
  ++refs_[id];
}

void BlockAllocator::Release(BlockId id) {
  CHECK_GT(refs_[id], 0);
  if (--refs_[id] == 0) free_.push_back(id);
}

void BlockAllocator::CheckInvariants() const {
  std::vector<bool> is_free(refs_.size(), false);
  for (BlockId id : free_) {
    CHECK(!is_free[id]) << "block " << id << " is twice in the free list";
    is_free[id] = true;
  }
  for (size_t id = 0; id < refs_.size(); ++id) CHECK_EQ(is_free[id], refs_[id] == 0) << id;
  CHECK_LE(used(), reserved_);
  CHECK_LE(reserved_, total());
}

}  // namespace sensorium
