// Where a stored tensor lies and what it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/backend/tensor.h"

namespace sensorium {

struct TensorInfo {
  std::string name;
  std::string file;  // path, for messages
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  // Little-endian, row-major, read only. As a file reader gives it: perhaps unaligned. In a
  // Checkpoint: aligned to the element.
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

inline std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

// The bytes of a dense tensor; nullopt for a shape that no arithmetic on int64_t should meet: a
// negative axis, or a product (with empty axes counted as one) beyond int64_t.
inline std::optional<int64_t> DenseBytes(std::span<const int64_t> shape, DType dtype) {
  int64_t span = BitsOf(dtype);
  bool empty = false;
  for (const int64_t n : shape) {
    if (n < 0 || __builtin_mul_overflow(span, n > 0 ? n : 1, &span)) return std::nullopt;
    empty = empty || n == 0;
  }
  return empty ? 0 : span / 8 + (span % 8 != 0);
}

}  // namespace sensorium
