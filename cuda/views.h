// The seam's views as the launchers take them.
#pragma once

#include "cuda/kernels/types.h"
#include "runtime/backend/tensor.h"

namespace sensorium::cuda {

inline Type TypeOf(DType t) {
  CHECK(t == DType::kFloat32 || t == DType::kBFloat16) << Name(t);
  return t == DType::kFloat32 ? Type::kFloat32 : Type::kBFloat16;
}
inline Rows RowsOf(const TensorView& v) { return {v.bytes(), v.row_stride(), TypeOf(v.dtype())}; }
inline ConstRows RowsOf(const ConstTensorView& v) {
  return {v.bytes(), v.row_stride(), TypeOf(v.dtype())};
}

}  // namespace sensorium::cuda
