// Rows of doubles: what the reference ops read and write.
#pragma once

#include <cstdint>
#include <vector>

namespace sensorium::reference {

struct Array {
  Array(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), values(static_cast<size_t>(rows * columns)) {}
  double& operator()(int64_t r, int64_t c) { return values[r * columns + c]; }
  double operator()(int64_t r, int64_t c) const { return values[r * columns + c]; }

  int64_t rows, columns;
  std::vector<double> values;  // [rows, columns]
};

}  // namespace sensorium::reference
