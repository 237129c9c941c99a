// Content hash -> id of what holds that content (a block, a slot): a hash table with open
// addressing for ids in [0, num_ids), each with at most one hash. Expected O(1), at most half full;
// only the constructor allocates. Engine thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/kv_cache/content_hash.h"

namespace sensorium {

class ContentIndex {
 public:
  explicit ContentIndex(int32_t num_ids);

  std::optional<int32_t> Find(const ContentHash& hash) const;
  void Insert(const ContentHash& hash, int32_t id);  // REQUIRES: neither is in the index
  void Erase(int32_t id);                            // REQUIRES: id is in the index

  const ContentHash& hash(int32_t id) const { return hashes_[id]; }  // REQUIRES: as Erase
  int32_t size() const { return size_; }

 private:
  static constexpr int32_t kNoId = -1;
  // SHA-256 bits are as good as random: the low ones pick the place.
  uint64_t Home(const ContentHash& hash) const { return hash.prefix() & mask_; }
  // Where the hash is, or the empty place where it would go.
  uint64_t Place(const ContentHash& hash) const;

  std::vector<ContentHash> hashes_;  // by id; stale where the id isn't in ids_
  std::vector<int32_t> ids_;         // [mask_ + 1] by place, linear probing; kNoId: empty
  uint64_t mask_;
  int32_t size_ = 0;
};

}  // namespace sensorium
