// What launchers take: raw pointers with what is needed to read them. For host code too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sensorium::cuda {

// What an array holds. A kernel whose loop is bound by memory takes it as a template parameter, the
// others as a value.
enum class Type : uint8_t { kFloat32, kBFloat16 };

// A matrix: rows `stride` elements apart, the columns of a row side by side.
struct Rows {
  void* data;
  int64_t stride;
  Type type;
  bool operator==(const Rows&) const = default;
};
struct ConstRows {
  const void* data;
  int64_t stride;
  Type type;
  bool operator==(const ConstRows&) const = default;
};

template <typename T>
constexpr T CeilDiv(T n, T d) {
  return (n + d - 1) / d;
}

}  // namespace sensorium::cuda
