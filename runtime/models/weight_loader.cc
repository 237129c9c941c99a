#include "runtime/models/weight_loader.h"

#include "absl/strings/str_cat.h"

namespace sensorium {

int64_t WeightLoader::Dim(const std::string& name, int axis) {
  if (!status_.ok()) return 0;
  const TensorInfo* info = checkpoint_.Find(name);
  if (!info) {
    Fail(absl::NotFoundError(
        absl::StrCat(checkpoint_.dir(), ": tensor '", name, "' is missing")));
    return 0;
  }
  if (static_cast<int>(info->shape.size()) <= axis) {
    Fail(absl::InvalidArgumentError(absl::StrCat(info->file, ": tensor '", name, "' has ",
                                                 info->shape.size(), " axes, expected at least ",
                                                 axis + 1)));
    return 0;
  }
  return info->shape[axis];
}

ConstTensorView WeightLoader::Get(const std::string& name, std::initializer_list<int64_t> shape) {
  if (!status_.ok()) return {};
  auto view = checkpoint_.Get(name, shape);
  if (!view.ok()) {
    Fail(view.status());
    return {};
  }
  // A quantised weight would come with its scales: the first backend that packs one brings their
  // loader.
  if (const absl::Status packs = backend_.PacksLinear(view->dtype()); !packs.ok()) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat(checkpoint_.Find(name)->file, ": tensor '", name, "': ", packs.message())));
    return {};
  }
  checkpoint_.WillNeed(name);
  return *view;
}

void WeightLoader::Done(ConstTensorView view, const std::string& name) {
  parameters_ += view.elements();
  checkpoint_.DontNeed(name);
  if (on_bytes_) on_bytes_(static_cast<size_t>(BytesOf(view.dtype(), view.elements())));
}

FloatWeight WeightLoader::Vector(const std::string& name, int64_t size) {
  ConstTensorView view = Get(name, {size});
  if (!status_.ok()) return {};
  FloatWeight weight(backend_.UploadFloat32(view), size);
  Done(view, name);
  return weight;
}

LayerNormWeight WeightLoader::Norm(const std::string& prefix, int64_t size) {
  return {Vector(prefix + ".weight", size), Vector(prefix + ".bias", size)};
}

std::unique_ptr<LinearWeight> WeightLoader::Linear(int64_t in, const std::vector<Part>& parts) {
  std::vector<LinearSource> sources;
  for (const Part& part : parts) {
    LinearSource source{.weight = Get(part.name + ".weight", {part.out, in}), .bias = {}};
    if (part.bias) source.bias = Get(part.name + ".bias", {part.out});
    sources.push_back(source);
  }
  if (!status_.ok()) return nullptr;
  auto weight = backend_.PackLinear(sources);
  for (size_t i = 0; i < parts.size(); ++i) {
    Done(sources[i].weight, parts[i].name + ".weight");
    if (parts[i].bias) Done(sources[i].bias, parts[i].name + ".bias");
  }
  return weight;
}

std::unique_ptr<LinearWeight> WeightLoader::Conv1d(const std::string& prefix, int64_t out,
                                                   int64_t in, int64_t kernel) {
  ConstTensorView weight = Get(prefix + ".weight", {out, in, kernel});
  ConstTensorView bias = Get(prefix + ".bias", {out});
  if (!status_.ok()) return nullptr;
  auto packed = backend_.PackConv1d(weight, bias);
  Done(weight, prefix + ".weight");
  Done(bias, prefix + ".bias");
  return packed;
}

std::unique_ptr<TableWeight> WeightLoader::Table(int64_t columns,
                                                 const std::vector<TablePart>& parts) {
  std::vector<ConstTensorView> views;
  for (const TablePart& part : parts) views.push_back(Get(part.name, {part.rows, columns}));
  if (!status_.ok()) return nullptr;
  auto table = backend_.MakeTable(views);
  // Not DontNeed: the table may keep reading the mapped rows.
  for (ConstTensorView view : views) {
    parameters_ += view.elements();
    if (on_bytes_) on_bytes_(static_cast<size_t>(BytesOf(view.dtype(), view.elements())));
  }
  return table;
}

}  // namespace sensorium
