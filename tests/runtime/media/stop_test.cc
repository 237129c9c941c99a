// Whoever stops wanting a picture or a recording stops its decoding within a row or a block.
#include <random>

#include "gtest/gtest.h"
#include "runtime/media/audio.h"
#include "runtime/media/image.h"
#include "runtime/media/log_mel.h"
#include "runtime/media/resize.h"
#include "tests/runtime/media/media_files.h"
#include "webp/encode.h"

namespace sensorium {
namespace {

std::vector<uint8_t> ReadAudio(const std::string& name) {
  return ReadBytes(SENSORIUM_TEST_DATA "/audio/" + name);
}
std::vector<uint8_t> ReadImage(const std::string& name) {
  return ReadBytes(SENSORIUM_TEST_DATA "/images/" + name);
}

// True from the n-th question on; counts them.
struct StopAt {
  int n;
  int asked = 0;
  Stop stop() {
    return [this] { return ++asked >= n; };
  }
};

TEST(StopTest, ARecordingsDecodingEndsAtTheNextBlock) {
  StopAt third{3};
  const auto samples = DecodeAudio(ReadAudio("pcm16-44k-stereo.wav"), {}, third.stop());
  EXPECT_EQ(samples.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(third.asked, 3);
}

TEST(StopTest, APicturesDecodingEndsAtTheNextRow) {
  for (const char* name : {"rgb.png", "interlaced.png", "quality90.jpg", "progressive.jpg"}) {
    SCOPED_TRACE(name);
    StopAt fifth{5};
    const auto image = DecodeImage(ReadImage(name), {}, fifth.stop());
    EXPECT_EQ(image.status().code(), absl::StatusCode::kCancelled) << image.status();
    EXPECT_EQ(fifth.asked, 5);
  }
}

TEST(StopTest, AWebpsDecodingEndsWithinSomeRows) {
  constexpr int kSide = 256;
  std::mt19937 random(1);
  std::vector<uint8_t> noise(3 * kSide * kSide);
  for (uint8_t& byte : noise) byte = static_cast<uint8_t>(random());
  for (const bool lossless : {true, false}) {
    SCOPED_TRACE(lossless);
    uint8_t* file = nullptr;
    const size_t size =
        lossless ? WebPEncodeLosslessRGB(noise.data(), kSide, kSide, 3 * kSide, &file)
                 : WebPEncodeRGB(noise.data(), kSide, kSide, 3 * kSide, /*quality=*/90, &file);
    ASSERT_GT(size, size_t{10000});
    const std::vector<uint8_t> bytes(file, file + size);
    WebPFree(file);
    StopAt fifth{5};
    EXPECT_EQ(DecodeImage(bytes, {}, fifth.stop()).status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(fifth.asked, 5);
    const auto whole = DecodeImage(bytes, {}, {});
    ASSERT_TRUE(whole.ok()) << whole.status();
    if (lossless) {
      EXPECT_EQ(whole->pixels, noise);
    }
    EXPECT_EQ(DecodeImage(std::span(bytes).first(size - 500), {}, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(StopTest, ResizingAndSpectraEndEmpty) {
  StopAt second{2};
  const RgbImage image{4, 4, std::vector<uint8_t>(48, 7)};
  EXPECT_TRUE(ResizeAntialias(image, {2, 2}, second.stop()).empty());
  second.asked = 0;
  EXPECT_EQ(LogMelExtractor(80).Compute(std::vector<float>(160000, 0.5f), 0, second.stop()).frames,
            0);
}

TEST(StopTest, SamplesAreAskedForBeforeTheyAreAllocated) {
  size_t asked = 0;
  const auto samples = DecodeAudio(ReadAudio("vorbis-44k.ogg"), {}, {}, [&](size_t bytes) {
    asked = std::max(asked, bytes);
    return absl::OkStatus();
  });
  ASSERT_TRUE(samples.ok());
  EXPECT_GE(asked, samples->capacity() * sizeof(float));
  const auto refused = DecodeAudio(ReadAudio("vorbis-44k.ogg"), {}, {}, [](size_t) {
    return absl::ResourceExhaustedError("no");
  });
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace sensorium
