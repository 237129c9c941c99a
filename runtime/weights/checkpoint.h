// A checkpoint directory as published: config.json, and the tensors of model.safetensors, of shards
// behind model.safetensors.index.json, or of pytorch_model.bin (with an index or without). Files
// are mapped read only and checked when opened; tensors are views of the mapping.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/backend/tensor.h"
#include "runtime/weights/mapped_file.h"
#include "runtime/weights/tensor_info.h"

namespace sensorium {

class Checkpoint {
 public:
  // Errors name the file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& dir);

  const std::string& dir() const { return dir_; }
  const nlohmann::json& config() const { return config_; }
  const nlohmann::json& generation_config() const { return generation_config_; }  // {}: absent
  // Another small text file beside the weights. NOT_FOUND when absent.
  absl::StatusOr<std::string> ReadFile(const std::string& name) const;

  const TensorInfo* Find(std::string_view name) const;  // nullptr: absent
  bool Has(std::string_view name) const { return Find(name) != nullptr; }
  // A tensor of this shape (rank 1 to 4), remembered as used. NOT_FOUND or INVALID_ARGUMENT naming
  // the tensor, both shapes and the file. Lives as long as the checkpoint.
  absl::StatusOr<ConstTensorView> Get(std::string_view name,
                                      std::initializer_list<int64_t> shape) const;
  // INVALID_ARGUMENT listing the tensors nobody got, but for those that start with a prefix here.
  absl::Status CheckAllUsed(std::span<const std::string_view> allowed_prefixes) const;
  size_t total_bytes() const { return total_bytes_; }

  // Hints that keep a big file from being held twice while it is packed.
  void WillNeed(std::string_view name) const { Hint(name, true); }
  void DontNeed(std::string_view name) const { Hint(name, false); }

 private:
  explicit Checkpoint(std::string dir) : dir_(std::move(dir)) {}
  absl::Status OpenWeights();
  absl::Status OpenShards(const std::string& index_name);
  absl::StatusOr<std::vector<TensorInfo>> OpenFile(const std::string& name);
  absl::Status Add(TensorInfo tensor);     // of the file opened last
  absl::Status Align(TensorInfo& tensor);  // points it at an aligned copy
  void Hint(std::string_view name, bool need) const;

  const std::string dir_;
  nlohmann::json config_, generation_config_ = nlohmann::json::object();
  std::vector<std::unique_ptr<MappedFile>> files_;
  // Copies of tensors stored unaligned, by where the original lies and its bytes.
  std::map<std::pair<const std::byte*, size_t>, std::unique_ptr<std::byte[]>> aligned_;
  size_t aligned_bytes_ = 0;  // copied of the file opened last
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  mutable std::set<std::string_view> used_;  // names in tensors_
  size_t total_bytes_ = 0;
};

}  // namespace sensorium
