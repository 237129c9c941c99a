// Reads the pickle inside a torch state dict and executes nothing: a fixed set of opcodes builds
// plain values, and the few globals a state dict names are recognised by their names alone.
// Anything else is an error that names it. Opcodes: CPython, Lib/pickletools.py.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/tensor.h"

namespace sensorium {

// One entry of the state dict: a view of a storage.
struct PickledTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::string storage;           // its key: entry "<archive>/data/<key>" of the zip
  int64_t storage_elements = 0;  // as the pickle says
  int64_t offset = 0;            // elements
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // elements
};

// INVALID_ARGUMENT, naming `origin`, the opcode or the global and its position.
absl::StatusOr<std::vector<PickledTensor>> ReadStateDictPickle(std::span<const std::byte> pickle,
                                                               const std::string& origin);

}  // namespace sensorium
