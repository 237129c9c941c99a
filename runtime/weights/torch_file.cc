#include "runtime/weights/torch_file.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/weights/pickle_reader.h"
#include "runtime/weights/quoted.h"
#include "runtime/weights/zip_reader.h"

namespace sensorium {

absl::StatusOr<std::vector<TensorInfo>> ReadTorchFile(const MappedFile& file) {
  const auto error = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", parts...));
  };
  ASSIGN_OR_RETURN(const auto entries, ReadStoredZip(file.bytes(), file.path()));
  const std::string kPickle = "data.pkl";
  std::string root;
  const std::span<const std::byte>* pickle = nullptr;
  for (const auto& [name, bytes] : entries) {
    if (name == kPickle || name.ends_with("/" + kPickle)) {
      if (pickle) return error("the archive has two ", kPickle);
      pickle = &bytes;
      root = name.substr(0, name.size() - kPickle.size());
    }
  }
  if (!pickle) return error("the archive has no ", kPickle);
  if (const auto it = entries.find(root + "byteorder"); it != entries.end()) {
    const std::string order(reinterpret_cast<const char*>(it->second.data()), it->second.size());
    if (order != "little") return error("byte order is ", Quoted(order), ", expected 'little'");
  }
  ASSIGN_OR_RETURN(const auto pickled, ReadStateDictPickle(*pickle, file.path()));
  std::vector<TensorInfo> tensors;
  tensors.reserve(pickled.size());
  for (const PickledTensor& p : pickled) {
    const std::string name = Quoted(p.name), key = Quoted(p.storage);
    const auto storage = entries.find(absl::StrCat(root, "data/", p.storage));
    if (storage == entries.end()) return error("tensor ", name, ": storage ", key, " is missing");
    const uint64_t element = SizeOf(p.dtype), stored = storage->second.size();
    const uint64_t held = stored / element;
    if (stored % element != 0 || held != static_cast<uint64_t>(p.storage_elements)) {
      return error("tensor ", name, ": storage ", key, " has ", stored, " bytes, expected ",
                   p.storage_elements, " elements of ", element);
    }
    // It bounds the products of strides below, too.
    const std::optional<int64_t> bytes = DenseBytes(p.shape, p.dtype);
    if (!bytes) return error("tensor ", name, " has an impossible shape ", ShapeText(p.shape));
    // Contiguous: each stride is the product of the axes behind it (of axes longer than one).
    int64_t stride = 1;
    for (size_t i = p.shape.size(); i-- > 0 && *bytes > 0;) {
      if (p.shape[i] != 1 && p.strides[i] != stride) {
        return error("tensor ", name, " of shape ", ShapeText(p.shape), " has strides ",
                     ShapeText(p.strides), ": not contiguous");
      }
      stride *= p.shape[i];
    }
    const uint64_t offset = static_cast<uint64_t>(p.offset);
    const uint64_t size = static_cast<uint64_t>(*bytes) / element;
    if (offset > held || size > held - offset) {
      return error("tensor ", name, " takes ", size, " elements from ", offset, " on of storage ",
                   key, ", which holds ", held);
    }
    tensors.push_back({.name = p.name,
                       .file = file.path(),
                       .dtype = p.dtype,
                       .shape = p.shape,
                       .data = storage->second.data() + offset * element,
                       .bytes = static_cast<size_t>(*bytes)});
  }
  return tensors;
}

}  // namespace sensorium
