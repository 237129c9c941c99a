// Memory for packed weights: what is too small for huge pages of its own shares some with others.
//
// Why   a decode step reads every weight once, front to back. In pages of 4 KiB a 512 x 512 weight
//       (512 KiB in bfloat16) came at 76-84 % of the read bandwidth, the walks of the page table
//       and the prefetchers, which stop at a page's end, being the rest; in pages of 2 MiB at
//       93-96 % (two cores of Zen 4, ops_bench decode/*/whisper_base/512x512/rows:1).
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/cpu/aligned_buffer.h"

namespace sensorium {

// Not thread-safe. What it has given lives on without it.
class WeightSlabs {
 public:
  // 64-byte aligned, uninitialised; aborts when there is no memory.
  std::shared_ptr<std::byte> Take(size_t size_bytes) {
    // A small weight is read from the caches, and guarded by ASan when it stands alone.
    constexpr size_t kSmall = size_t{64} << 10, kLarge = size_t{2} << 20;
    if (size_bytes < kSmall || size_bytes >= kLarge) return Whole(size_bytes);
    size_bytes = (size_bytes + 63) / 64 * 64;
    if (!slab_ || used_ + size_bytes > kSlabBytes) {
      slab_ = Whole(kSlabBytes);
      used_ = 0;
    }
    std::shared_ptr<std::byte> piece(slab_, slab_.get() + used_);
    used_ += size_bytes;
    return piece;
  }

 private:
  static constexpr size_t kSlabBytes = size_t{16} << 20;

  static std::shared_ptr<std::byte> Whole(size_t size_bytes) {
    auto buffer = std::make_shared<AlignedBuffer>(size_bytes);
    return {buffer, buffer->data()};
  }

  std::shared_ptr<std::byte> slab_;  // the one that is being filled
  size_t used_ = 0;                  // of it
};

}  // namespace sensorium
