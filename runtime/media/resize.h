// Bilinear resizing with antialias, as the references' float path does it.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/base/stop.h"
#include "runtime/media/image.h"

namespace sensorium {

struct ScaledSize {
  int32_t width = 0;
  int32_t height = 0;
};

// The largest size of a width x height picture that fits into max_width x max_height: float32
// arithmetic, truncated, so 640x480 into 336x336 gives 336x251. A side of a very thin picture can
// become 0. Source: allenai/Molmo, resize_and_pad.
ScaledSize FitInside(int32_t width, int32_t height, int32_t max_width, int32_t max_height);

// One axis of the resize below: output k is the sum of weights[weights_at[k] + i] *
// input[first[k] + i] over i in [0, weights_at[k + 1] - weights_at[k]), whose weights sum to 1.
// Neither first[k] nor where its inputs end decreases with k.
struct ResizeFilter {
  std::vector<int32_t> first;       // [outputs]
  std::vector<int32_t> weights_at;  // [outputs + 1]
  std::vector<float> weights;

  int32_t count(int32_t k) const { return weights_at[k + 1] - weights_at[k]; }
};
// REQUIRES: both positive.
ResizeFilter MakeResizeFilter(int32_t in, int32_t out);

// Returns [to.height, to.width, 3] float32 in [0, 1]: pixel / 255, resized with a triangle filter
// that widens when shrinking, columns first, clipped. The source is read once, row by row, and one
// of its resized rows is held at a time. REQUIRES: both sizes positive.
// Source: torchvision.transforms.functional.resize(BILINEAR, antialias=True) on a float tensor.
// Empty when `stop`, asked before every row, said so.
std::vector<float> ResizeAntialias(const RgbImage& image, ScaledSize to, const Stop& stop = {});

}  // namespace sensorium
