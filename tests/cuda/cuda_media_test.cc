// A recording and a picture on the emulated CUDA device as a job takes them through it, unit by
// unit, beside what the host makes of the same media. Executed by emulation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "runtime/engine/device_media.h"
#include "runtime/media/log_mel.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/reference/media.h"
#include "tests/runtime/cpu/random_matrix.h"

namespace sensorium {
namespace {

const std::string kData = SENSORIUM_TEST_DATA;
constexpr DType kF32 = DType::kFloat32;

// Small buffers: everything is done in many pieces.
CudaBackendOptions Small() {
  return {.upload_bytes = 50'000, .scratch_bytes = 100'000, .wait_after_each_op = true};
}

std::unique_ptr<Backend> Open(const CudaBackendOptions& options) {
  auto backend = CudaBackend::Create(options);
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::vector<float> ReadSpeech() {
  std::ifstream file(kData + "/audio/reference-16k.s16le", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  CHECK(!bytes.empty());
  std::vector<float> samples(bytes.size() / 2);
  for (size_t i = 0; i < samples.size(); ++i) {
    int16_t v;
    std::memcpy(&v, bytes.data() + 2 * i, 2);
    samples[i] = v / 32768.0f;
  }
  return samples;
}

// All of the spectrogram, of a recording that was listened to `units` at a time.
Matrix Spectrogram(Backend& be, std::vector<float> samples, int64_t zeros, int32_t mels,
                   int32_t units) {
  const LogMelExtractor extractor(mels);
  const std::vector<float> filters = SlaneyMelFilters(mels, 400);
  MediaOps& ops = *be.media_ops();
  const auto tables =
      ops.MakeLogMel({.window = extractor.window(), .filters = filters, .hop = 160});
  DeviceRecording recording(std::move(samples), zeros, *tables, /*unit_frames=*/50);
  Matrix state(1, DeviceRecording::kStateBytes / sizeof(float), kF32);
  while (recording.units_left() > 0) {
    recording.Listen(ops, std::min(units, recording.units_left()), state.view().bytes());
  }
  Matrix y(recording.frames() + 5, mels, kF32);
  recording.LogMel(ops, y.view(), 0, recording.frames(), state.view().bytes());
  be.Wait();  // the recording must stay until the device has said how loud it is
  for (int64_t m = 0; m < mels; ++m) EXPECT_EQ(y.Get(recording.frames() + 4, m), 0.0f);
  return y;
}

TEST(CudaMediaTest, ASpokenSentenceHasTheHostsSpectrogram) {
  std::vector<float> samples = ReadSpeech();
  samples.resize(24'000);
  const int64_t zeros = 16'000;
  const MelSpectrogram mel = LogMelExtractor(80).Compute(samples, zeros);
  const Matrix y = Spectrogram(*Open({.wait_after_each_op = true}), samples, zeros, 80, 1000);
  double worst = 0;
  for (int64_t t = 0; t < mel.frames; ++t) {
    const float* row = mel.data.data() + t * 80;
    const float most = *std::max_element(row, row + 80);
    for (int64_t m = 0; m < 80; ++m) {
      const double off = std::fabs(y.Get(t, m) - row[m]);
      ASSERT_LE(off, reference::LogMelTolerance(4 * (most - row[m])))
          << "frame " << t << ", mel " << m;
      worst = std::max(worst, off);
    }
  }
  EXPECT_GT(worst, 0);  // it is another way to these numbers
  // Small buffers and another cut: the same bits.
  const Matrix cut = Spectrogram(*Open(Small()), samples, zeros, 80, 1);
  for (int64_t t = 0; t < y.rows(); ++t) EXPECT_TRUE(cut.SameRowBits(t, y, t)) << t;
}

RgbImage RandomImage(int32_t width, int32_t height) {
  RgbImage image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  std::mt19937 random(static_cast<uint32_t>(width * 1000 + height));
  for (uint8_t& v : image.pixels) v = static_cast<uint8_t>(random() >> 5);
  return image;
}

// All crops' patches [crops * patches, patch_dim].
Matrix Patches(Backend& be, const RgbImage& image, const MolmoImageLayout& layout,
               const MolmoImageConfig& config) {
  const DevicePicture picture(image, layout, config);
  std::vector<float> state(DevicePicture::StateBytes(config) / sizeof(float), std::nanf(""));
  auto* bytes = reinterpret_cast<std::byte*>(state.data());
  MediaOps& ops = *be.media_ops();
  for (int32_t u = 0; u < picture.units(); ++u) picture.Resize(ops, u, u + 1, bytes);
  const int64_t patches = int64_t{config.patches_per_side()} * config.patches_per_side();
  Matrix y(layout.crops * patches, int64_t{3} * config.patch_size * config.patch_size, kF32);
  for (int32_t c = 0; c < layout.crops; c += 2) {
    const int64_t end = std::min<int64_t>(c + 2, layout.crops);
    picture.CutCrops(ops, c, bytes, y.view().Rows(c * patches, end * patches));
  }
  return y;
}

TEST(CudaMediaTest, PicturesOfAnyShapeHaveTheHostsPatches) {
  MolmoImageConfig config;  // a small one of the published shape
  config.crop_size = 56;
  config.patch_size = 7;
  config.tokens_per_side = 4;
  config.max_crops = 6;
  config.overlap_left = config.overlap_right = 2;
  const auto whole = Open({.wait_after_each_op = true}), small = Open(Small());
  for (const auto& [width, height] :
       {std::pair<int32_t, int32_t>{1, 1}, {56, 56}, {301, 97}, {40, 133}, {57, 20}, {9, 200}}) {
    SCOPED_TRACE(testing::Message() << width << "x" << height);
    const RgbImage image = RandomImage(width, height);
    const auto host = PreprocessMolmoImage(image, config);
    ASSERT_TRUE(host.ok()) << host.status();
    const Matrix y = Patches(*whole, image, host->layout, config);
    ASSERT_EQ(y.rows() * y.columns(), static_cast<int64_t>(host->pixels.size()));
    for (int64_t i = 0; i < y.rows() * y.columns(); ++i) {
      // Roundings of sums in [0, 1], and what is fused here and not there, over the least std.
      ASSERT_NEAR(y.Get(i / y.columns(), i % y.columns()), host->pixels[i], 1e-6) << i;
    }
    const Matrix cut = Patches(*small, image, host->layout, config);
    for (int64_t r = 0; r < y.rows(); ++r) ASSERT_TRUE(cut.SameRowBits(r, y, r)) << r;
  }
}

// More than one strip goes up, and what is set aside for the canvases is what they take.
TEST(CudaMediaTest, ALargePictureIsResizedInUnits) {
  MolmoImageConfig config;
  config.max_crops = 2;
  const RgbImage image = RandomImage(1500, 1100);
  const auto layout = LayOutMolmoImage(image.width, image.height, config);
  ASSERT_TRUE(layout.ok());
  const DevicePicture picture(image, *layout, config);
  EXPECT_EQ(picture.units(), 2);  // of 4 MiB
  const MolmoCanvases canvases = PlaceMolmoImage(image.width, image.height, *layout, config);
  EXPECT_GE(DevicePicture::StateBytes(config),
            sizeof(float) * 3 * (336 * 336 + size_t(canvases.tiles.width) * canvases.tiles.height));
  const size_t filters = DevicePicture::FilterBytes(image.width, image.height, *layout, config);
  size_t numbers = 0;
  for (const MolmoCanvas* c : {&canvases.global, &canvases.tiles}) {
    for (const auto& [in, out] :
         {std::pair(image.width, c->size.width), std::pair(image.height, c->size.height)}) {
      const ResizeFilter f = MakeResizeFilter(in, out);
      numbers += f.first.size() + f.weights_at.size() + f.weights.size();
    }
  }
  EXPECT_GE(filters, numbers * sizeof(float));
  EXPECT_LE(filters, 2 * numbers * sizeof(float));
}

}  // namespace
}  // namespace sensorium
