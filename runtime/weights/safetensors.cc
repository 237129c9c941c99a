#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/weights/bounded_json.h"
#include "runtime/weights/quoted.h"

namespace sensorium {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's own limit
constexpr int64_t kMaxHeaderValues = 4'000'000;    // some ten for each tensor

absl::StatusOr<DType> ParseDType(const std::string& name) {
  if (name == "F32") return DType::kFloat32;
  if (name == "BF16") return DType::kBFloat16;
  if (name == "F16") return DType::kFloat16;
  // Weights of a quantised checkpoint. Whether they are of use is the backend's to say; int4 has no
  // name in this format.
  if (name == "I8") return DType::kInt8;
  if (name == "F8_E4M3") return DType::kFloat8E4M3;
  return absl::InvalidArgumentError(
      absl::StrCat("has dtype ", Quoted(name), ", expected F32, F16, BF16, I8 or F8_E4M3"));
}

// One entry of the header. Errors continue a sentence that begins with the tensor's name.
absl::StatusOr<TensorInfo> ParseEntry(const nlohmann::json& entry, uint64_t data_bytes,
                                      uint64_t& begin) {
  const auto field = [&](const char* name) -> const nlohmann::json* {
    if (!entry.is_object()) return nullptr;
    const auto it = entry.find(name);
    return it == entry.end() ? nullptr : &*it;
  };
  const auto *dtype = field("dtype"), *shape = field("shape"), *offsets = field("data_offsets");
  if (!dtype || !dtype->is_string() || !shape || !shape->is_array() || !offsets ||
      !offsets->is_array() || offsets->size() != 2) {
    return absl::InvalidArgumentError("lacks dtype, shape or data_offsets");
  }
  TensorInfo tensor;
  ASSIGN_OR_RETURN(tensor.dtype, ParseDType(dtype->get_ref<const std::string&>()));
  if (shape->size() > static_cast<size_t>(kMaxRank)) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", shape->size(), " axes; the limit is ", kMaxRank));
  }
  for (const auto& n : *shape) {
    if (!n.is_number_unsigned() || n.get<uint64_t>() > INT64_MAX) {
      return absl::InvalidArgumentError("has a shape that is not of integers from 0 to 2^63 - 1");
    }
    tensor.shape.push_back(n.get<int64_t>());
  }
  const std::optional<int64_t> size = DenseBytes(tensor.shape, tensor.dtype);
  if (!size) {
    return absl::InvalidArgumentError(
        absl::StrCat("has an impossible shape ", ShapeText(tensor.shape)));
  }
  if (!(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return absl::InvalidArgumentError("has data_offsets that are not integers from 0 on");
  }
  begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("lies at bytes ", begin, " to ", end, " of ", data_bytes));
  }
  if (end - begin != static_cast<uint64_t>(*size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("of shape ", ShapeText(tensor.shape), " and ", std::string(Name(tensor.dtype)),
                     " takes ", *size, " bytes, its offsets give ", end - begin));
  }
  tensor.bytes = static_cast<size_t>(*size);
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensors(const MappedFile& file) {
  const auto error = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", parts...));
  };
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < 8) return error("the file has ", bytes.size(), " bytes, a header needs 8");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) {
    return error("the header claims ", header_bytes, " bytes; the file has ", bytes.size() - 8,
                 " behind its length and the limit is ", kMaxHeaderBytes);
  }
  // A valid header nests three deep.
  ASSIGN_OR_RETURN(
      const nlohmann::json header,
      ParseJsonObject({reinterpret_cast<const char*>(bytes.data() + 8), header_bytes},
                      file.path() + ": header", {.depth = 8, .values = kMaxHeaderValues}));
  const std::byte* data = bytes.data() + 8 + header_bytes;
  const uint64_t data_bytes = bytes.size() - 8 - header_bytes;

  struct Extent {
    uint64_t begin, end;
    size_t tensor;
  };
  std::vector<Extent> extents;
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;  // free text of whoever wrote the file
    uint64_t begin = 0;
    absl::StatusOr<TensorInfo> tensor = ParseEntry(entry, data_bytes, begin);
    if (!tensor.ok()) return error("tensor ", Quoted(name), " ", tensor.status().message());
    tensor->name = name;
    tensor->file = file.path();
    tensor->data = data + begin;
    extents.push_back({begin, begin + tensor->bytes, tensors.size()});
    tensors.push_back(*std::move(tensor));
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Extent& e : extents) {
    if (e.begin < covered)
      return error("tensor ", Quoted(tensors[e.tensor].name), " overlaps the one before it");
    if (e.begin > covered) {
      return error("bytes ", covered, " to ", e.begin, " belong to no tensor");
    }
    covered = e.end;
  }
  if (covered != data_bytes) {
    return error("the tensors end at byte ", covered, " of ", data_bytes);
  }
  return tensors;
}

}  // namespace sensorium
