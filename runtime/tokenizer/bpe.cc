#include "runtime/tokenizer/bpe.h"

#include <cstring>
#include <queue>
#include <string>

#include "runtime/base/check.h"

namespace sensorium {

namespace {
constexpr size_t kShortPiece = 48;  // bytes; up to here a scan beats the heap

uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids) : byte_ids_(byte_ids) {}

void Bpe::AddMerge(int32_t left, int32_t right, int32_t merged) {
  added_.push_back({Pair(left, right), static_cast<int32_t>(added_.size()), merged});
}

void Bpe::Finish() {
  size_t size = 16;
  while (size < 2 * added_.size() + 1) size *= 2;
  table_.assign(size, {});
  mask_ = size - 1;
  for (const Merge& merge : added_) {
    size_t i = Mix(merge.pair) & mask_;
    while (table_[i].pair != kEmpty && table_[i].pair != merge.pair) i = (i + 1) & mask_;
    if (table_[i].pair == kEmpty) table_[i] = merge;
  }
  added_ = {};
}

const Bpe::Merge* Bpe::Find(int32_t left, int32_t right) const {
  const uint64_t pair = Pair(left, right);
  for (size_t i = Mix(pair) & mask_;; i = (i + 1) & mask_) {
    if (table_[i].pair == pair) return &table_[i];
    if (table_[i].pair == kEmpty) return nullptr;
  }
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  CHECK(!table_.empty());
  if (piece.size() == 1) {
    ids.push_back(byte_ids_[static_cast<uint8_t>(piece[0])]);
    return;
  }
  if (piece.size() > kCachedBytes) {
    if (piece.size() <= kShortPiece) {
      EncodeShort(piece, ids);
    } else {
      EncodeLong(piece, ids);
    }
    return;
  }
  const size_t slot = Mix(std::hash<std::string_view>()(piece)) % kCacheSlots;
  std::mutex& lock = cache_->locks[slot % kCacheLocks];
  CacheSlot& cached = cache_->slots[slot];
  {
    std::lock_guard guard(lock);
    if (cached.bytes == piece.size() &&
        std::memcmp(cached.piece, piece.data(), piece.size()) == 0) {
      ids.insert(ids.end(), cached.id, cached.id + cached.ids);
      return;
    }
  }
  const size_t first = ids.size();
  EncodeShort(piece, ids);
  const size_t count = ids.size() - first;
  if (count > kCachedIds) return;
  std::lock_guard guard(lock);
  cached.bytes = static_cast<uint8_t>(piece.size());
  cached.ids = static_cast<uint8_t>(count);
  std::memcpy(cached.piece, piece.data(), piece.size());
  std::memcpy(cached.id, ids.data() + first, count * sizeof(int32_t));
}

void Bpe::EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const {
  int32_t token[kShortPiece];
  const Merge* merge[kShortPiece];  // of token i and i + 1
  size_t n = piece.size();
  for (size_t i = 0; i < n; ++i) token[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < n; ++i) merge[i] = Find(token[i], token[i + 1]);
  while (n > 1) {
    size_t best = n;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (merge[i] && (best == n || merge[i]->rank < merge[best]->rank)) best = i;
    }
    if (best == n) break;
    token[best] = merge[best]->merged;
    for (size_t i = best + 1; i + 1 < n; ++i) {
      token[i] = token[i + 1];
      merge[i - 1] = merge[i];
    }
    --n;
    // merge[best] now is the old one behind the pair: both neighbours look anew.
    if (best > 0) merge[best - 1] = Find(token[best - 1], token[best]);
    if (best + 1 < n) merge[best] = Find(token[best], token[best + 1]);
  }
  ids.insert(ids.end(), token, token + n);
}

void Bpe::EncodeLong(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t token;  // -1: merged into its left neighbour
    int32_t previous, next;  // -1: none
  };
  struct Candidate {
    int32_t rank, left, right;  // positions
    int32_t left_token, right_token, merged;
    bool operator<(const Candidate& o) const {  // the queue's top is the greatest
      return rank != o.rank ? rank > o.rank : left > o.left;
    }
  };
  const int32_t n = static_cast<int32_t>(piece.size());
  CHECK_EQ(static_cast<size_t>(n), piece.size());
  std::vector<Symbol> symbols(n);
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    if (const Merge* m = Find(symbols[left].token, symbols[right].token)) {
      queue.push({m->rank, left, right, symbols[left].token, symbols[right].token, m->merged});
    }
  };
  for (int32_t i = 0; i < n; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1 < n ? i + 1 : -1};
  }
  for (int32_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    Symbol& left = symbols[c.left];
    Symbol& right = symbols[c.right];
    // Stale when either has been merged since.
    if (left.token != c.left_token || right.token != c.right_token || left.next != c.right) continue;
    left.token = c.merged;
    left.next = right.next;
    right.token = -1;
    if (right.next >= 0) symbols[right.next].previous = c.left;
    consider(left.previous, c.left);
    consider(c.left, left.next);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].token);
}

}  // namespace sensorium
