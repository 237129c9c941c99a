// pytorch_model.bin: a zip of stored entries, "<archive>/data.pkl" (the state dict) and
// "<archive>/data/<key>" (raw little-endian storages). Written by torch.save since 1.6.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "runtime/weights/mapped_file.h"
#include "runtime/weights/tensor_info.h"

namespace sensorium {

// Reads the file once, to check its CRCs. Tensors must be contiguous and lie inside their storage;
// storages may be shared. Data point into the mapping, unaligned where the archive is. Errors name
// the file and the tensor.
absl::StatusOr<std::vector<TensorInfo>> ReadTorchFile(const MappedFile& file);

}  // namespace sensorium
