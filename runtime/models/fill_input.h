// How an encoder gets its input: it says where, whoever calls it writes there.
#pragma once

#include <span>

#include "absl/functional/function_ref.h"
#include "runtime/backend/backend.h"

namespace sensorium {

// Writes a model's input, act of the shape that the view has: copies it up, or has the device make
// it. Called while the encoder runs, at most once.
using FillInput = absl::FunctionRef<void(TensorView input)>;

// What lies in the host's memory, float32 [input].
struct FromHost {
  Backend& backend;
  std::span<const float> values;
  void operator()(TensorView input) const { backend.CopyFromHost(input, values); }
};

}  // namespace sensorium
