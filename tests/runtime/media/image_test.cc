#include "runtime/media/image.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/runtime/media/media_files.h"

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Bytes = std::vector<uint8_t>;

constexpr int32_t kWidth = 61, kHeight = 47;                              // of every good file
constexpr size_t kPngSignature = 8, kIhdrEnd = 33, kIend = 12, kCrc = 4;  // bytes

Bytes ReadImage(const std::string& name) {
  return ReadBytes(std::string(SENSORIUM_TEST_DATA) + "/images/" + name);
}

nlohmann::json Goldens() {
  return nlohmann::json::parse(
      std::ifstream(std::string(SENSORIUM_TEST_DATA) + "/images/files.json"));
}

void ExpectRefused(const Bytes& bytes, const ImageLimits& limits,
                   const testing::Matcher<std::string>& message) {
  for (const absl::Status& status :
       {DecodeImage(bytes, limits).status(), ProbeImage(bytes, limits).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), message);
  }
}

// The most memory that this process ever had in use.
int64_t PeakBytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// Source: PNG specification, annex D (CRC-32 of chunk type and data).
uint32_t Crc32(std::span<const uint8_t> data) {
  uint32_t crc = ~0u;
  for (const uint8_t byte : data) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

uint32_t BigEndian(const uint8_t* b) {
  return uint32_t{b[0]} << 24 | uint32_t{b[1]} << 16 | uint32_t{b[2]} << 8 | b[3];
}

void PutBigEndian(uint8_t* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

// Makes the CRCs of a PNG right again, as far as its chunks can be followed.
void FixCrcs(Bytes& png) {
  for (size_t at = kPngSignature; at + 12 <= png.size();) {
    const size_t length = BigEndian(&png[at]);
    if (length > png.size() - at - 12) return;
    PutBigEndian(&png[at + 8 + length], Crc32(std::span(png).subspan(at + 4, length + 4)));
    at += length + 12;
  }
}

Bytes PngOfSize(const std::string& name, uint32_t width, uint32_t height) {
  Bytes png = ReadImage(name);
  PutBigEndian(&png[16], width);
  PutBigEndian(&png[20], height);
  FixCrcs(png);
  return png;
}

TEST(ImageTest, ReachesTheReferencePixelsOfEveryGoodFile) {
  // From FIPS 180-4's examples: the hash below must be one that can be wrong.
  const std::string_view abc = "abc";
  ASSERT_EQ(Sha256(Bytes(abc.begin(), abc.end())),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  int exact = 0;
  const nlohmann::json goldens = Goldens();
  for (const auto& [name, golden] : goldens["good"].items()) {
    if (name == "cmyk.jpg") continue;  // refused, see below
    SCOPED_TRACE(name);
    const Bytes bytes = ReadImage(name);
    const auto image = DecodeImage(bytes, {});
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ(image->width, golden["width"]);
    EXPECT_EQ(image->height, golden["height"]);
    ASSERT_EQ(image->pixels.size(), size_t{3} * kWidth * kHeight);
    if (golden["exact"]) {
      EXPECT_EQ(Sha256(image->pixels), golden["sha256_rgb"]);
      ++exact;
    }
    if (golden.contains("mean_rgb")) {
      for (size_t c = 0; c < 3; ++c) {
        double sum = 0;
        for (size_t i = c; i < image->pixels.size(); i += 3) sum += image->pixels[i];
        EXPECT_NEAR(sum / (kWidth * kHeight), golden["mean_rgb"][c], golden["exact"] ? 1e-4 : 0.1);
      }
    }
  }
  EXPECT_EQ(exact, 15);
}

TEST(ImageTest, ProbesSizeAndFormatFromTheFirstBytesAlone) {
  for (const auto& [name, format] : {std::pair{"rgb.png", "PNG"},
                                     {"interlaced.png", "PNG"},
                                     {"progressive.jpg", "JPEG"},
                                     {"gray.jpg", "JPEG"},
                                     {"lossy.webp", "WebP"},
                                     {"lossless.webp", "WebP"}}) {
    SCOPED_TRACE(name);
    Bytes bytes = ReadImage(name);
    const auto info = ProbeImage(bytes, {});
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->width, kWidth);
    EXPECT_EQ(info->height, kHeight);
    EXPECT_EQ(info->format, format);
  }
  // The pixels of a PNG are not touched: with nothing after the header it still probes.
  Bytes header = ReadImage("rgb.png");
  header.resize(kIhdrEnd);
  EXPECT_TRUE(ProbeImage(header, {}).ok());
  EXPECT_FALSE(DecodeImage(header, {}).ok());
}

TEST(ImageTest, SaysWhatIsWrongWithEveryBadFile) {
  const std::map<std::string, std::string> expected = {
      {"bad-truncated.png", "the PNG image is damaged"},
      {"bad-not-an-image.png", "neither PNG, JPEG nor WebP (400 bytes)"},
      {"bad-empty.png", "the image is empty: 0 bytes"},
      {"bad-huge-header.png", "60000x60000 pixels; the limit for a side is 32768"},
      {"bad-truncated.jpg", "the JPEG image is damaged"},
      {"bad-bomb.png", "20000x20000 pixels, 400000000 in all; the limit is 64000000"},
  };
  size_t seen = 0;
  const nlohmann::json goldens = Goldens();
  for (const auto& [name, note] : goldens["bad"].items()) {
    SCOPED_TRACE(name);
    const auto image = DecodeImage(ReadImage(name), {});
    if (name == "bad-flipped.webp") {  // an error or a picture
      EXPECT_TRUE(image.ok() || absl::IsInvalidArgument(image.status())) << image.status();
      continue;
    }
    ASSERT_TRUE(expected.contains(name));
    EXPECT_EQ(image.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(image.status().message()), HasSubstr(expected.at(name)));
    ++seen;
  }
  EXPECT_EQ(seen, expected.size());
}

TEST(ImageTest, RefusesCmykAndAnimationsByName) {
  ExpectRefused(ReadImage("cmyk.jpg"), {}, HasSubstr("CMYK"));
  // A WebP's extended header of a 2x3 canvas with the animation flag. Source: WebP container
  // specification, "Extended File Format".
  const std::string_view animation("RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x01\0\0\x02\0\0",
                                   30);
  ExpectRefused(Bytes(animation.begin(), animation.end()), {}, HasSubstr("animation"));
}

TEST(ImageTest, RefusesWhatIsOverALimitWithBothNumbers) {
  const int64_t pixels = int64_t{kWidth} * kHeight;
  struct Case {
    const char* file;
    std::function<void(ImageLimits&, int64_t)> set;
    int64_t fits;  // the smallest limit that lets the file pass
    std::string says;
  };
  const auto side = [](ImageLimits& limits, int64_t n) { limits.max_side = n; };
  const auto area = [](ImageLimits& limits, int64_t n) { limits.max_pixels = n; };
  const auto whole = [](ImageLimits& limits, int64_t n) { limits.max_progressive_pixels = n; };
  const auto size = [](ImageLimits& limits, int64_t n) { limits.max_bytes = n; };
  for (const Case& c : {Case{"rgb.png", size, 341, "341 bytes"},
                        {"lossy.webp", size, 364, "364 bytes"},
                        {"rgb.png", side, kWidth, "61x47"},
                        {"quality90.jpg", side, kWidth, "61x47"},
                        {"lossless.webp", side, kWidth, "61x47"},
                        {"interlaced.png", area, pixels, "2867 in all"},
                        {"gray.jpg", area, pixels, "2867 in all"},
                        {"progressive.jpg", area, pixels, "2867 in all"},
                        {"lossy.webp", area, pixels, "2867 in all"},
                        {"progressive.jpg", whole, pixels, "2867 in all"},
                        {"lossy.webp", whole, pixels, "2867 in all"}}) {
    SCOPED_TRACE(testing::Message() << c.file << " " << c.fits);
    ImageLimits limits;
    c.set(limits, c.fits);
    EXPECT_TRUE(DecodeImage(ReadImage(c.file), limits).ok());
    c.set(limits, c.fits - 1);
    ExpectRefused(ReadImage(c.file), limits,
                  AllOf(HasSubstr(c.says), HasSubstr(std::to_string(c.fits - 1))));
  }
}

TEST(ImageTest, TakesTheWidestLimitsThatAreThere) {
  const ImageLimits limits = {.max_bytes = std::numeric_limits<size_t>::max(),
                              .max_pixels = std::numeric_limits<int64_t>::max(),
                              .max_progressive_pixels = std::numeric_limits<int64_t>::max(),
                              .max_side = std::numeric_limits<int32_t>::max(),
                              .max_jpeg_scans = std::numeric_limits<int32_t>::max()};
  for (const char* name : {"rgb.png", "progressive.jpg", "lossy.webp"}) {
    EXPECT_TRUE(DecodeImage(ReadImage(name), limits).ok()) << name;
  }
}

TEST(ImageTest, CountsTheLongerSideWhicheverItIs) {
  ImageLimits limits;
  ExpectRefused(PngOfSize("rgb.png", 1, 40000), limits,
                AllOf(HasSubstr("1x40000"), HasSubstr("32768")));
  ExpectRefused(PngOfSize("rgb.png", 40000, 1), limits,
                AllOf(HasSubstr("40000x1"), HasSubstr("32768")));
  const uint32_t most = 0x7fffffff;  // PNG's own limit
  ExpectRefused(PngOfSize("rgb.png", most, most), limits, HasSubstr("32768"));
}

TEST(ImageTest, KeepsTheProgressiveLimitFromPicturesDecodedByRow) {
  ImageLimits limits;
  limits.max_progressive_pixels = 1;
  EXPECT_TRUE(DecodeImage(ReadImage("rgb.png"), limits).ok());
  EXPECT_TRUE(DecodeImage(ReadImage("quality90.jpg"), limits).ok());
}

TEST(ImageTest, RefusesMoreScansThanTheLimitWithBothNumbers) {
  const Bytes bytes = ReadImage("progressive.jpg");
  int scans = 0;  // a start-of-scan marker cannot occur inside entropy-coded data
  for (size_t i = 0; i + 1 < bytes.size(); ++i) scans += bytes[i] == 0xff && bytes[i + 1] == 0xda;
  ASSERT_GT(scans, 2);
  ImageLimits limits;
  limits.max_jpeg_scans = scans;
  EXPECT_TRUE(DecodeImage(bytes, limits).ok());
  limits.max_jpeg_scans = scans - 1;
  const absl::Status status = DecodeImage(bytes, limits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("at least " + std::to_string(scans) + " scans; the limit is " +
                        std::to_string(scans - 1)));
}

TEST(ImageTest, SpendsNoMemoryOnPixelsThatAHeaderPromises) {
  // 1.2 GB if the bomb were decoded; 192 MB each for headers just under the limit.
  const int64_t before = PeakBytes();
  EXPECT_FALSE(DecodeImage(ReadImage("bad-bomb.png"), {}).ok());
  EXPECT_FALSE(DecodeImage(PngOfSize("rgb.png", 8000, 8000), {}).ok());
  Bytes jpeg = ReadImage("quality90.jpg");
  const std::array<uint8_t, 4> size = {0, kHeight, 0, kWidth};  // of the frame header
  const auto at = std::search(jpeg.begin(), jpeg.end(), size.begin(), size.end());
  ASSERT_NE(at, jpeg.end());
  at[0] = at[2] = 8000 >> 8;
  at[1] = at[3] = 8000 & 255;
  ASSERT_EQ(ProbeImage(jpeg, {})->height, 8000);
  EXPECT_FALSE(DecodeImage(jpeg, {}).ok());
  EXPECT_LT(PeakBytes() - before, 100 << 20);
}

TEST(ImageTest, ForgivesDamageBesideThePixels) {
  const auto png = DecodeImage(ReadImage("rgb.png"), {});
  Bytes text = ReadImage("rgb.png");
  const std::string_view chunk("\0\0\0\x04tEXta\0bc\1\2\3\4", 16);  // the last four: a wrong CRC
  text.insert(text.end() - kIend, chunk.begin(), chunk.end());
  text.insert(text.begin() + kIhdrEnd, chunk.begin(), chunk.end());
  const auto forgiven = DecodeImage(text, {});
  ASSERT_TRUE(forgiven.ok()) << forgiven.status();
  EXPECT_EQ(forgiven->pixels, png->pixels);

  const auto jpeg = DecodeImage(ReadImage("quality90.jpg"), {});
  Bytes padded = ReadImage("quality90.jpg");
  padded.insert(padded.begin() + 4 + padded[5], 7, 0);  // zeros after the first segment
  padded.insert(padded.end(), 9, 0x55);                 // and bytes after the end of the image
  const auto kept = DecodeImage(padded, {});
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->pixels, jpeg->pixels);
}

TEST(ImageTest, RefusesAPngWhosePixelsFailTheirCrc) {
  Bytes png = ReadImage("rgb.png");
  png[png.size() - kIend - 1] ^= 1;  // last byte of the last IDAT's CRC
  const absl::Status status = DecodeImage(png, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

class SmallImageTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Formats, SmallImageTest,
                         testing::Values("rgb.png", "interlaced.png", "palette-transparent.png",
                                         "gray16.png", "quality90.jpg", "progressive.jpg",
                                         "lossless.webp", "lossy.webp"));

// What is cut off may be missed or not, but never made up: no grey rows, no stale memory.
TEST_P(SmallImageTest, GivesAnErrorOrTheWholePictureForEveryPrefix) {
  const Bytes bytes = ReadImage(GetParam());
  const auto whole = DecodeImage(bytes, {});
  ASSERT_TRUE(whole.ok());
  for (size_t n = 0; n < bytes.size(); ++n) {
    const Bytes prefix(bytes.begin(), bytes.begin() + n);  // its own buffer, so that ASan sees ends
    const auto image = DecodeImage(prefix, {});
    if (!image.ok()) {
      EXPECT_EQ(image.status().code(), absl::StatusCode::kInvalidArgument) << image.status();
      continue;
    }
    EXPECT_EQ(image->pixels, whole->pixels) << n << " of " << bytes.size() << " bytes";
    EXPECT_GE(n + kCrc, bytes.size()) << "more than the last chunk's CRC is missing";
  }
}

TEST_P(SmallImageTest, SurvivesRandomDamage) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const Bytes bytes = ReadImage(GetParam());
  ImageLimits limits;  // small, so that damaged sizes cost little
  limits.max_pixels = 1 << 18;
  limits.max_progressive_pixels = 1 << 16;
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    Bytes damaged = bytes;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      damaged[random() % damaged.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    }
    // Every other PNG gets right CRCs, or its inflater would never see the damage.
    if (round % 2 == 0 && damaged[1] == 'P') FixCrcs(damaged);
    const auto image = DecodeImage(damaged, limits);
    if (!image.ok()) {
      EXPECT_EQ(image.status().code(), absl::StatusCode::kInvalidArgument) << image.status();
      ++refused;
      continue;
    }
    EXPECT_LE(int64_t{image->width} * image->height, limits.max_pixels);
    ASSERT_EQ(image->pixels.size(), size_t{3} * image->width * image->height);
    // Reads every byte, so that a sanitizer sees what was never written.
    EXPECT_GE(std::accumulate(image->pixels.begin(), image->pixels.end(), int64_t{0}), 0);
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace sensorium
