#include "runtime/kv_cache/content_index.h"

#include <algorithm>
#include <bit>

#include "runtime/base/check.h"

namespace sensorium {

ContentIndex::ContentIndex(int32_t num_ids) {
  CHECK_GE(num_ids, 0);
  hashes_.resize(num_ids);
  ids_.assign(std::bit_ceil(2 * uint64_t{std::max(1u, static_cast<uint32_t>(num_ids))}), kNoId);
  mask_ = ids_.size() - 1;
}

uint64_t ContentIndex::Place(const ContentHash& hash) const {
  uint64_t place = Home(hash);
  while (ids_[place] != kNoId && hashes_[ids_[place]] != hash) place = (place + 1) & mask_;
  return place;
}

std::optional<int32_t> ContentIndex::Find(const ContentHash& hash) const {
  const int32_t id = ids_[Place(hash)];
  if (id == kNoId) return std::nullopt;
  return id;
}

void ContentIndex::Insert(const ContentHash& hash, int32_t id) {
  const uint64_t place = Place(hash);
  CHECK_EQ(ids_[place], kNoId) << "the hash is known";
  CHECK_LT(size_, static_cast<int32_t>(hashes_.size())) << "id " << id << " has a hash";
  hashes_[id] = hash;
  ids_[place] = id;
  ++size_;
}

// Knuth, The Art of Computer Programming 3, 6.4, algorithm R: what follows the hole moves into it
// unless it would then lie before its home. So no tombstones, and probes stay short for ever.
void ContentIndex::Erase(int32_t id) {
  uint64_t hole = Place(hashes_[id]);
  CHECK_EQ(ids_[hole], id) << "not in the index";
  for (uint64_t next = (hole + 1) & mask_; ids_[next] != kNoId; next = (next + 1) & mask_) {
    const uint64_t from_home = (next - Home(hashes_[ids_[next]])) & mask_;
    const uint64_t from_hole = (next - hole) & mask_;
    if (from_home >= from_hole) {
      ids_[hole] = ids_[next];
      hole = next;
    }
  }
  ids_[hole] = kNoId;
  --size_;
}

}  // namespace sensorium
