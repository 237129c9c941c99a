#include "runtime/cpu/table_weight.h"

#include "runtime/base/check.h"

namespace sensorium {

CpuTable::CpuTable(std::span<const ConstTensorView> parts) : parts_(parts.begin(), parts.end()) {
  CHECK(!parts_.empty());
  columns_ = parts_[0].dim(1);
  for (const ConstTensorView& part : parts_) rows_ += part.rows();
}

size_t CpuTable::size_bytes() const {
  size_t bytes = 0;
  for (const ConstTensorView& part : parts_) bytes += part.elements() * SizeOf(part.dtype());
  return bytes;
}

CpuTable::Row CpuTable::row(int64_t i) const {
  for (const ConstTensorView& part : parts_) {
    if (i < part.rows()) {
      const int64_t element = i * part.row_stride();
      return {part.bytes() + element * static_cast<int64_t>(SizeOf(part.dtype())), part.dtype()};
    }
    i -= part.rows();
  }
  CHECK(false) << "row " << i << " behind the end of a table of " << rows_;
  return {};
}

}  // namespace sensorium
