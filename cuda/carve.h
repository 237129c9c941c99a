// Cuts one buffer into arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sensorium::cuda {

// Parts of a buffer, one behind the other, each 256-byte aligned.
class Carve {
 public:
  explicit Carve(std::byte* data) : data_(data) {}
  template <typename T>
  T* Take(int64_t n) {
    T* at = reinterpret_cast<T*>(data_ + used_);
    used_ += Padded(static_cast<size_t>(n) * sizeof(T));
    return at;
  }
  static size_t Padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  std::byte* data_;
  size_t used_ = 0;
};

}  // namespace sensorium::cuda
