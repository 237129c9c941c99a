#include "runtime/media/draw_points.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

using Rgb = std::array<uint8_t, 3>;
constexpr Rgb kRed = {230, 0, 35};
constexpr Rgb kWhite = {255, 255, 255};
constexpr Rgb kBlack = {0, 0, 0};

// Digits and the minus sign, 3 x 5 pixels each: five rows from the top, three bits per row, the
// leftmost column the highest bit.
constexpr int32_t kGlyphWidth = 3, kGlyphHeight = 5;
constexpr std::array<uint8_t, kGlyphHeight> kGlyphs[] = {
    {7, 5, 5, 5, 7}, {2, 6, 2, 2, 7}, {7, 1, 7, 4, 7}, {7, 1, 7, 1, 7},
    {5, 5, 7, 1, 1}, {7, 4, 7, 1, 7}, {7, 4, 7, 5, 7}, {7, 1, 1, 2, 2},
    {7, 5, 7, 5, 7}, {7, 5, 7, 1, 7}, {0, 0, 7, 0, 0}};  // 0 to 9, then '-'

// Sizes in pixels: readable on the picture at its own size, yet not covering it.
struct Sizes {
  int32_t dot;    // radius of the red disc
  int32_t ring;   // width of each of the two rings around it
  int32_t digit;  // side of one font pixel
};

Sizes SizesFor(const RgbImage& image) {
  // A hundredth of the shorter side is what eyes find at once; no smaller than 2 pixels.
  const int32_t dot = std::max(2, std::min(image.width, image.height) / 100);
  return {.dot = dot, .ring = std::max(1, dot / 3), .digit = std::max(1, dot * 2 / 3)};
}

// Sets the part of the half-open rectangle that lies in the picture.
void FillRect(RgbImage& image, int64_t x0, int64_t y0, int64_t x1, int64_t y1, const Rgb& color) {
  x0 = std::max<int64_t>(x0, 0);
  x1 = std::min<int64_t>(x1, image.width);
  y0 = std::max<int64_t>(y0, 0);
  y1 = std::min<int64_t>(y1, image.height);
  for (int64_t y = y0; y < y1; ++y) {
    for (int64_t x = x0; x < x1; ++x) {
      std::copy(color.begin(), color.end(), image.pixels.begin() + (y * image.width + x) * 3);
    }
  }
}

// Row by row: x and y are pixel indices of the centre, all pixels within `radius` of it are set.
void FillDisc(RgbImage& image, int64_t x, int64_t y, int32_t radius, const Rgb& color) {
  for (int32_t dy = -radius; dy <= radius; ++dy) {
    // Half a pixel more than the radius makes small discs round instead of pointed.
    const double r = radius + 0.5;
    const auto half = static_cast<int32_t>(std::sqrt(r * r - static_cast<double>(dy) * dy));
    FillRect(image, x - half, y + dy, x + half + 1, y + dy + 1, color);
  }
}

// `text` of digits and '-', its upper left corner at (x, y), every font pixel grown by `grow` on
// each side: grown and black first, then white, gives an outline.
void DrawText(RgbImage& image, const std::string& text, int64_t x, int64_t y, int32_t digit,
              int32_t grow, const Rgb& color) {
  for (const char character : text) {
    const auto& glyph = kGlyphs[character == '-' ? 10 : character - '0'];
    for (int32_t row = 0; row < kGlyphHeight; ++row) {
      for (int32_t col = 0; col < kGlyphWidth; ++col) {
        if (!(glyph[row] >> (kGlyphWidth - 1 - col) & 1)) continue;
        const int64_t left = x + col * digit, top = y + row * digit;
        FillRect(image, left - grow, top - grow, left + digit + grow, top + digit + grow, color);
      }
    }
    x += (kGlyphWidth + 1) * digit;
  }
}

// Pixel index of a coordinate. Far outside is far enough: beyond any dot or number that could
// still touch the picture, and small enough that no sum overflows.
int64_t PixelOf(float coordinate, int32_t side) {
  const double far = 4.0 * side + 1e6;
  return static_cast<int64_t>(std::floor(std::clamp<double>(coordinate, -far, far)));
}

void DrawPoint(RgbImage& image, const MarkedPoint& point, const Sizes& sizes) {
  const int64_t x = PixelOf(point.x, image.width), y = PixelOf(point.y, image.height);
  const int32_t reach = sizes.dot + 2 * sizes.ring;
  FillDisc(image, x, y, reach, kBlack);
  FillDisc(image, x, y, sizes.dot + sizes.ring, kWhite);
  FillDisc(image, x, y, sizes.dot, kRed);

  const std::string number = std::to_string(point.number);
  const int64_t width = static_cast<int64_t>(number.size()) * (kGlyphWidth + 1) * sizes.digit;
  const int64_t height = int64_t{kGlyphHeight} * sizes.digit;
  const int64_t gap = reach + 3 * sizes.digit;  // from the centre; the outline takes one of three
  // Right of the dot; left of it where the picture ends. Up and down it stays inside the picture
  // as far as that is high enough.
  const int64_t right = x + gap;
  const int64_t left = right + width <= image.width ? right : x - gap - width + sizes.digit;
  int64_t top = y - height / 2;
  if (y >= 0 && y < image.height) {
    top = std::clamp<int64_t>(top, sizes.digit,
                              std::max<int64_t>(sizes.digit, image.height - height - sizes.digit));
  }
  DrawText(image, number, left, top, sizes.digit, sizes.digit, kBlack);
  DrawText(image, number, left, top, sizes.digit, 0, kWhite);
}

}  // namespace

void DrawPoints(RgbImage& image, std::span<const MarkedPoint> points) {
  CHECK_EQ(image.pixels.size(), static_cast<size_t>(image.width) * image.height * 3);
  const Sizes sizes = SizesFor(image);
  for (const MarkedPoint& point : points) {
    if (std::isfinite(point.x) && std::isfinite(point.y)) DrawPoint(image, point, sizes);
  }
}

}  // namespace sensorium
