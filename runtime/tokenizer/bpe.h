// Byte-pair merging of one piece: repeatedly the adjacent pair of the lowest rank, the leftmost
// first. Sennrich et al. 2016 (arXiv:1508.07909) on bytes, as openai/gpt-2's bpe().
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace sensorium {

class Bpe {
 public:
  // `byte_ids`: the token of each single byte.
  explicit Bpe(const std::array<int32_t, 256>& byte_ids);
  // Ranks count up in the order of the calls. A pair given twice keeps its first rank.
  void AddMerge(int32_t left, int32_t right, int32_t merged);
  void Finish();  // after the last AddMerge

  // Appends the piece's tokens. Thread-safe; O(n log n).
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    uint64_t pair = kEmpty;  // left << 32 | right
    int32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t Pair(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  const Merge* Find(int32_t left, int32_t right) const;
  void EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void EncodeLong(std::string_view piece, std::vector<int32_t>& ids) const;

  // Words repeat: the tokens of short pieces are remembered. Bounded: a new piece takes the place of
  // whichever hashed to its slot.
  static constexpr size_t kCachedBytes = 22, kCachedIds = 8;
  static constexpr size_t kCacheSlots = 1 << 15, kCacheLocks = 64;
  struct CacheSlot {
    uint8_t bytes = 0, ids = 0;
    char piece[kCachedBytes];
    int32_t id[kCachedIds];
  };
  struct Cache {
    std::array<std::mutex, kCacheLocks> locks;
    std::vector<CacheSlot> slots{kCacheSlots};  // slot i is guarded by locks[i % kCacheLocks]
  };

  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> added_;
  std::vector<Merge> table_;  // open addressing, a power of two, at most half full
  uint64_t mask_ = 0;
  std::unique_ptr<Cache> cache_ = std::make_unique<Cache>();
};

}  // namespace sensorium
