// Which jobs come to the end of their KV blocks at which step: a hashed timing wheel (Varghese and
// Lauck 1987, scheme 6). Put and Erase are O(1); a step looks at those of its own spoke alone, of
// which those due a whole turn or more later stay. Storage is taken at construction. Engine thread
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/base/check.h"

namespace sensorium {

class GrowthWheel {
 public:
  explicit GrowthWheel(int32_t num_slots) : spokes_(kSpokes, -1), nodes_(num_slots) {}

  bool Contains(int32_t slot) const { return nodes_[slot].inside; }
  int64_t due(int32_t slot) const { return nodes_[slot].due; }  // REQUIRES: Contains(slot)

  // Due at a step that is not over yet; moves it when it is inside already.
  void Put(int32_t slot, int64_t due) {
    Erase(slot);
    Node& node = nodes_[slot];
    int32_t& first = spokes_[SpokeOf(due)];
    node = {.due = due, .previous = -1, .next = first, .inside = true};
    if (first >= 0) nodes_[first].previous = slot;
    first = slot;
  }

  void Erase(int32_t slot) {  // nothing when it is not inside
    Node& node = nodes_[slot];
    if (!node.inside) return;
    (node.previous < 0 ? spokes_[SpokeOf(node.due)] : nodes_[node.previous].next) = node.next;
    if (node.next >= 0) nodes_[node.next].previous = node.previous;
    node.inside = false;
  }

  // Appends the slots that are due at `step`; they stay inside.
  void AppendDue(int64_t step, std::vector<int32_t>& slots) const {
    for (int32_t slot = spokes_[SpokeOf(step)]; slot >= 0; slot = nodes_[slot].next) {
      CHECK_GE(nodes_[slot].due, step);
      if (nodes_[slot].due == step) slots.push_back(slot);
    }
  }

 private:
  static constexpr int64_t kSpokes = 1024;  // a turn longer than most waits for a block
  static size_t SpokeOf(int64_t step) { return static_cast<size_t>(step % kSpokes); }

  struct Node {
    int64_t due = 0;
    int32_t previous = -1, next = -1;
    bool inside = false;
  };
  std::vector<int32_t> spokes_;  // the first slot of each, or -1
  std::vector<Node> nodes_;      // by slot
};

}  // namespace sensorium
