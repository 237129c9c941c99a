// Pixels: two resizes, padding, normalisation, crops, patches, masks.
// Source: MolmoImageProcessor.resize_and_pad and image_to_patches_and_tokens of the reference.
#include "runtime/media/molmo_image.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/resize.h"

namespace sensorium {

namespace {

constexpr int32_t kChannels = 3;

// The picture on its canvas, [size.height, size.width, 3] float32, normalised; empty: stopped.
std::vector<float> ResizeOnto(const MolmoCanvas& canvas, const RgbImage& image,
                              const MolmoImageConfig& config, const Stop& stop) {
  std::vector<float> picture = ResizeAntialias(image, canvas.size, stop);
  for (size_t i = 0; i < picture.size(); i += kChannels) {
    for (int32_t c = 0; c < kChannels; ++c) {
      picture[i + c] = (picture[i + c] - config.mean[c]) / config.std[c];
    }
  }
  return picture;
}

// Writes a crop: patches in raster order, a patch being [y, x, rgb].
void CutCrop(const MolmoCanvas& canvas, const std::vector<float>& picture, const MolmoCrop& crop,
             const MolmoImageConfig& config, float* patches) {
  float padding[kChannels];  // zeros before normalisation, so not zeros behind it
  for (int32_t c = 0; c < kChannels; ++c) padding[c] = (0.0f - config.mean[c]) / config.std[c];
  const int32_t p = config.patch_size, side = config.patches_per_side();
  for (int32_t py = 0; py < side; ++py) {
    for (int32_t px = 0; px < side; ++px) {
      for (int32_t y = 0; y < p; ++y) {
        const int32_t row = crop.y + py * p + y - canvas.top;
        const bool row_inside = row >= 0 && row < canvas.size.height;
        for (int32_t x = 0; x < p; ++x, patches += kChannels) {
          const int32_t col = crop.x + px * p + x - canvas.left;
          const bool is_picture = row_inside && col >= 0 && col < canvas.size.width;
          const float* from =
              is_picture ? picture.data() +
                               (static_cast<int64_t>(row) * canvas.size.width + col) * kChannels
                         : padding;
          std::copy_n(from, kChannels, patches);
        }
      }
    }
  }
}

// How many of [begin, begin + n) are in [first, first + size).
int32_t Overlap(int32_t begin, int32_t n, int32_t first, int32_t size) {
  return std::max(0, std::min(begin + n, first + size) - std::max(begin, first));
}

MolmoCanvas Place(int32_t image_width, int32_t image_height, int32_t width, int32_t height) {
  const ScaledSize size = FitInside(image_width, image_height, width, height);
  return {.width = width,
          .height = height,
          .size = size,
          .left = (width - size.width) / 2,
          .top = (height - size.height) / 2};
}

}  // namespace

MolmoCanvases PlaceMolmoImage(int32_t width, int32_t height, const MolmoImageLayout& layout,
                              const MolmoImageConfig& config) {
  const int32_t margins = (config.overlap_left + config.overlap_right) * config.patch_size;
  const int32_t window = config.crop_size - margins;
  return {.global = Place(width, height, config.crop_size, config.crop_size),
          .tiles = Place(width, height, layout.tile_cols * window + margins,
                         layout.tile_rows * window + margins)};
}

MolmoCrop LocateMolmoCrop(int32_t c, const MolmoImageLayout& layout,
                          const MolmoImageConfig& config) {
  CHECK(c >= 0 && c < layout.crops) << c << " of " << layout.crops;
  if (c == 0) return {.is_global = true, .x = 0, .y = 0};
  const int32_t window =
      config.crop_size - (config.overlap_left + config.overlap_right) * config.patch_size;
  return {.is_global = false,
          .x = (c - 1) % layout.tile_cols * window,
          .y = (c - 1) / layout.tile_cols * window};
}

MolmoImageInputs DescribeMolmoImage(int32_t width, int32_t height, MolmoImageLayout layout,
                                    const MolmoImageConfig& config) {
  const int32_t p = config.patch_size, side = config.patches_per_side();
  MolmoImageInputs inputs;
  inputs.patches_per_crop = side * side;
  inputs.patch_dim = p * p * kChannels;
  inputs.masks.reserve(static_cast<size_t>(layout.crops) * inputs.patches_per_crop);
  const MolmoCanvas tiles = PlaceMolmoImage(width, height, layout, config).tiles;
  for (int32_t c = 1; c < layout.crops; ++c) {
    const MolmoCrop crop = LocateMolmoCrop(c, layout, config);
    for (int32_t py = 0; py < side; ++py) {
      const int32_t rows = Overlap(crop.y + py * p, p, tiles.top, tiles.size.height);
      for (int32_t px = 0; px < side; ++px) {
        const int32_t columns = Overlap(crop.x + px * p, p, tiles.left, tiles.size.width);
        inputs.masks.push_back(static_cast<float>(rows * columns) / static_cast<float>(p * p));
      }
    }
  }
  inputs.masks.resize(inputs.masks.size() + inputs.patches_per_crop, -1.0f);
  inputs.layout = std::move(layout);
  return inputs;
}

absl::StatusOr<MolmoImageInputs> PreprocessMolmoImage(const RgbImage& image,
                                                      const MolmoImageConfig& config,
                                                      const Stop& stop) {
  CHECK_EQ(image.pixels.size(), static_cast<size_t>(image.width) * image.height * kChannels);
  ASSIGN_OR_RETURN(MolmoImageLayout laid_out, LayOutMolmoImage(image.width, image.height, config));
  MolmoImageInputs inputs =
      DescribeMolmoImage(image.width, image.height, std::move(laid_out), config);
  const MolmoImageLayout& layout = inputs.layout;
  const size_t crop_values = static_cast<size_t>(inputs.patches_per_crop) * inputs.patch_dim;
  inputs.pixels.resize(layout.crops * crop_values);

  const MolmoCanvases canvases = PlaceMolmoImage(image.width, image.height, layout, config);
  std::vector<float> picture = ResizeOnto(canvases.global, image, config, stop);
  for (int32_t c = 0; c < layout.crops; ++c) {
    const MolmoCrop crop = LocateMolmoCrop(c, layout, config);
    if (c == 1) picture = ResizeOnto(canvases.tiles, image, config, stop);
    if (picture.empty() || Stopped(stop)) return StoppedError();
    CutCrop(crop.is_global ? canvases.global : canvases.tiles, picture, crop, config,
            inputs.pixels.data() + c * crop_values);
  }
  return inputs;
}

}  // namespace sensorium
