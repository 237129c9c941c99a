#include "runtime/media/log_mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/media/audio.h"
#include "runtime/media/real_fft.h"
#include "tests/reference/media.h"
#include "tests/runtime/media/media_files.h"

namespace sensorium {
namespace {

const std::string kData = SENSORIUM_TEST_DATA;
constexpr int64_t kWindowSamples = 30 * kAudioSampleRate;

// Of values that span 2; 1e-4 would be a bug.
constexpr double kTolerance = 2e-5;

// The reference transforms in float32: every band of a frame gets noise of some 2^-24 of the
// loudest band's amplitude. `depth` is how far a band lies below that one, as log10 of power, so
// its relative error grows with 10^(depth / 2). Measured on these files: the reference is up
// to 5.3e-5 off the same formulas in double, ours 9e-8, as the same test asserts.
double ToleranceAtDepth(double depth) {
  return std::min(1e-4, 1e-6 + 1e-7 * std::pow(10, depth / 2));
}

nlohmann::json ReadJson(const std::string& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

std::vector<float> ReadSamples(const std::string& path) {
  auto samples = DecodeAudio(ReadBytes(path), {});
  CHECK(samples.ok()) << samples.status();
  return *std::move(samples);
}

std::vector<float> ReadReference() {
  const std::vector<uint8_t> bytes = ReadBytes(kData + "/audio/reference-16k.s16le");
  std::vector<float> samples(bytes.size() / 2);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i] = static_cast<int16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8) / 32768.0f;
  }
  return samples;
}

std::vector<float> RandomSamples(int64_t size, std::mt19937_64& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> samples(size);
  for (float& v : samples) v = uniform(random);
  return samples;
}

// The front end as its formulas read, in double: [frames, mels].
std::vector<double> NaiveLogMel(const std::vector<float>& samples, int32_t mels, int32_t n_fft,
                                int32_t hop) {
  const std::vector<float> filters = SlaneyMelFilters(mels, n_fft);
  std::vector<float> window(n_fft);  // periodic Hann; the reference too keeps it in float32
  for (int32_t i = 0; i < n_fft; ++i) {
    window[i] = static_cast<float>(0.5 * (1 - std::cos(2 * std::numbers::pi * i / n_fft)));
  }
  const reference::Array energies = reference::MelEnergies(
      {.samples = samples}, {.window = window, .filters = filters, .hop = hop});
  return reference::LogMel(energies, reference::Loudest(energies)).values;
}

void ExpectSums(const MelSpectrogram& mel, const nlohmann::json& golden) {
  double sum = 0, square_sum = 0;
  for (const float v : mel.data) sum += v, square_sum += double{v} * v;
  const auto [least, most] = std::minmax_element(mel.data.begin(), mel.data.end());
  EXPECT_NEAR(*least, golden["min"], kTolerance);
  EXPECT_NEAR(*most, golden["max"], kTolerance);
  EXPECT_NEAR(sum, golden["sum"], 1e-6 * std::abs(golden["sum"].get<double>()));
  EXPECT_NEAR(square_sum, golden["square_sum"], 1e-6 * golden["square_sum"].get<double>());
}

struct Checkpoint {
  const char* folder;
  int32_t mels;
};

class WhisperMelTest : public testing::TestWithParam<Checkpoint> {};

INSTANTIATE_TEST_SUITE_P(Checkpoints, WhisperMelTest,
                         testing::Values(Checkpoint{"whisper-v3", 128},
                                         Checkpoint{"whisper-en", 80}),
                         [](const auto& info) { return "mels" + std::to_string(info.param.mels); });

TEST_P(WhisperMelTest, EqualsTheReferenceOnItsChirp) {
  const auto [folder, mels] = GetParam();
  const std::string dir = kData + "/" + folder;
  EXPECT_EQ(ReadJson(dir + "/preprocessor_config.json")["feature_size"], mels);
  const std::vector<float> samples = ReadSamples(dir + "/chirp.wav");
  const MelSpectrogram mel =
      LogMelExtractor(mels).Compute(samples, kWindowSamples - static_cast<int64_t>(samples.size()));
  ASSERT_EQ(mel.mels, mels);
  ASSERT_EQ(mel.frames, 3000);
  ASSERT_EQ(mel.data.size(), size_t{3000} * mels);

  const nlohmann::json golden = ReadJson(dir + "/cases.json")["mel"];
  ExpectSums(mel, golden);
  const auto& rows = golden["rows_0_40_frames_100_to_107"];
  for (size_t r = 0; r < 2; ++r) {
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_NEAR(mel.data[(100 + i) * mels + 40 * r], rows[r][i], kTolerance);
    }
  }
}

// The tensor of the reference, [mels, 600]. Format: huggingface/safetensors, README "Format".
TEST_P(WhisperMelTest, EqualsTheReferenceInEveryBandOfSixSeconds) {
  const auto [folder, mels] = GetParam();
  const std::string dir = kData + "/" + folder;
  const std::vector<uint8_t> file = ReadBytes(dir + "/stages.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  const auto header = nlohmann::json::parse(file.begin() + 8, file.begin() + 8 + header_bytes);
  const auto& tensor = header["mel_first_600_frames"];
  ASSERT_EQ(tensor["shape"], (std::vector<int64_t>{mels, 600}));
  std::vector<float> expected(size_t{600} * mels);
  std::memcpy(expected.data(),
              file.data() + 8 + header_bytes + tensor["data_offsets"][0].get<size_t>(),
              expected.size() * sizeof(float));

  const std::vector<float> samples = ReadSamples(dir + "/chirp.wav");
  const MelSpectrogram mel =
      LogMelExtractor(mels).Compute(samples, kWindowSamples - static_cast<int64_t>(samples.size()));
  std::vector<float> beginning = samples;
  beginning.resize(602 * 160);  // zeros follow the chirp; far from this end, nothing is reflected
  const std::vector<double> exact = NaiveLogMel(beginning, mels, 400, 160);
  for (int64_t t = 0; t < 600; ++t) {
    const float* row = mel.data.data() + t * mels;
    const float loudest = *std::max_element(row, row + mels);
    for (int32_t m = 0; m < mels; ++m) {
      ASSERT_NEAR(row[m], expected[m * 600 + t], ToleranceAtDepth(4 * (loudest - row[m])))
          << "frame " << t << ", mel " << m;
      ASSERT_NEAR(row[m], exact[t * mels + m], 5e-7) << "frame " << t << ", mel " << m;
    }
  }
}

TEST_P(WhisperMelTest, EqualsTheReferenceOnTheSpokenSentence) {
  const int32_t mels = GetParam().mels;
  const std::vector<float> samples = ReadReference();
  const MelSpectrogram mel =
      LogMelExtractor(mels).Compute(samples, kWindowSamples - static_cast<int64_t>(samples.size()));
  const nlohmann::json golden =
      ReadJson(kData + "/audio/files.json")["log_mel_of_reference_16k"][std::to_string(mels)];
  ExpectSums(mel, golden);
  const std::vector<int64_t> frames = {0, 1, 50, 100, 200};
  const auto& rows = golden["frames_0_1_50_100_200"];
  ASSERT_EQ(rows.size(), frames.size());
  for (size_t f = 0; f < frames.size(); ++f) {
    for (int32_t m = 0; m < mels; ++m) {
      EXPECT_NEAR(mel.data[frames[f] * mels + m], rows[f][m], kTolerance) << frames[f] << " " << m;
    }
  }
}

// As the definition reads, at bins of 40 Hz. Source: librosa.filters.mel.
TEST_P(WhisperMelTest, HasSlaneysFilters) {
  const int32_t mels = GetParam().mels, bins = 201;
  const std::vector<float> filters = SlaneyMelFilters(mels, 400);
  ASSERT_EQ(filters.size(), size_t{bins} * mels);
  std::vector<double> hz(mels + 2);  // the triangles' feet and tips
  for (int32_t i = 0; i < mels + 2; ++i) {
    const double mel = 45.245640471924965 * i / (mels + 1);  // of 8 kHz
    hz[i] = mel < 15 ? 200 * mel / 3 : 1000 * std::exp(std::log(6.4) / 27 * (mel - 15));
  }
  EXPECT_NEAR(hz.back(), 8000, 1e-9);
  for (int32_t m = 0; m < mels; ++m) {
    double area = 0;
    for (int32_t k = 0; k < bins; ++k) {
      const double up = (40.0 * k - hz[m]) / (hz[m + 1] - hz[m]);
      const double down = (hz[m + 2] - 40.0 * k) / (hz[m + 2] - hz[m + 1]);
      const double weight = std::max(0.0, std::min(up, down)) * 2 / (hz[m + 2] - hz[m]);
      EXPECT_NEAR(filters[m * bins + k], weight, 4e-9) << m << " " << k;
      area += 40 * double{filters[m * bins + k]};
    }
    // Wide triangles have the area 1; the narrow ones of low bands lie between the bins.
    if (hz[m + 2] - hz[m] > 400) {
      EXPECT_NEAR(area, 1, 0.02) << m;
    }
  }
}

TEST(LogMelTest, EqualsTheNaiveFormulasAtAnySize) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  struct Shape {
    int32_t mels, n_fft, hop;
  };
  for (const auto& [mels, n_fft, hop] :
       {Shape{80, 400, 160}, {128, 400, 160}, {7, 64, 16}, {5, 98, 33}, {3, 2, 1}}) {
    const int64_t size = n_fft + static_cast<int64_t>(random() % 2000);
    SCOPED_TRACE(testing::Message() << mels << " mels, n_fft " << n_fft << ", " << size);
    const std::vector<float> samples = RandomSamples(size, random);
    const MelSpectrogram mel = LogMelExtractor(mels, n_fft, hop).Compute(samples);
    const std::vector<double> expected = NaiveLogMel(samples, mels, n_fft, hop);
    ASSERT_EQ(mel.frames, size / hop);
    ASSERT_EQ(mel.data.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(mel.data[i], expected[i], 5e-7) << "frame " << i / mels << ", mel " << i % mels;
    }
  }
}

TEST(LogMelTest, TakesZerosAfterwardsAsIfTheyWereStored) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const LogMelExtractor extractor(80);
  for (const int64_t size : {0, 1, 100, 199, 200, 201, 399, 400, 4321}) {
    for (const int64_t zeros : {0, 1, 159, 160, 201, 1000, 16000}) {
      SCOPED_TRACE(testing::Message() << size << " samples, " << zeros << " zeros");
      std::vector<float> samples = RandomSamples(size, random);
      const MelSpectrogram promised = extractor.Compute(samples, zeros);
      samples.resize(size + zeros);
      const MelSpectrogram stored = extractor.Compute(samples);
      EXPECT_EQ(promised.frames, (size + zeros) / 160);
      EXPECT_EQ(promised.frames, stored.frames);
      EXPECT_EQ(promised.data, stored.data);
    }
  }
}

TEST(LogMelTest, PadsWithZerosWhatIsTooShortToReflect) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const LogMelExtractor extractor(80);
  for (const int64_t size : {160, 161, 200, 201}) {  // 201 samples are the fewest that reflect
    std::vector<float> samples = RandomSamples(size, random);
    const MelSpectrogram mel = extractor.Compute(samples);
    samples.resize(201);
    ASSERT_EQ(mel.frames, 1);
    const std::vector<double> expected = NaiveLogMel(samples, 80, 400, 160);
    for (size_t i = 0; i < 80; ++i) ASSERT_NEAR(mel.data[i], expected[i], 5e-7) << size;
  }
  EXPECT_TRUE(extractor.Compute({}).data.empty());
  EXPECT_EQ(extractor.Compute(RandomSamples(159, random)).frames, 0);
}

TEST(LogMelTest, GivesSilenceTheFloorEverywhere) {
  const MelSpectrogram mel = LogMelExtractor(80).Compute({}, kWindowSamples);
  ASSERT_EQ(mel.data.size(), size_t{3000} * 80);
  // (log10(1e-10) + 4) / 4
  EXPECT_TRUE(std::all_of(mel.data.begin(), mel.data.end(), [](float v) { return v == -1.5f; }));
}

TEST(LogMelTest, LiftsTheFloorUnderTheLoudestFrameOfAll) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<float> samples(32000);
  const std::vector<float> burst = RandomSamples(800, random);
  std::copy(burst.begin(), burst.end(), samples.begin() + 16000);
  const MelSpectrogram mel = LogMelExtractor(128).Compute(samples);
  const auto [least, most] = std::minmax_element(mel.data.begin(), mel.data.end());
  EXPECT_NEAR(*most - *least, 2, 1e-6);
  EXPECT_EQ(mel.data[0], *least) << "a second before the burst";
}

TEST(LogMelTest, PutsATonesEnergyInTheBandThatHoldsIt) {
  const int32_t mels = 80;
  const std::vector<float> filters = SlaneyMelFilters(mels, 400);
  for (const int32_t bin : {5, 25, 50, 120, 190}) {  // of 40 Hz
    std::vector<float> samples(16000);
    for (size_t i = 0; i < samples.size(); ++i) {
      samples[i] = static_cast<float>(0.5 * std::sin(2 * std::numbers::pi * 40 * bin * i / 16000));
    }
    const MelSpectrogram mel = LogMelExtractor(mels).Compute(samples);
    const auto row = mel.data.begin() + 50 * mels;
    const auto loudest = std::max_element(row, row + mels) - row;
    int32_t expected = 0;
    for (int32_t m = 0; m < mels; ++m) {
      if (filters[m * 201 + bin] > filters[expected * 201 + bin]) expected = m;
    }
    EXPECT_NEAR(static_cast<double>(loudest), expected, 1) << 40 * bin << " Hz";
  }
}

// Every radix: 2 and 4, odd primes small and large, and no pass at all (n = 2).
TEST(RealFftTest, EqualsTheSumItStandsForAtEveryEvenSize) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<int32_t> sizes = {400, 512, 486, 202, 254, 450};
  for (int32_t n = 2; n <= 100; n += 2) sizes.push_back(n);
  for (const int32_t n : sizes) {
    const RealFft fft(n);
    ASSERT_EQ(fft.num_bins(), n / 2 + 1);
    std::vector<double> in(n), power(fft.num_bins());
    for (double& v : in) v = uniform(random);
    std::vector<RealFft::Complex> scratch(fft.scratch_size());
    fft.PowerSpectrum(in, power, scratch);
    for (int32_t k = 0; k < fft.num_bins(); ++k) {
      double re = 0, im = 0;
      for (int32_t i = 0; i < n; ++i) {
        const double angle = 2 * std::numbers::pi * (int64_t{k} * i % n) / n;
        re += in[i] * std::cos(angle);
        im -= in[i] * std::sin(angle);
      }
      ASSERT_NEAR(power[k], re * re + im * im, 1e-11 * n) << "n " << n << ", bin " << k;
    }
  }
}

}  // namespace
}  // namespace sensorium
