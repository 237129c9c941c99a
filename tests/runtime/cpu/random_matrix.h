// Matrices for the tests of the ops: any dtype, strided rows, bytes at odd addresses, and every
// byte that is not an element poisoned. Their memory is the default memory resource's, which a
// device's tests make one that the device can reach.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <random>
#include <vector>

#include "runtime/backend/tensor.h"

namespace sensorium {

inline float FromBFloat16(uint16_t h) { return std::bit_cast<float>(uint32_t{h} << 16); }

// Nearest, ties to even, of a finite value.
inline uint16_t ToBFloat16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The value of a binary16, by its definition (IEEE 754-2008, 3.4).
inline double FromFloat16(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double sign = h >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

class Matrix {
 public:
  // Every byte 0xff: NaN in each float type.
  Matrix(int64_t rows, int64_t columns, DType dtype, int64_t extra_stride = 0, int64_t offset = 0)
      : rows_(rows),
        columns_(columns),
        stride_(columns + extra_stride),
        offset_(offset),
        dtype_(dtype),
        bytes_(rows * stride_ * SizeOf(dtype) + offset, std::byte{0xff}) {}

  static Matrix Random(std::mt19937& rng, int64_t rows, int64_t columns, DType dtype,
                       int64_t extra_stride = 0, int64_t offset = 0) {
    Matrix m(rows, columns, dtype, extra_stride, offset);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) m.Set(r, c, normal(rng));
    return m;
  }

  // Rounds to the dtype; to float16 by truncation of small values to multiples of 2^-10.
  void Set(int64_t r, int64_t c, float v) {
    switch (dtype_) {
      case DType::kFloat32:
        std::memcpy(At(r, c), &v, 4);
        break;
      case DType::kInt32: {
        const int32_t i = static_cast<int32_t>(v);
        std::memcpy(At(r, c), &i, 4);
        break;
      }
      case DType::kBFloat16:
        SetBits(r, c, ToBFloat16(v));
        break;
      case DType::kFloat16: {
        // 1.fraction * 2^e with 10 bits of fraction; magnitudes below 2^-14 become zero.
        int e = 0;  // frexp leaves it alone for what is not finite
        const float m = std::frexp(std::fabs(v), &e);  // [0.5, 1)
        const int fraction = static_cast<int>(m * 2048) - 1024;
        const uint16_t magnitude =
            v == 0 || e < -13 ? 0 : static_cast<uint16_t>((e + 14) << 10 | fraction);
        SetBits(r, c, magnitude | (v < 0 ? 0x8000 : 0));
        break;
      }
      default:
        CHECK(false) << Name(dtype_);
    }
  }
  void SetBits(int64_t r, int64_t c, uint16_t bits) { std::memcpy(At(r, c), &bits, 2); }

  float Get(int64_t r, int64_t c) const {
    const std::byte* p = bytes_.data() + Position(r, c);
    if (dtype_ == DType::kFloat32) {
      float f;
      std::memcpy(&f, p, 4);
      return f;
    }
    uint16_t h;
    std::memcpy(&h, p, 2);
    return dtype_ == DType::kBFloat16 ? FromBFloat16(h) : static_cast<float>(FromFloat16(h));
  }
  // Get, rounded to bfloat16 where the product's storage is that.
  float GetAs(DType storage, int64_t r, int64_t c) const {
    return storage == DType::kBFloat16 ? FromBFloat16(ToBFloat16(Get(r, c))) : Get(r, c);
  }

  bool SameRowBits(int64_t r, const Matrix& o, int64_t o_row) const {
    return std::memcmp(bytes_.data() + Position(r, 0), o.bytes_.data() + o.Position(o_row, 0),
                       columns_ * SizeOf(dtype_)) == 0;
  }
  bool PaddingUntouched() const {
    for (int64_t r = 0; r < rows_; ++r)
      for (size_t i = Position(r, columns_); i < Position(r + 1, 0); ++i)
        if (bytes_[i] != std::byte{0xff}) return false;
    return true;
  }

  TensorView view() { return {bytes_.data() + offset_, dtype_, {rows_, columns_}, stride_}; }
  ConstTensorView view() const {
    return {bytes_.data() + offset_, dtype_, {rows_, columns_}, stride_};
  }
  // A matrix of one column as a vector.
  ConstTensorView vector() const { return {bytes_.data() + offset_, dtype_, {rows_}, stride_}; }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

 private:
  size_t Position(int64_t r, int64_t c) const {
    return offset_ + (r * stride_ + c) * SizeOf(dtype_);
  }
  std::byte* At(int64_t r, int64_t c) { return bytes_.data() + Position(r, c); }

  int64_t rows_, columns_, stride_, offset_;
  DType dtype_;
  std::pmr::vector<std::byte> bytes_;
};

}  // namespace sensorium
