// Lets a test see the tensors along a forward pass, by the names the reference stages have.
#pragma once

#include <functional>
#include <string_view>

#include "runtime/backend/tensor.h"

namespace sensorium {

// Called after a stage is computed; the view is valid during the call only.
using StageProbe = std::function<void(std::string_view stage, ConstTensorView x)>;

}  // namespace sensorium
