#include "runtime/weights/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/weights/bounded_json.h"
#include "runtime/weights/quoted.h"
#include "runtime/weights/safetensors.h"
#include "runtime/weights/torch_file.h"

namespace sensorium {

namespace {

namespace fs = std::filesystem;
constexpr size_t kMaxTextBytes = 64 << 20;  // the index of a 72B model is 100 kB

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::error_code ec;
  const auto size = fs::file_size(path, ec);
  if (ec) return absl::NotFoundError(absl::StrCat(path, ": ", ec.message()));
  if (size > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes; the limit is ", kMaxTextBytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(size, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

absl::StatusOr<nlohmann::json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  return ParseJsonObject(text, path);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir) {
  std::error_code ec;
  if (!fs::is_directory(dir, ec)) {
    return absl::NotFoundError(absl::StrCat(dir, ": no such checkpoint directory"));
  }
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint(dir));
  ASSIGN_OR_RETURN(checkpoint->config_, ReadJson(dir + "/config.json"));
  if (fs::exists(dir + "/generation_config.json", ec)) {
    ASSIGN_OR_RETURN(checkpoint->generation_config_, ReadJson(dir + "/generation_config.json"));
  }
  RETURN_IF_ERROR(checkpoint->OpenWeights());
  return checkpoint;
}

absl::StatusOr<std::string> Checkpoint::ReadFile(const std::string& name) const {
  return ReadText(dir_ + "/" + name);
}

absl::Status Checkpoint::OpenWeights() {
  std::error_code ec;
  const auto exists = [&](const char* name) { return fs::exists(dir_ + "/" + name, ec); };
  // In the order in which transformers looks (modeling_utils, from_pretrained).
  for (const char* name : {"model.safetensors", "pytorch_model.bin"}) {
    const std::string index = absl::StrCat(name, ".index.json");
    if (!exists(name)) {
      if (exists(index.c_str())) return OpenShards(index);
      continue;
    }
    ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, OpenFile(name));
    for (TensorInfo& tensor : tensors) RETURN_IF_ERROR(Add(std::move(tensor)));
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat(dir_,
                   ": no weights: looked for model.safetensors, model.safetensors.index.json, "
                   "pytorch_model.bin and pytorch_model.bin.index.json"));
}

absl::StatusOr<std::vector<TensorInfo>> Checkpoint::OpenFile(const std::string& name) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(dir_ + "/" + name));
  files_.push_back(std::move(file));
  aligned_bytes_ = 0;
  return name.ends_with(".safetensors") ? ReadSafetensors(*files_.back())
                                        : ReadTorchFile(*files_.back());
}

absl::Status Checkpoint::OpenShards(const std::string& index_name) {
  const std::string origin = dir_ + "/" + index_name;
  ASSIGN_OR_RETURN(const nlohmann::json index, ReadJson(origin));
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": weight_map is missing"));
  }
  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": ", Quoted(tensor), " is in no file"));
    }
    const std::string name = file.get<std::string>();
    if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": ", Quoted(name), " is no plain file name"));
    }
    shard_of[tensor] = name;
    shards.insert(name);
  }
  for (const std::string& shard : shards) {
    absl::StatusOr<std::vector<TensorInfo>> tensors = OpenFile(shard);
    if (!tensors.ok()) {
      return absl::Status(tensors.status().code(),
                          absl::StrCat(tensors.status().message(), " (", index_name, " names it)"));
    }
    for (TensorInfo& tensor : *tensors) {
      const auto it = shard_of.find(tensor.name);
      if (it == shard_of.end() || it->second != shard) {
        return absl::InvalidArgumentError(absl::StrCat(
            tensor.file, ": tensor ", Quoted(tensor.name), " is not where ", index_name, " says"));
      }
      RETURN_IF_ERROR(Add(std::move(tensor)));
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (!tensors_.contains(tensor)) {
      return absl::InvalidArgumentError(absl::StrCat(dir_, "/", shard, ": tensor ", Quoted(tensor),
                                                     " is missing, ", index_name,
                                                     " says it is there"));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Add(TensorInfo tensor) {
  total_bytes_ += tensor.bytes;
  if (reinterpret_cast<uintptr_t>(tensor.data) % SizeOf(tensor.dtype) != 0) {
    RETURN_IF_ERROR(Align(tensor));
  }
  // A file's names are unique, and an index puts each into one file.
  std::string name = tensor.name;
  CHECK(tensors_.emplace(std::move(name), std::move(tensor)).second);
  return absl::OkStatus();
}

// Writers align; a file that does not costs its tensors once more in memory. Tied tensors share the
// copy, and any other overlap (views of one torch storage) may not take more than the file has.
absl::Status Checkpoint::Align(TensorInfo& tensor) {
  const auto [it, inserted] = aligned_.try_emplace({tensor.data, tensor.bytes});
  if (inserted) {
    const MappedFile& file = *files_.back();
    if (tensor.bytes > file.bytes().size() - aligned_bytes_) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(), ": unaligned tensors overlap: copies up to ", Quoted(tensor.name), " take ",
          aligned_bytes_, " + ", tensor.bytes, " bytes; the file has ", file.bytes().size()));
    }
    aligned_bytes_ += tensor.bytes;
    it->second = std::make_unique_for_overwrite<std::byte[]>(tensor.bytes);
    std::memcpy(it->second.get(), tensor.data, tensor.bytes);
  }
  tensor.data = it->second.get();
  return absl::OkStatus();
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<ConstTensorView> Checkpoint::Get(std::string_view name,
                                                std::initializer_list<int64_t> shape) const {
  const auto it = tensors_.find(name);
  const std::string want = ShapeText(shape);
  if (it == tensors_.end()) {
    return absl::NotFoundError(
        absl::StrCat(dir_, ": tensor ", Quoted(name), " of shape ", want, " is missing"));
  }
  const TensorInfo& tensor = it->second;
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat(tensor.file, ": tensor ", Quoted(tensor.name),
                                                   " has shape ", ShapeText(tensor.shape),
                                                   ", expected ", want));
  }
  used_.insert(it->first);
  return ConstTensorView(tensor.data, tensor.dtype, shape);
}

absl::Status Checkpoint::CheckAllUsed(std::span<const std::string_view> allowed_prefixes) const {
  size_t count = 0;
  std::string names;
  for (const auto& [name, tensor] : tensors_) {
    bool expected = used_.contains(name);
    for (const std::string_view prefix : allowed_prefixes) {
      expected = expected || name.starts_with(prefix);
    }
    if (expected) continue;
    if (++count <= 5) absl::StrAppend(&names, count > 1 ? ", " : "", Quoted(name));
  }
  if (count == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(dir_, ": ", count, " of ", tensors_.size(),
                                                 " tensors are unexpected: ", names,
                                                 count > 5 ? ", ..." : ""));
}

void Checkpoint::Hint(std::string_view name, bool need) const {
  const TensorInfo* tensor = Find(name);
  if (!tensor) return;
  for (const auto& file : files_) {
    if (!file->Contains(tensor->data)) continue;
    if (need) {
      file->WillNeed(tensor->data, tensor->bytes);
    } else {
      file->DontNeed(tensor->data, tensor->bytes);
    }
  }
}

}  // namespace sensorium
