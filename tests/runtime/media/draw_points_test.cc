// What people see of an answer's points: dots, rings and numbers, and nothing outside the picture.
#include "runtime/media/draw_points.h"

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using testing::ElementsAre;

using Rgb = std::array<uint8_t, 3>;
constexpr Rgb kGrey = {128, 128, 128};
constexpr Rgb kWhite = {255, 255, 255};
constexpr Rgb kBlack = {0, 0, 0};

RgbImage Grey(int32_t width, int32_t height) {
  return {width, height, std::vector<uint8_t>(size_t{3} * width * height, 128)};
}

Rgb At(const RgbImage& image, int32_t x, int32_t y) {
  const auto* p = &image.pixels.at((size_t{1} * y * image.width + x) * 3);
  return {p[0], p[1], p[2]};
}

bool IsRed(const Rgb& color) { return color[0] > 200 && color[1] < 60 && color[2] < 60; }

std::string Name(const Rgb& color) {
  if (color == kGrey) return "grey";
  if (color == kWhite) return "white";
  if (color == kBlack) return "black";
  return IsRed(color) ? "red" : "other";
}

RgbImage Drawn(RgbImage image, const std::vector<MarkedPoint>& points) {
  DrawPoints(image, points);
  return image;
}

// The pixels of the font that lie right of the point's rings, as rows of '#' (white) and '.'; the
// picture must be so small that a font pixel is one pixel.
std::vector<std::string> NumberRightOf(const RgbImage& image, int32_t x, int32_t y) {
  int32_t left = x;
  while (At(image, left, y) != kGrey) ++left;  // behind the rings
  std::vector<std::string> rows;
  for (int32_t row = y - 2; row <= y + 2; ++row) {
    std::string text;
    for (int32_t col = left; col < image.width; ++col) {
      text += At(image, col, row) == kWhite ? '#' : '.';
    }
    rows.push_back(text);
  }
  // Without the empty columns on both sides.
  size_t first = std::string::npos, last = 0;
  for (const std::string& row : rows) {
    if (row.find('#') == std::string::npos) continue;
    first = std::min(first, row.find('#'));
    last = std::max(last, row.rfind('#'));
  }
  for (std::string& row : rows)
    row = first == std::string::npos ? "" : row.substr(first, last - first + 1);
  return rows;
}

TEST(DrawPointsTest, ADotIsRedInAWhiteInABlackRingOnAnyBackground) {
  for (const int32_t side : {120, 700}) {
    const int32_t center = side / 2;
    const RgbImage image = Drawn(Grey(side, side), {{center + 0.5f, center + 0.5f, 1}});
    for (const auto& [dx, dy] : {std::pair(-1, 0), std::pair(0, 1), std::pair(0, -1)}) {
      std::vector<std::string> seen;
      for (int32_t i = 0; i < 40; ++i) {
        const std::string name = Name(At(image, center + i * dx, center + i * dy));
        if (seen.empty() || seen.back() != name) seen.push_back(name);
      }
      EXPECT_THAT(seen, ElementsAre("red", "white", "black", "grey")) << side;
    }
  }
}

TEST(DrawPointsTest, DotsGrowWithThePicture) {
  const auto red_pixels = [](int32_t side) {
    const RgbImage image = Drawn(Grey(side, side), {{side / 2.0f, side / 2.0f, 1}});
    int64_t red = 0;
    for (int32_t y = 0; y < side; ++y) {
      for (int32_t x = 0; x < side; ++x) red += IsRed(At(image, x, y));
    }
    return red;
  };
  EXPECT_GT(red_pixels(64), 8);
  EXPECT_GT(red_pixels(1600), 10 * red_pixels(200));
}

TEST(DrawPointsTest, ThePixelThatHoldsThePointIsTheCentre) {
  // 30.9 lies in pixel 30: what is drawn there is what 30.0 draws, and 31.0 is one to the right.
  const RgbImage at30 = Drawn(Grey(100, 100), {{30.0f, 40.0f, 1}});
  EXPECT_EQ(Drawn(Grey(100, 100), {{30.9f, 40.9f, 1}}).pixels, at30.pixels);
  const RgbImage at31 = Drawn(Grey(100, 100), {{31.0f, 40.0f, 1}});
  for (int32_t x = 10; x < 90; ++x) ASSERT_EQ(At(at31, x + 1, 40), At(at30, x, 40)) << x;
}

TEST(DrawPointsTest, NumbersReadAsDigitsBesideTheDot) {
  const auto number = [](int32_t n) {
    return NumberRightOf(Drawn(Grey(120, 60), {{30, 30, n}}), 30, 30);
  };
  EXPECT_THAT(number(2), ElementsAre("###", "..#", "###", "#..", "###"));
  EXPECT_THAT(number(14), ElementsAre(".#..#.#", "##..#.#", ".#..###", ".#....#", "###...#"));
  EXPECT_THAT(number(-7), ElementsAre("....###", "......#", "###...#", ".....#.", ".....#."));
  std::set<std::vector<std::string>> shapes;
  for (int32_t n = 0; n < 200; ++n) shapes.insert(number(n));
  EXPECT_EQ(shapes.size(), 200);  // no two numbers look the same
}

TEST(DrawPointsTest, NumbersMoveLeftOfADotAtTheRightEdge) {
  const RgbImage image = Drawn(Grey(120, 60), {{116, 30, 1234}});
  int32_t white_left = 0;
  for (int32_t y = 25; y < 36; ++y) {
    for (int32_t x = 80; x < 112; ++x) white_left += At(image, x, y) == kWhite;
  }
  // Set font pixels of 1, 2, 3 and 4: 8 + 11 + 11 + 9.
  EXPECT_EQ(white_left, 39);
}

TEST(DrawPointsTest, NumbersStayInsideAtTheUpperAndLowerEdge) {
  for (const int32_t y : {0, 59}) {
    const RgbImage image = Drawn(Grey(120, 60), {{30, static_cast<float>(y), 8}});
    int32_t white = 0;  // right of the dot and its rings
    for (int32_t row = 0; row < 60; ++row) {
      for (int32_t x = 35; x < 50; ++x) white += At(image, x, row) == kWhite;
    }
    EXPECT_EQ(white, 13) << y;  // all pixels of an 8
  }
}

TEST(DrawPointsTest, LaterPointsLieOverEarlierOnes) {
  const MarkedPoint first{50, 50, 1}, second{52, 50, 2};
  const RgbImage both = Drawn(Grey(100, 100), {first, second});
  EXPECT_EQ(both.pixels, Drawn(Drawn(Grey(100, 100), {first}), {second}).pixels);
  EXPECT_NE(both.pixels, Drawn(Grey(100, 100), {second, first}).pixels);
  EXPECT_TRUE(IsRed(At(both, 52, 50)));
}

TEST(DrawPointsTest, APointThatIsNoNumberIsLeftOut) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const RgbImage plain = Grey(50, 40);
  EXPECT_EQ(Drawn(plain, {{kNan, 20, 1}, {20, kNan, 2}, {kInf, 20, 3}, {20, -kInf, 4}}).pixels,
            plain.pixels);
  EXPECT_NE(Drawn(plain, {{20, 20, 1}}).pixels, plain.pixels);
}

TEST(DrawPointsTest, PointsOutsideAreClipped) {
  const RgbImage plain = Grey(50, 40);
  constexpr float kMax = std::numeric_limits<float>::max();
  EXPECT_EQ(Drawn(plain, {{kMax, kMax, 1}, {-kMax, 20, 2}, {25, -1e9f, 3}, {25, 1e9f, 4}}).pixels,
            plain.pixels);
  // Just outside: the part that reaches in is drawn.
  const RgbImage edge = Drawn(plain, {{-2, 20, 1}});
  EXPECT_NE(edge.pixels, plain.pixels);
  EXPECT_EQ(Name(At(edge, 0, 20)), "red");
}

TEST(DrawPointsTest, AnyPointOnAnyPictureKeepsTheSize) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 300; ++i) {
    const auto width = static_cast<int32_t>(1 + random() % 300);
    const auto height = static_cast<int32_t>(1 + random() % 300);
    std::vector<MarkedPoint> points;
    for (int j = 0; j < 5; ++j) {
      points.push_back({static_cast<float>(random() % 400) - 50.0f,
                        static_cast<float>(random() % 400) - 50.0f,
                        static_cast<int32_t>(random())});
    }
    const RgbImage image = Drawn(Grey(width, height), points);
    ASSERT_EQ(image.pixels.size(), size_t{3} * width * height);
    for (int32_t y = 0; y < height; ++y) {
      for (int32_t x = 0; x < width; ++x) ASSERT_NE(Name(At(image, x, y)), "other");
    }
  }
}

TEST(DrawPointsTest, NoPointsChangeNothing) {
  EXPECT_EQ(Drawn(Grey(50, 40), {}).pixels, Grey(50, 40).pixels);
}

}  // namespace
}  // namespace sensorium
