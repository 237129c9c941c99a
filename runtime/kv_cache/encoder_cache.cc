#include "runtime/kv_cache/encoder_cache.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace sensorium {

EncoderCache::EncoderCache(int32_t num_slots, int32_t max_holders)
    : max_holders_(max_holders), idle_(num_slots), index_(num_slots) {
  CHECK_GE(max_holders, 1);
  slots_.resize(num_slots);
  holders_.resize(int64_t{num_slots} * max_holders);
  free_.reserve(num_slots);
  is_free_.resize(num_slots);
  for (int32_t slot = num_slots - 1; slot >= 0; --slot) free_.push_back(slot);  // 0 comes out first
}

std::optional<EncoderCache::Lease> EncoderCache::Acquire(const ContentHash& content,
                                                         HolderId holder) {
  int32_t slot;
  if (const std::optional<int32_t> known = index_.Find(content)) {
    slot = *known;
    if (slots_[slot].num_holders == max_holders_) return std::nullopt;
    if (slots_[slot].num_holders == 0) idle_.Remove(slot);
    ++stats_.hits;
  } else {
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else if (idle_.size() > 0) {
      slot = idle_.front();
      idle_.Remove(slot);
      index_.Erase(slot);
      ++stats_.evictions;
    } else {
      return std::nullopt;
    }
    index_.Insert(content, slot);
    slots_[slot] = {.writer = holder};
    ++stats_.misses;
  }
  Slot& s = slots_[slot];
  ++s.num_holders;
  ++holds_;
  HoldersOf(slot).back() = holder;
  return Lease{.slot = slot, .ready = s.ready, .writer = s.writer == holder};
}

void EncoderCache::MarkReady(int32_t slot) {
  CHECK(slots_[slot].writer.has_value()) << "nobody writes slot " << slot;
  slots_[slot].ready = true;
  slots_[slot].writer.reset();
}

void EncoderCache::Release(int32_t slot, HolderId holder) {
  Slot& s = slots_[slot];
  const std::span<HolderId> row = HoldersOf(slot);
  const auto found = std::find(row.begin(), row.end(), holder);
  CHECK(found != row.end()) << holder << " doesn't hold slot " << slot;
  std::copy(found + 1, row.end(), found);
  --s.num_holders;
  --holds_;

  const std::span<const HolderId> rest = holders(slot);
  if (rest.empty() && s.ready) {
    idle_.PushBack(slot);
  } else if (rest.empty()) {
    index_.Erase(slot);
    s = {};
    free_.push_back(slot);
  } else if (s.writer == holder && std::find(rest.begin(), rest.end(), holder) == rest.end()) {
    s.writer = rest.front();
  }
}

std::span<const EncoderCache::HolderId> EncoderCache::holders(int32_t slot) const {
  return {holders_.data() + int64_t{slot} * max_holders_,
          static_cast<size_t>(slots_[slot].num_holders)};
}

std::span<EncoderCache::HolderId> EncoderCache::HoldersOf(int32_t slot) {
  return {holders_.data() + int64_t{slot} * max_holders_,
          static_cast<size_t>(slots_[slot].num_holders)};
}

void EncoderCache::CheckInvariants() const {
  std::fill(is_free_.begin(), is_free_.end(), 0);
  for (const int32_t slot : free_) {
    CHECK(!is_free_[slot]) << "slot " << slot << " is twice in the free list";
    is_free_[slot] = 1;
  }
  int64_t holds = 0;
  for (int32_t slot = 0; slot < total(); ++slot) {
    const Slot& s = slots_[slot];
    holds += s.num_holders;
    const bool is_pinned = s.num_holders > 0;
    CHECK_LE(s.num_holders, max_holders_);
    CHECK_EQ((is_free_[slot] ? 1 : 0) + (idle_.Contains(slot) ? 1 : 0) + (is_pinned ? 1 : 0), 1)
        << "slot " << slot;
    CHECK_EQ(s.writer.has_value(), is_pinned && !s.ready) << "slot " << slot;
    if (s.writer) {
      const auto row = holders(slot);
      CHECK(std::find(row.begin(), row.end(), *s.writer) != row.end()) << "slot " << slot;
    }
    if (is_free_[slot]) continue;
    CHECK(is_pinned || s.ready) << "slot " << slot;
    CHECK(index_.Find(index_.hash(slot)) == slot) << "slot " << slot << " can't be found";
  }
  CHECK_EQ(holds, holds_);
  CHECK_EQ(index_.size(), total() - free());
}

}  // namespace sensorium
