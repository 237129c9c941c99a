// Ids in the order in which they were put in, least recently used first: a doubly linked list whose
// links lie in one array by id. Every call is O(1) and none allocates. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/base/check.h"

namespace sensorium {

class LruList {
 public:
  explicit LruList(int32_t num_ids) : ends_(num_ids) {
    CHECK_GE(num_ids, 0);
    links_.resize(int64_t{num_ids} + 1);
    links_[ends_] = {.previous = ends_, .next = ends_};
  }

  bool Contains(int32_t id) const { return links_[id].next != kNotListed; }
  int32_t size() const { return size_; }
  int32_t front() const {  // the least recently used. REQUIRES: size() > 0
    CHECK_GT(size_, 0);
    return links_[ends_].next;
  }

  void PushBack(int32_t id) {  // as the most recently used. REQUIRES: !Contains(id)
    CHECK(!Contains(id)) << id;
    links_[id] = {.previous = links_[ends_].previous, .next = ends_};
    links_[links_[id].previous].next = id;
    links_[ends_].previous = id;
    ++size_;
  }

  void Remove(int32_t id) {  // REQUIRES: Contains(id)
    CHECK(Contains(id)) << id;
    links_[links_[id].previous].next = links_[id].next;
    links_[links_[id].next].previous = links_[id].previous;
    links_[id] = {};
    --size_;
  }

 private:
  static constexpr int32_t kNotListed = -1;
  struct Links {
    int32_t previous = kNotListed;
    int32_t next = kNotListed;
  };

  std::vector<Links> links_;  // by id; the extra one at the end closes the list to a ring
  int32_t ends_;
  int32_t size_ = 0;
};

}  // namespace sensorium
