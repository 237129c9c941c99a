// The antialiasing resize against weights worked out by hand and a double-precision loop.
#include "runtime/media/resize.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using testing::Each;
using testing::FloatNear;
using testing::Pointwise;

RgbImage RandomImage(int32_t width, int32_t height, std::mt19937_64& random) {
  RgbImage image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (uint8_t& v : image.pixels) v = static_cast<uint8_t>(random());
  return image;
}

// One row or column of grey.
RgbImage Line(const std::vector<uint8_t>& grey, bool upright) {
  const auto n = static_cast<int32_t>(grey.size());
  RgbImage image{upright ? 1 : n, upright ? n : 1, {}};
  for (const uint8_t v : grey) image.pixels.insert(image.pixels.end(), {v, v, v});
  return image;
}

// The grey line resized to n, along either axis.
std::vector<float> ResizeLine(const std::vector<uint8_t>& grey, int32_t n, bool upright) {
  const std::vector<float> rgb =
      ResizeAntialias(Line(grey, upright), upright ? ScaledSize{1, n} : ScaledSize{n, 1});
  std::vector<float> first;
  for (size_t i = 0; i < rgb.size(); i += 3) first.push_back(rgb[i]);
  return first;
}

// The triangle filter by its definition, all sums in double. x [in], returns [out].
std::vector<double> Resample(const std::vector<double>& x, int32_t out) {
  const auto in = static_cast<double>(x.size());
  const double scale = in / out, width = std::max(scale, 1.0);
  std::vector<double> y;
  for (int32_t k = 0; k < out; ++k) {
    double sum = 0, weights = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      const double u = std::abs(static_cast<double>(t) + 0.5 - scale * (k + 0.5)) / width;
      const double w = std::max(0.0, 1.0 - u);
      sum += w * x[t];
      weights += w;
    }
    y.push_back(sum / weights);
  }
  return y;
}

// [to.height, to.width, 3]
std::vector<double> ResizeInDouble(const RgbImage& image, ScaledSize to) {
  std::vector<double> out(size_t{3} * to.width * to.height);
  for (int32_t c = 0; c < 3; ++c) {
    std::vector<std::vector<double>> rows;
    for (int32_t y = 0; y < image.height; ++y) {
      std::vector<double> row;
      for (int32_t x = 0; x < image.width; ++x) {
        row.push_back(image.pixels[(size_t{1} * y * image.width + x) * 3 + c] / 255.0);
      }
      rows.push_back(Resample(row, to.width));
    }
    for (int32_t x = 0; x < to.width; ++x) {
      std::vector<double> column;
      for (const auto& row : rows) column.push_back(row[x]);
      const std::vector<double> resized = Resample(column, to.height);
      for (int32_t y = 0; y < to.height; ++y) {
        out[(size_t{1} * y * to.width + x) * 3 + c] = resized[y];
      }
    }
  }
  return out;
}

TEST(FitInsideTest, TruncatesFloat32Products) {
  struct Case {
    int32_t width, height, max_width, max_height, fit_width, fit_height;
  };
  // What the published preprocessor made of these sizes. 480 * (336f / 640) is just below 252.
  for (const Case& c : std::vector<Case>{{640, 480, 336, 336, 336, 251},
                                         {640, 480, 784, 560, 746, 560},
                                         {1920, 1080, 1008, 784, 1007, 567},
                                         {1920, 1080, 336, 336, 336, 189},
                                         {1280, 720, 1008, 784, 1008, 567},
                                         {1280, 720, 336, 336, 336, 188},
                                         {1024, 1024, 784, 784, 784, 784},
                                         {536, 354, 560, 560, 560, 369},
                                         {800, 600, 1008, 784, 1008, 756},
                                         {3000, 200, 2800, 336, 2800, 186},
                                         {112, 1000, 336, 336, 37, 336},
                                         {50, 2000, 336, 336, 8, 336},
                                         {100, 100, 336, 336, 336, 336}}) {
    const ScaledSize size = FitInside(c.width, c.height, c.max_width, c.max_height);
    EXPECT_EQ(size.width, c.fit_width) << c.width << "x" << c.height << " into " << c.max_width;
    EXPECT_EQ(size.height, c.fit_height) << c.width << "x" << c.height << " into " << c.max_width;
  }
}

TEST(FitInsideTest, ASideOfAThinPictureBecomesNothing) {
  EXPECT_EQ(FitInside(1, 1000, 336, 336).width, 0);
  EXPECT_EQ(FitInside(1000, 1, 336, 336).height, 0);
  EXPECT_EQ(FitInside(1, 336, 336, 336).width, 1);
}

TEST(FitInsideTest, NeverExceedsTheTarget) {
  std::mt19937_64 random(20240925);
  for (int i = 0; i < 20000; ++i) {
    const auto side = [&](int32_t limit) { return static_cast<int32_t>(1 + random() % limit); };
    const int32_t w = side(32768), h = side(32768), max_w = side(4144), max_h = side(4144);
    const ScaledSize size = FitInside(w, h, max_w, max_h);
    ASSERT_TRUE(size.width <= max_w && size.height <= max_h)
        << w << "x" << h << " into " << max_w << "x" << max_h;
    // One of the sides is filled, up to the truncation.
    ASSERT_TRUE(size.width >= max_w - 1 || size.height >= max_h - 1)
        << w << "x" << h << " into " << max_w << "x" << max_h;
  }
}

TEST(ResizeTest, TheSameSizeKeepsEveryByteExactly) {
  std::mt19937_64 random(1);
  const RgbImage image = RandomImage(37, 23, random);
  const std::vector<float> out = ResizeAntialias(image, {37, 23});
  ASSERT_EQ(out.size(), image.pixels.size());
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], static_cast<float>(image.pixels[i]) / 255.0f) << i;
  }
}

TEST(ResizeTest, EnlargesByInterpolationAlongBothAxes) {
  for (const bool upright : {false, true}) {
    EXPECT_THAT(ResizeLine({0, 255}, 4, upright),
                Pointwise(FloatNear(1e-7f), {0.0f, 0.25f, 0.75f, 1.0f}));
  }
}

TEST(ResizeTest, ShrinksWithAFilterThatWidens) {
  // 4 to 2: the centre of output 0 is at 1, the filter reaches 2 to each side, so inputs 0, 1, 2
  // weigh 3/4, 3/4, 1/4; without antialias it would be 1/2, 1/2, 0.
  for (const bool upright : {false, true}) {
    EXPECT_THAT(ResizeLine({255, 0, 0, 0}, 2, upright),
                Pointwise(FloatNear(1e-7f), {3.0f / 7, 0.0f}));
    EXPECT_THAT(ResizeLine({0, 0, 255, 0}, 2, upright),
                Pointwise(FloatNear(1e-7f), {1.0f / 7, 3.0f / 7}));
  }
}

TEST(ResizeTest, OnePixelFillsAnySize) {
  EXPECT_THAT(ResizeAntialias({1, 1, {51, 51, 51}}, {40, 7}), Each(FloatNear(0.2f, 1e-7f)));
}

TEST(ResizeTest, WhiteStaysInsideTheRange) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20; ++i) {
    RgbImage white{
        static_cast<int32_t>(1 + random() % 300), static_cast<int32_t>(1 + random() % 300), {}};
    white.pixels.assign(size_t{3} * white.width * white.height, 255);
    const auto to = static_cast<int32_t>(1 + random() % 300);
    for (const float v : ResizeAntialias(white, {to, 301 - to})) {
      ASSERT_LE(v, 1.0f);
      ASSERT_GE(v, 1.0f - 1e-6f) << white.width << "x" << white.height << " to " << to;
    }
  }
}

TEST(ResizeTest, RandomSizesMatchTheDefinitionInDouble) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 60; ++i) {
    const auto side = [&] { return static_cast<int32_t>(1 + random() % 97); };
    const RgbImage image = RandomImage(side(), side(), random);
    const ScaledSize to{side(), side()};
    const std::vector<float> got = ResizeAntialias(image, to);
    const std::vector<double> want = ResizeInDouble(image, to);
    ASSERT_EQ(got.size(), want.size());
    for (size_t j = 0; j < got.size(); ++j) {
      // float32 centres near 97 are off by up to 4e-6, and so is a weight.
      ASSERT_NEAR(got[j], want[j], 1e-5) << image.width << "x" << image.height << " to " << to.width
                                         << "x" << to.height << " at " << j;
    }
  }
}

}  // namespace
}  // namespace sensorium
