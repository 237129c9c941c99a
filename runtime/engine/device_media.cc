#include "runtime/engine/device_media.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {

// ---- Sound -------------------------------------------------------------------------------------

DeviceRecording::DeviceRecording(std::vector<float> samples, int64_t zeros_after,
                                 const LogMelTables& tables, int64_t unit_frames)
    : samples_(std::move(samples)),
      zeros_after_(zeros_after),
      tables_(&tables),
      unit_frames_(unit_frames),
      heard_(recording().heard_frames(tables.n_fft(), tables.hop())) {
  CHECK_GT(unit_frames, 0);
}

int32_t DeviceRecording::units_left() const {
  return static_cast<int32_t>((heard_ - listened_ + unit_frames_ - 1) / unit_frames_);
}

void DeviceRecording::Listen(MediaOps& ops, int32_t units, std::byte* state) {
  CHECK_LE(units, units_left());
  const int64_t end = std::min(heard_, listened_ + units * unit_frames_);
  greatest_.device = reinterpret_cast<float*>(state);
  ops.Listen(greatest_, *tables_, recording(), listened_, end);
  listened_ = end;
}

void DeviceRecording::LogMel(MediaOps& ops, TensorView y, int64_t begin, int64_t frames,
                             std::byte* state) const {
  CHECK_EQ(units_left(), 0);
  const GreatestEnergy greatest = {reinterpret_cast<float*>(state), greatest_.host};
  ops.LogMel(y, *tables_, recording(), begin, frames, greatest);
}

// ---- Pictures ----------------------------------------------------------------------------------

namespace {

// What goes up at once: against a crop's way through the encoder it is little, and a step that
// waits for it is not longer than one that waits for a crop.
constexpr auto kStripBytes = static_cast<int64_t>(kMediaUnitBytes);
constexpr int64_t kChannels = 3;

size_t CanvasBytes(int64_t width, int64_t height) {
  return (static_cast<size_t>(width * height * kChannels) * sizeof(float) + 63) / 64 * 64;
}

size_t GlobalBytes(const MolmoImageConfig& config) {
  return CanvasBytes(config.crop_size, config.crop_size);
}

ResizeAxis AxisOf(const ResizeFilter& filter) {
  return {.first = filter.first, .weights_at = filter.weights_at, .weights = filter.weights};
}

}  // namespace

// The global canvas, and the largest that tiles can make.
size_t DevicePicture::StateBytes(const MolmoImageConfig& config) {
  const int64_t margins = int64_t{config.overlap_left + config.overlap_right} * config.patch_size;
  const int64_t window = config.crop_size - margins;
  size_t tiles = 0;
  for (int64_t rows = 1; rows <= config.max_crops; ++rows) {
    const int64_t columns = config.max_crops / rows;
    tiles = std::max(tiles, CanvasBytes(columns * window + margins, rows * window + margins));
  }
  return GlobalBytes(config) + tiles;
}

// An output has at most 2 * max(in / out, 1) + 2 weights, and two numbers that say where they are.
size_t DevicePicture::FilterBytes(int32_t width, int32_t height, const MolmoImageLayout& layout,
                                  const MolmoImageConfig& config) {
  const MolmoCanvases canvases = PlaceMolmoImage(width, height, layout, config);
  size_t numbers = 0;
  for (const MolmoCanvas* canvas : {&canvases.global, &canvases.tiles}) {
    numbers += 2 * (size_t{1} * width + height) + 2;
    numbers += 6 * (size_t{1} * canvas->size.width + canvas->size.height);
  }
  return numbers * sizeof(float);
}

DevicePicture::OnCanvas DevicePicture::Place(const MolmoCanvas& canvas, const RgbImage& image,
                                             size_t at) {
  return {.canvas = canvas,
          .columns = MakeResizeFilter(image.width, canvas.size.width),
          .rows = MakeResizeFilter(image.height, canvas.size.height),
          .at = at};
}

DevicePicture::DevicePicture(RgbImage image, const MolmoImageLayout& layout,
                             const MolmoImageConfig& config)
    : image_(std::move(image)), config_(&config) {
  const MolmoCanvases canvases = PlaceMolmoImage(image_.width, image_.height, layout, config);
  global_ = Place(canvases.global, image_, 0);
  tiles_ = Place(canvases.tiles, image_, GlobalBytes(config));
  crops_.reserve(layout.crops);
  for (int32_t c = 0; c < layout.crops; ++c) crops_.push_back(LocateMolmoCrop(c, layout, config));
  strip_rows_ = static_cast<int32_t>(
      std::clamp<int64_t>(kStripBytes / (kChannels * image_.width), 1, image_.height));
}

ConstTensorView DevicePicture::OnCanvas::picture(const std::byte* state) const {
  return {state + at, DType::kFloat32, {canvas.size.height, canvas.size.width * kChannels}};
}

ResizeTarget DevicePicture::OnCanvas::target(std::byte* state) const {
  return {
      .picture = {state + at, DType::kFloat32, {canvas.size.height, canvas.size.width * kChannels}},
      .columns = AxisOf(columns),
      .rows = AxisOf(rows)};
}

int32_t DevicePicture::units() const { return (image_.height + strip_rows_ - 1) / strip_rows_; }

void DevicePicture::Resize(MediaOps& ops, int32_t begin, int32_t end, std::byte* state) const {
  CHECK(0 <= begin && begin < end && end <= units()) << begin << " to " << end;
  const int64_t row_bytes = kChannels * image_.width;
  const int64_t first = int64_t{begin} * strip_rows_;
  const int64_t last = std::min<int64_t>(image_.height, int64_t{end} * strip_rows_);
  const std::array targets = {global_.target(state), tiles_.target(state)};
  ops.Resize(targets,
             std::span(image_.pixels).subspan(first * row_bytes, (last - first) * row_bytes),
             image_.width, first);
}

void DevicePicture::CutCrops(MediaOps& ops, int32_t begin, const std::byte* state,
                             TensorView pixels) const {
  const int32_t side = config_->patches_per_side(), patches = side * side;
  const PatchShape shape = {
      .per_side = side, .size = config_->patch_size, .mean = config_->mean, .std = config_->std};
  for (int64_t at = 0; at < pixels.rows(); at += patches) {
    const MolmoCrop& crop = crops_.at(begin + at / patches);
    const OnCanvas& on = crop.is_global ? global_ : tiles_;
    ops.CutCrop(pixels.Rows(at, at + patches), on.picture(state), crop.x - on.canvas.left,
                crop.y - on.canvas.top, shape);
  }
}

}  // namespace sensorium
