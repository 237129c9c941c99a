// Rows to look up, where the checkpoint is mapped: nothing is copied at load.
#pragma once

#include <span>
#include <vector>

#include "runtime/backend/backend.h"

namespace sensorium {

class CpuTable final : public TableWeight {
 public:
  explicit CpuTable(std::span<const ConstTensorView> parts);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  size_t size_bytes() const override;  // of the mapped bytes

  struct Row {
    const std::byte* data;  // [columns]
    DType dtype;            // the source's: float32, bfloat16 or float16
  };
  Row row(int64_t i) const;  // REQUIRES: 0 <= i < rows()

 private:
  std::vector<ConstTensorView> parts_;  // stacked along the rows
  int64_t rows_ = 0, columns_ = 0;
};

}  // namespace sensorium
