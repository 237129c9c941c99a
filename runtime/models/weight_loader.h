// From a checkpoint's tensors to the backend's weights: what every model's constructor is made of.
// The first error sticks and is returned by status(); after it the getters return nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/weights/checkpoint.h"

namespace sensorium {

// A float32 vector or matrix on the device, e.g. a norm's weight.
class FloatWeight {
 public:
  FloatWeight() = default;
  FloatWeight(std::unique_ptr<DeviceBuffer> buffer, int64_t size)
      : buffer_(std::move(buffer)), view_(buffer_->data(), DType::kFloat32, {size}) {}
  ConstTensorView view() const { return view_; }

 private:
  std::unique_ptr<DeviceBuffer> buffer_;
  TensorView view_;
};

struct LayerNormWeight {
  FloatWeight weight, bias;
};

class WeightLoader {
 public:
  // Called with the bytes of each tensor as it is packed.
  using OnBytes = std::function<void(size_t bytes)>;

  WeightLoader(const Checkpoint& checkpoint, Backend& backend, OnBytes on_bytes = nullptr)
      : checkpoint_(checkpoint), backend_(backend), on_bytes_(std::move(on_bytes)) {}

  const absl::Status& status() const { return status_; }
  void Fail(absl::Status status) { status_.Update(status); }
  Backend& backend() { return backend_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }

  // Dimension `axis` of a tensor; 0 and an error when it is absent or has fewer axes.
  int64_t Dim(const std::string& name, int axis);

  FloatWeight Vector(const std::string& name, int64_t size);
  LayerNormWeight Norm(const std::string& prefix, int64_t size);  // prefix.weight, prefix.bias

  // One stacked linear; each part is [out, in] at name.weight, bias [out] at name.bias if `bias`.
  struct Part {
    std::string name;
    int64_t out;
    bool bias = false;
  };
  std::unique_ptr<LinearWeight> Linear(int64_t in, const std::vector<Part>& parts);
  std::unique_ptr<LinearWeight> Conv1d(const std::string& prefix, int64_t out, int64_t in,
                                       int64_t kernel);
  // Rows of several tensors one behind the other; names are given whole (no ".weight" added).
  struct TablePart {
    std::string name;
    int64_t rows;
  };
  std::unique_ptr<TableWeight> Table(int64_t columns, const std::vector<TablePart>& parts);

  // INVALID_ARGUMENT also for a dtype that the backend does not pack, by the tensor's name.
  ConstTensorView Get(const std::string& name, std::initializer_list<int64_t> shape);
  int64_t parameters() const { return parameters_; }

 private:
  void Done(ConstTensorView view, const std::string& name);

  const Checkpoint& checkpoint_;
  Backend& backend_;
  OnBytes on_bytes_;
  absl::Status status_;
  int64_t parameters_ = 0;
};

}  // namespace sensorium
