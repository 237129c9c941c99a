// Heaps over the same slots, in memory that is taken once: a slot is in at most one of them at a
// time. A heap is known by its first slot, its root; -1 is the empty one. Insert and Erase, of
// anybody, are O(log n).
//
// Leftist trees (Crane 1972; Knuth, The Art of Computer Programming, vol. 3, 5.2.3): the way down
// along the right children is never longer than log2(n + 1), and all work is done along such ways.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/base/check.h"

namespace sensorium {

class LeftistForest {
 public:
  explicit LeftistForest(int32_t num_slots) : nodes_(num_slots) {}

  // `before(a, b)`: a strict order of all slots, the same in every call until the heap is empty.
  template <typename Before>
  void Insert(int32_t& root, int32_t slot, const Before& before) {
    nodes_[slot] = {};
    root = Merge(root, slot, before);
    nodes_[root].parent = -1;
  }

  // REQUIRES: it is in this heap
  template <typename Before>
  void Erase(int32_t& root, int32_t slot, const Before& before) {
    const Node gone = nodes_[slot];
    const int32_t below = Merge(gone.left, gone.right, before);
    if (below >= 0) nodes_[below].parent = gone.parent;
    if (gone.parent < 0) {
      CHECK_EQ(root, slot);
      root = below;
      return;
    }
    Node& parent = nodes_[gone.parent];
    (parent.left == slot ? parent.left : parent.right) = below;
    // A rank that changes was, or becomes, that of a right child: so many are above each other.
    for (int32_t at = gone.parent; at >= 0 && Settle(nodes_[at]); at = nodes_[at].parent) {
    }
  }

  // CHECKs the heap around one of its slots.
  template <typename Before>
  void CheckInvariants(int32_t root, int32_t slot, const Before& before) const {
    const Node& node = nodes_[slot];
    CHECK_EQ(node.parent < 0, root == slot);
    for (const int32_t child : {node.left, node.right}) {
      if (child < 0) continue;
      CHECK_EQ(nodes_[child].parent, slot);
      CHECK(before(slot, child));
    }
    CHECK_GE(Rank(node.left), Rank(node.right));
    CHECK_EQ(node.rank, Rank(node.right) + 1);
  }

 private:
  struct Node {
    int32_t parent = -1, left = -1, right = -1;
    int32_t rank = 1;  // nodes on the way down along the right children
  };
  int32_t Rank(int32_t slot) const { return slot < 0 ? 0 : nodes_[slot].rank; }

  // Whether its rank changed.
  bool Settle(Node& node) {
    if (Rank(node.left) < Rank(node.right)) std::swap(node.left, node.right);
    return std::exchange(node.rank, Rank(node.right) + 1) != node.rank;
  }

  template <typename Before>
  int32_t Merge(int32_t a, int32_t b, const Before& before) {
    if (a < 0 || b < 0) return a < 0 ? b : a;
    if (before(b, a)) std::swap(a, b);
    Node& first = nodes_[a];
    first.right = Merge(first.right, b, before);
    nodes_[first.right].parent = a;
    Settle(first);
    return a;
  }

  std::vector<Node> nodes_;
};

}  // namespace sensorium
