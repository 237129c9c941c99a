// Which slot holds which image's features, so that an image asked about twice is encoded once. The
// slots are of one size, that of the largest image of one model, and lie in one buffer of the
// engine's; here they are numbers. Engine thread only; only the constructor allocates.
//
// A slot is free, pinned by the requests that hold it, or idle: held by nobody, its content
// complete and worth keeping. Of a pinned slot whose content is not complete one holder is the
// writer, the one that encodes; the others wait for it. Invariant: a slot's content is known by its
// hash exactly while the slot is pinned or idle; a slot has a writer exactly while it is pinned and
// not ready; an idle slot is ready.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/kv_cache/content_hash.h"
#include "runtime/kv_cache/content_index.h"
#include "runtime/kv_cache/lru_list.h"

namespace sensorium {

struct EncoderCacheStats {  // in successful calls of Acquire
  int64_t hits = 0;         // the content was there, or somebody was writing it
  int64_t misses = 0;       // the caller has to encode
  int64_t evictions = 0;    // misses that took an idle slot
};

class EncoderCache {
 public:
  using HolderId = int64_t;  // of a request

  struct Lease {
    int32_t slot;
    bool ready;   // the content is complete
    bool writer;  // this holder must fill the slot, and call MarkReady then
  };

  // REQUIRES: num_slots >= 0, max_holders >= 1: of one slot
  EncoderCache(int32_t num_slots, int32_t max_holders);

  // Pins the slot of this content, which is the one that has it, else a free one, else the idle one
  // used longest ago. nullopt: every slot is pinned by other content, or this content's slot has
  // max_holders already; nothing has changed, and it is worth asking again after a Release.
  // A holder may hold a slot several times (one image twice in a prompt): each is to be released.
  [[nodiscard]] std::optional<Lease> Acquire(const ContentHash& content, HolderId holder);

  // Whether a slot has this content, or is being given it.
  bool Has(const ContentHash& content) const { return index_.Find(content).has_value(); }

  // The content is complete, and stays as it is while anybody holds the slot.
  // REQUIRES: the slot has a writer (whose call this is).
  void MarkReady(int32_t slot);

  // Gives one hold back. If the writer goes before MarkReady, the holder that has waited longest
  // becomes the writer and starts over, since nobody vouches for what the slot holds; without one
  // the slot is free. REQUIRES: `holder` holds the slot.
  void Release(int32_t slot, HolderId holder);

  // Who must fill the slot: to be asked in each step by those who wait. nullopt: nobody has to.
  std::optional<HolderId> writer(int32_t slot) const { return slots_[slot].writer; }
  bool ready(int32_t slot) const { return slots_[slot].ready; }
  std::span<const HolderId> holders(int32_t slot) const;  // in the order in which they came

  int32_t total() const { return static_cast<int32_t>(slots_.size()); }
  int32_t pinned() const { return total() - free() - idle(); }
  int32_t idle() const { return idle_.size(); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int64_t holds() const { return holds_; }  // of all holders together, not given back yet
  const EncoderCacheStats& stats() const { return stats_; }

  // CHECKs the invariant above; O(total * max_holders), no memory.
  void CheckInvariants() const;

 private:
  struct Slot {
    int32_t num_holders = 0;
    bool ready = false;
    std::optional<HolderId> writer;
  };
  std::span<HolderId> HoldersOf(int32_t slot);

  const int32_t max_holders_;
  std::vector<Slot> slots_;
  std::vector<HolderId> holders_;  // [slots, max_holders]: the first num_holders of each row count
  std::vector<int32_t> free_;      // a stack
  LruList idle_;
  ContentIndex index_;  // of pinned and idle slots
  int64_t holds_ = 0;   // sum of num_holders
  EncoderCacheStats stats_;
  mutable std::vector<char> is_free_;  // by slot, scratch of CheckInvariants
};

}  // namespace sensorium
