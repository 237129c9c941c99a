// Pixels: two resizes, padding, normalisation, crops, patches, masks.
// Source: MolmoImageProcessor.resize_and_pad and image_to_patches_and_tokens of the reference.
#include "runtime/media/molmo_image.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/media/resize.h"

namespace sensorium {

namespace {

constexpr int32_t kChannels = 3;

// A resized picture in the middle of a larger canvas.
struct Canvas {
  int32_t width, height;       // of the canvas
  ScaledSize size;             // of the picture on it
  int32_t left, top;           // where it begins; the odd pixel of padding is right and below
  std::vector<float> picture;  // [size.height, size.width, 3], normalised
};

absl::StatusOr<Canvas> ResizeAndPad(const RgbImage& image, int32_t width, int32_t height,
                                    const MolmoImageConfig& config, const Stop& stop) {
  Canvas canvas{.width = width,
                .height = height,
                .size = FitInside(image.width, image.height, width, height),
                .left = 0,
                .top = 0,
                .picture = {}};
  canvas.left = (width - canvas.size.width) / 2;
  canvas.top = (height - canvas.size.height) / 2;
  canvas.picture = ResizeAntialias(image, canvas.size, stop);
  if (canvas.picture.empty()) return StoppedError();
  for (size_t i = 0; i < canvas.picture.size(); i += kChannels) {
    for (int32_t c = 0; c < kChannels; ++c) {
      canvas.picture[i + c] = (canvas.picture[i + c] - config.mean[c]) / config.std[c];
    }
  }
  return canvas;
}

// Writes the crop whose upper left corner is (x0, y0) of the canvas: patches in raster order, a
// patch being [y, x, rgb]; and for each patch, if mask is given, the share of it that is picture.
void CutCrop(const Canvas& canvas, int32_t x0, int32_t y0, const MolmoImageConfig& config,
             float* patches, float* mask) {
  float padding[kChannels];  // zeros before normalisation, so not zeros behind it
  for (int32_t c = 0; c < kChannels; ++c) padding[c] = (0.0f - config.mean[c]) / config.std[c];
  const int32_t p = config.patch_size, side = config.patches_per_side();
  for (int32_t py = 0; py < side; ++py) {
    for (int32_t px = 0; px < side; ++px) {
      int32_t inside = 0;
      for (int32_t y = 0; y < p; ++y) {
        const int32_t row = y0 + py * p + y - canvas.top;
        const bool row_inside = row >= 0 && row < canvas.size.height;
        for (int32_t x = 0; x < p; ++x, patches += kChannels) {
          const int32_t col = x0 + px * p + x - canvas.left;
          const bool is_picture = row_inside && col >= 0 && col < canvas.size.width;
          const float* from =
              is_picture ? canvas.picture.data() +
                               (static_cast<int64_t>(row) * canvas.size.width + col) * kChannels
                         : padding;
          std::copy_n(from, kChannels, patches);
          inside += is_picture;
        }
      }
      if (mask) *mask++ = static_cast<float>(inside) / static_cast<float>(p * p);
    }
  }
}

}  // namespace

absl::StatusOr<MolmoImageInputs> PreprocessMolmoImage(const RgbImage& image,
                                                      const MolmoImageConfig& config,
                                                      const Stop& stop) {
  CHECK_EQ(image.pixels.size(), static_cast<size_t>(image.width) * image.height * kChannels);
  MolmoImageInputs inputs;
  ASSIGN_OR_RETURN(inputs.layout, LayOutMolmoImage(image.width, image.height, config));
  const MolmoImageLayout& layout = inputs.layout;
  inputs.patches_per_crop = config.patches_per_side() * config.patches_per_side();
  inputs.patch_dim = config.patch_size * config.patch_size * kChannels;
  const size_t crop_values = static_cast<size_t>(inputs.patches_per_crop) * inputs.patch_dim;
  inputs.pixels.resize(layout.crops * crop_values);
  inputs.masks.assign(static_cast<size_t>(layout.crops) * inputs.patches_per_crop, -1.0f);

  float* pixels = inputs.pixels.data();
  {
    ASSIGN_OR_RETURN(const Canvas global,
                     ResizeAndPad(image, config.crop_size, config.crop_size, config, stop));
    CutCrop(global, 0, 0, config, pixels, nullptr);
    pixels += crop_values;
  }
  const int32_t margins = (config.overlap_left + config.overlap_right) * config.patch_size;
  const int32_t window = config.crop_size - margins;
  ASSIGN_OR_RETURN(const Canvas canvas,
                   ResizeAndPad(image, layout.tile_cols * window + margins,
                                layout.tile_rows * window + margins, config, stop));
  float* masks = inputs.masks.data();
  for (int32_t i = 0; i < layout.tile_rows; ++i) {
    for (int32_t j = 0; j < layout.tile_cols; ++j) {
      if (Stopped(stop)) return StoppedError();
      CutCrop(canvas, j * window, i * window, config, pixels, masks);
      pixels += crop_values;
      masks += inputs.patches_per_crop;
    }
  }
  return inputs;
}

}  // namespace sensorium
