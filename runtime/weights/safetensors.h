// The header of a .safetensors file: 8 bytes of length, JSON, then the tensors' bytes. Format:
// huggingface/safetensors, README "Format".
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "runtime/weights/mapped_file.h"
#include "runtime/weights/tensor_info.h"

namespace sensorium {

// Every offset, shape, dtype and overlap is checked, and that the tensors cover the file without
// holes. Errors name the file and the tensor. Data point into the mapping, unaligned
// where the file is.
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensors(const MappedFile& file);

}  // namespace sensorium
