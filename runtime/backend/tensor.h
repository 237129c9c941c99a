// Views of dense arrays. A view owns nothing: whoever allocated the bytes outlives it (a mapped
// weight file, the backend's arena, a scratch buffer).
//
// Rows may be strided (q, k and v are column ranges of one qkv buffer); the last axis is
// contiguous.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "runtime/base/check.h"

namespace sensorium {

// The last three are for weights alone: see LinearSource in backend.h.
enum class DType : uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt32,
  kInt8,
  kInt4,        // two's complement, two to a byte, the earlier element in the low half
  kFloat8E4M3,  // one sign, four exponent and three mantissa bits, no infinities (OCP OFP8)
};

constexpr int64_t BitsOf(DType t) {
  switch (t) {
    case DType::kFloat32:
    case DType::kInt32:
      return 32;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 16;
    case DType::kInt8:
    case DType::kFloat8E4M3:
      return 8;
    case DType::kInt4:
      return 4;
  }
  return 0;
}

// Bytes that `elements` side by side take. REQUIRES: they fill whole bytes.
constexpr int64_t BytesOf(DType t, int64_t elements) {
  CHECK(elements * BitsOf(t) % 8 == 0) << elements << " elements of " << BitsOf(t) << " bits";
  return elements * BitsOf(t) / 8;
}

// Bytes of one element. REQUIRES: it has whole ones.
constexpr size_t SizeOf(DType t) { return static_cast<size_t>(BytesOf(t, 1)); }

constexpr std::string_view Name(DType t) {
  switch (t) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt32:
      return "int32";
    case DType::kInt8:
      return "int8";
    case DType::kInt4:
      return "int4";
    case DType::kFloat8E4M3:
      return "float8_e4m3";
  }
  return "?";
}

constexpr bool IsFloat(DType t) {
  return t == DType::kFloat32 || t == DType::kBFloat16 || t == DType::kFloat16;
}
// Numbers that mean nothing without their scales.
constexpr bool IsQuantised(DType t) {
  return t == DType::kInt8 || t == DType::kInt4 || t == DType::kFloat8E4M3;
}

inline constexpr int kMaxRank = 4;

// Shape and bytes of an array: a row is everything behind the first axis, rows are `row_stride`
// elements apart. REQUIRES: axes behind the first are contiguous; a row, and wherever a view of
// rows or columns begins, lies at a whole byte.
template <typename Byte>  // std::byte or const std::byte
class BasicTensorView {
 public:
  BasicTensorView() = default;
  BasicTensorView(Byte* data, DType dtype, std::initializer_list<int64_t> shape,
                  int64_t row_stride = 0)
      : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
    CHECK(rank_ >= 1 && rank_ <= kMaxRank);
    int i = 0;
    for (int64_t n : shape) {
      CHECK_GE(n, 0);
      shape_[i++] = n;
    }
    row_stride_ = row_stride ? row_stride : row_elements();
    if (rows() > 1) BytesOf(dtype_, row_stride_);
  }
  // A view that may write converts to one that only reads.
  operator BasicTensorView<const std::byte>() const {  // NOLINT(google-explicit-constructor)
    BasicTensorView<const std::byte> v;
    v.data_ = data_, v.dtype_ = dtype_, v.rank_ = rank_, v.shape_ = shape_,
    v.row_stride_ = row_stride_;
    return v;
  }

  Byte* bytes() const { return data_; }
  // The elements as T. REQUIRES: sizeof(T) is the dtype's size.
  template <typename T>
  T* as() const {
    CHECK_EQ(sizeof(T), SizeOf(dtype_));
    return reinterpret_cast<T*>(data_);
  }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t rows() const { return shape_[0]; }
  int64_t row_stride() const { return row_stride_; }  // elements
  int64_t row_elements() const {
    int64_t n = 1;
    for (int i = 1; i < rank_; ++i) n *= shape_[i];
    return n;
  }
  int64_t elements() const { return rows() * row_elements(); }
  bool contiguous() const { return row_stride_ == row_elements() || rows() <= 1; }
  bool empty() const { return elements() == 0; }
  bool SameShape(const auto& o) const {
    if (rank_ != o.rank()) return false;
    for (int i = 0; i < rank_; ++i)
      if (shape_[i] != o.dim(i)) return false;
    return true;
  }

  // Rows [begin, end).
  BasicTensorView Rows(int64_t begin, int64_t end) const {
    CHECK(0 <= begin && begin <= end && end <= rows());
    BasicTensorView v = *this;
    v.data_ = data_ + BytesOf(dtype_, begin * row_stride_);
    v.shape_[0] = end - begin;
    return v;
  }
  // Columns [begin, end) of a rank-2 view; rows keep their stride.
  BasicTensorView Columns(int64_t begin, int64_t end) const {
    CHECK(rank_ == 2 && 0 <= begin && begin <= end && end <= shape_[1]);
    BasicTensorView v = *this;
    v.data_ = data_ + BytesOf(dtype_, begin);
    v.shape_[1] = end - begin;
    return v;
  }
  // A rank-2 view's columns as [rows, n, columns / n], e.g. [tokens, heads, head_dim].
  BasicTensorView SplitColumns(int64_t n) const {
    CHECK(rank_ == 2 && n > 0 && shape_[1] % n == 0);
    BasicTensorView v = *this;
    v.rank_ = 3;
    v.shape_ = {shape_[0], n, shape_[1] / n, 0};
    return v;
  }
  // The same elements under another shape. REQUIRES: contiguous.
  BasicTensorView Reshape(std::initializer_list<int64_t> shape) const {
    CHECK(contiguous());
    BasicTensorView v(data_, dtype_, shape);
    CHECK_EQ(v.elements(), elements());
    return v;
  }

 private:
  template <typename>
  friend class BasicTensorView;
  Byte* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  int rank_ = 0;
  std::array<int64_t, kMaxRank> shape_{};
  int64_t row_stride_ = 0;
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

}  // namespace sensorium
