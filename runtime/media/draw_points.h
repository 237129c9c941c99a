// Draws an answer's points onto the picture they are about.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/media/image.h"

namespace sensorium {

struct MarkedPoint {
  float x = 0;         // pixels from the left edge; outside the picture is allowed and clipped
  float y = 0;         // pixels from the upper edge
  int32_t number = 0;  // printed beside the dot
};

// A red dot with a white and a black ring for each point, so that it shows on any background, its
// number beside it; sizes follow the picture's. Later points are drawn over earlier ones.
// A point that is no number (NaN, infinity) is left out.
void DrawPoints(RgbImage& image, std::span<const MarkedPoint> points);

}  // namespace sensorium
