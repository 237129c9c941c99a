// Memory of the CPU backend: 64-byte aligned, uninitialised, owned. Large buffers are page-aligned
// and ask for huge pages, since streaming weights is bound by the TLB otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "runtime/base/check.h"

namespace sensorium {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Aborts when there is no memory: whoever takes memory on a request's behalf asks
  // TryAllocate instead.
  explicit AlignedBuffer(size_t size_bytes) : AlignedBuffer(TryAllocate(size_bytes)) {
    CHECK(size_bytes == 0 || bytes_ != nullptr) << "no memory for " << size_bytes << " bytes";
  }

  // data() is null when there is no memory (or size_bytes is 0).
  static AlignedBuffer TryAllocate(size_t size_bytes) {
    AlignedBuffer b;
    if (size_bytes == 0) return b;
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t alignment = size_bytes >= kHugePage ? kHugePage : 64;
    if (size_bytes > SIZE_MAX - alignment) return b;
    const size_t rounded = (size_bytes + alignment - 1) / alignment * alignment;
    b.bytes_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
    if (b.bytes_ == nullptr) return b;
    b.size_bytes_ = size_bytes;
#ifdef __linux__
    if (alignment == kHugePage) madvise(b.bytes_.get(), rounded, MADV_HUGEPAGE);  // only a hint
#endif
    return b;
  }

  // At least size_bytes afterwards; contents are lost when it had to grow.
  std::byte* Reserve(size_t size_bytes) {
    if (size_bytes > size_bytes_) {
      *this = AlignedBuffer();  // frees first: old and new need not fit together
      *this = AlignedBuffer(size_bytes);
    }
    return bytes_.get();
  }

  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  size_t size_bytes() const { return size_bytes_; }

  AlignedBuffer(AlignedBuffer&& o) noexcept
      : bytes_(std::move(o.bytes_)), size_bytes_(std::exchange(o.size_bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept {
    bytes_ = std::move(o.bytes_);
    size_bytes_ = std::exchange(o.size_bytes_, 0);
    return *this;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  size_t size_bytes_ = 0;
};

}  // namespace sensorium
