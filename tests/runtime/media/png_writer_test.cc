#include "runtime/media/png_writer.h"

#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/media/image.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::span<const uint8_t> AsBytes(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

RgbImage RandomImage(int32_t width, int32_t height, std::mt19937_64& random) {
  RgbImage image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (uint8_t& v : image.pixels) v = static_cast<uint8_t>(random());
  return image;
}

void ExpectRoundTrip(const RgbImage& image) {
  const auto file = EncodePng(image);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto back = DecodeImage(AsBytes(*file), {});
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->width, image.width);
  EXPECT_EQ(back->height, image.height);
  EXPECT_EQ(back->pixels, image.pixels);
}

TEST(PngWriterTest, RoundTripsEveryPixelAtRandomSizes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 97}, {97, 1}, {3, 2}}) {
    ExpectRoundTrip(RandomImage(width, height, random));
  }
  for (int i = 0; i < 20; ++i) {
    ExpectRoundTrip(RandomImage(1 + static_cast<int32_t>(random() % 130),
                                1 + static_cast<int32_t>(random() % 130), random));
  }
}

TEST(PngWriterTest, CompressesWhatIsSmooth) {
  RgbImage image{640, 480, std::vector<uint8_t>(size_t{3} * 640 * 480)};
  for (size_t i = 0; i < image.pixels.size(); ++i) {
    image.pixels[i] = static_cast<uint8_t>(i / 3 % 640 / 4 + 40 * (i % 3));
  }
  ExpectRoundTrip(image);
  EXPECT_LT(EncodePng(image)->size(), image.pixels.size() / 10);
}

TEST(PngWriterTest, WritesTheSameBytesAndNoChunkBesideThePixels) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const RgbImage image = RandomImage(40, 30, random);
  const std::string file = *EncodePng(image);
  EXPECT_EQ(file, *EncodePng(image));
  // Source: PNG specification, 5.3: length, type, data and CRC of each chunk after the signature.
  std::vector<std::string> types;
  size_t at = 8;
  while (at + 12 <= file.size()) {
    uint32_t length = 0;
    for (size_t i = 0; i < 4; ++i) length = length << 8 | static_cast<uint8_t>(file[at + i]);
    const std::string type = file.substr(at + 4, 4);
    if (types.empty() || types.back() != type) types.push_back(type);
    at += size_t{length} + 12;
  }
  EXPECT_EQ(at, file.size());
  EXPECT_THAT(types, ElementsAre("IHDR", "IDAT", "IEND"));
  EXPECT_EQ(file.substr(24, 2), std::string("\x08\x02")) << "8 bits, truecolour";
}

TEST(PngWriterTest, RefusesABufferThatIsNotThePicture) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  const auto refuse = [](int32_t width, int32_t height, size_t bytes) {
    const absl::Status status = EncodePng({width, height, std::vector<uint8_t>(bytes)}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(std::to_string(width) + "x" + std::to_string(height)),
                      HasSubstr(std::to_string(bytes) + " bytes")));
  };
  refuse(0, 0, 0);
  refuse(0, 5, 0);
  refuse(5, 0, 0);
  refuse(-2, -2, 12);
  refuse(2, 2, 11);
  refuse(2, 2, 13);
  refuse(2, 2, 16);         // RGBA
  refuse(kMost, kMost, 3);  // three times their product is more than an int64_t holds
  refuse(kMost, 1, 0);
}

}  // namespace
}  // namespace sensorium
