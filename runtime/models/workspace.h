// The scratch of a forward pass: a bump allocator over one device buffer. Everything taken since a
// mark is dropped at once; nothing is freed singly. A measuring workspace has no bytes behind it and
// only counts, so that a model's layout is written once and sized by running it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "runtime/backend/tensor.h"

namespace sensorium {

class Workspace {
 public:
  Workspace() = default;  // measures
  Workspace(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

  // Uninitialised. REQUIRES (unless measuring): it fits.
  TensorView Take(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view(data_ ? data_ + used_ : nullptr, dtype, shape);
    used_ += (static_cast<size_t>(view.elements()) * SizeOf(dtype) + 63) / 64 * 64;
    CHECK(!data_ || used_ <= size_bytes_) << used_ << " of " << size_bytes_ << " bytes";
    peak_ = std::max(peak_, used_);
    return view;
  }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }
  void Rewind(size_t mark) { used_ = mark; }

 private:
  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
};

// Drops what is taken while it lives.
class WorkspaceScope {
 public:
  explicit WorkspaceScope(Workspace& workspace) : workspace_(workspace), mark_(workspace.used()) {}
  ~WorkspaceScope() { workspace_.Rewind(mark_); }
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;

 private:
  Workspace& workspace_;
  const size_t mark_;
};

}  // namespace sensorium
