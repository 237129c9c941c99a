// Molmo's image preprocessing: an RGB picture -> overlapping crops as patches, the prompt's image
// tokens and where each pooled vector goes among them.
// Source: allenai/Molmo-7B-D-0924, image_preprocessing_molmo.py (MolmoImageProcessor), called "the
// reference" below. Pure functions: thread-safe, no globals.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/media/image.h"
#include "runtime/media/resize.h"

namespace sensorium {

// Defaults are those of the published checkpoints.
struct MolmoImageConfig {
  int32_t crop_size = 336;       // pixels per side
  int32_t patch_size = 14;       // pixels per side; divides crop_size
  int32_t tokens_per_side = 12;  // pooled vectors per crop side; divides patches_per_side()
  int32_t max_crops = 12;        // high-resolution crops, besides the global one
  int32_t overlap_left = 4;      // patches a crop shares with its left (upper) neighbour ...
  int32_t overlap_right = 4;     // ... and with its right (lower) one
  std::array<float, 3> mean = {0.48145466f, 0.4578275f, 0.40821073f};  // CLIP's, R G B
  std::array<float, 3> std = {0.26862954f, 0.26130258f, 0.27577711f};

  int32_t patches_per_side() const { return crop_size / patch_size; }
  int32_t tokens_per_crop() const { return tokens_per_side * tokens_per_side; }

  // Reads preprocessor_config.json; an absent field has its default. INVALID_ARGUMENT, naming
  // `origin` and the field: not JSON, a wrong type, or sizes that do not fit each other.
  static absl::StatusOr<MolmoImageConfig> FromJson(std::string_view preprocessor_config_json,
                                                   std::string_view origin);
};

enum class ImageToken : uint8_t { kStart, kPatch, kCol, kEnd };

// What a picture's size alone decides.
struct MolmoImageLayout {
  int32_t tile_rows = 0;  // the grid of high-resolution crops
  int32_t tile_cols = 0;
  std::vector<ImageToken> tokens;  // the prompt's image tokens, right behind BOS
  // [crops, tokens_per_crop]: the prompt position (BOS is 0) of a crop's pooled vector, raster
  // order; -100 where a neighbour's crop covers it better and the vector is thrown away. Every
  // kPatch is named exactly once.
  std::vector<int32_t> token_index;
  int32_t crops = 0;  // 1 + tile_rows * tile_cols: the global crop, then the tiles in raster order
};

// Touches no pixel, so it costs nothing to ask before a picture is decoded. INVALID_ARGUMENT: no
// size, or so thin that a side would shrink to nothing (the reference fails on it too).
absl::StatusOr<MolmoImageLayout> LayOutMolmoImage(int32_t width, int32_t height,
                                                  const MolmoImageConfig& config);

// A resized picture in the middle of a canvas; the odd pixel of padding is right and below.
struct MolmoCanvas {
  int32_t width = 0, height = 0;  // of the canvas
  ScaledSize size;                // of the picture on it
  int32_t left = 0, top = 0;      // where the picture begins
};
// The two that crops are cut from.
struct MolmoCanvases {
  MolmoCanvas global, tiles;
};
MolmoCanvases PlaceMolmoImage(int32_t width, int32_t height, const MolmoImageLayout& layout,
                              const MolmoImageConfig& config);

// Crop c of a layout: the upper left corner of crop_size^2 pixels of a canvas.
struct MolmoCrop {
  bool is_global = false;
  int32_t x = 0, y = 0;
};
MolmoCrop LocateMolmoCrop(int32_t c, const MolmoImageLayout& layout,
                          const MolmoImageConfig& config);

struct MolmoImageInputs {
  MolmoImageLayout layout;
  int32_t patches_per_crop = 0;
  int32_t patch_dim = 0;  // patch_size * patch_size * 3
  // [crops, patches_per_crop, patch_dim] float32, normalised; a patch is [y, x, rgb]. Empty where
  // the device makes them.
  std::vector<float> pixels;
  // [crops, patches_per_crop] float32: how much of a patch is picture, 0 to 1. SHIFTED by one crop
  // as in the reference: row k describes high-resolution crop k (which is crop k + 1 of pixels),
  // the last row is -1 throughout, and nothing describes the global crop's padding. The models were
  // trained so.
  std::vector<float> masks;
};

// All but the pixels. REQUIRES: `layout` is the size's own.
MolmoImageInputs DescribeMolmoImage(int32_t width, int32_t height, MolmoImageLayout layout,
                                    const MolmoImageConfig& config);

// INVALID_ARGUMENT as LayOutMolmoImage; CANCELLED when `stop` said so. REQUIRES: image.pixels is
// [height, width, 3].
absl::StatusOr<MolmoImageInputs> PreprocessMolmoImage(const RgbImage& image,
                                                      const MolmoImageConfig& config,
                                                      const Stop& stop = {});

}  // namespace sensorium
