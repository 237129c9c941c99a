#include "runtime/kv_cache/block_table.h"

#include <utility>

#include "runtime/base/check.h"

namespace sensorium {

BlockTable::BlockTable(BlockTable&& other) noexcept
    : allocator_(other.allocator_),
      block_size_(other.block_size_),
      blocks_(std::exchange(other.blocks_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    Clear();
    allocator_ = other.allocator_;
    block_size_ = other.block_size_;
    blocks_.swap(other.blocks_);  // each keeps reserved memory
  }
  return *this;
}

void BlockTable::Grow(int64_t tokens) {
  while (static_cast<int64_t>(blocks_.size()) * block_size_ < tokens) {
    blocks_.push_back(allocator_->Allocate());
  }
}

void BlockTable::Clear() {
  for (; !blocks_.empty(); blocks_.pop_back()) allocator_->Release(blocks_.back());
}

void BlockTable::Adopt(std::span<const BlockId> blocks) {
  CHECK(blocks_.empty()) << blocks_.size() << " blocks are there";
  blocks_.assign(blocks.begin(), blocks.end());
}

BlockTable BlockTable::Fork(int64_t tokens, std::vector<BlockCopy>& copies) const {
  BlockTable fork(*allocator_, block_size_, static_cast<int32_t>(blocks_.capacity()));
  ForkInto(fork, tokens, copies);
  return fork;
}

void BlockTable::ForkInto(BlockTable& fork, int64_t tokens,
                          std::vector<BlockCopy>& copies) const {
  CHECK_LE(tokens, static_cast<int64_t>(blocks_.size()) * block_size_);
  CHECK(fork.blocks_.empty()) << fork.blocks_.size() << " blocks are there";
  const int64_t full = tokens / block_size_;
  for (int64_t i = 0; i < full; ++i) {
    allocator_->AddRef(blocks_[i]);
    fork.blocks_.push_back(blocks_[i]);
  }
  if (tokens % block_size_ != 0) {
    fork.blocks_.push_back(allocator_->Allocate());
    copies.push_back({.to = fork.blocks_.back(), .from = blocks_[full]});
  }
}

}  // namespace sensorium
