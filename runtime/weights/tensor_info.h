// Where a stored tensor lies and what it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/backend/tensor.h"

namespace sensorium {

struct TensorInfo {
  std::string name;
  std::string file;  // path, for messages
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // little-endian, row-major; aligned to the element once in a Checkpoint
  size_t bytes = 0;
};

inline std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace sensorium
