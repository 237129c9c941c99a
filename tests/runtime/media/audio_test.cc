#include "runtime/media/audio.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <numbers>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/runtime/media/media_files.h"

// Known to the leak checker: libsndfile 1.2.0 loses its Vorbis decoder (6 kB) when a file's setup
// header is damaged or missing. A file that we forgot to close would lose more than that.
extern "C" const char* __lsan_default_suppressions() { return "leak:libvorbis.so"; }

namespace sensorium {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Bytes = std::vector<uint8_t>;

Bytes ReadAudio(const std::string& name) {
  return ReadBytes(std::string(SENSORIUM_TEST_DATA) + "/audio/" + name);
}

nlohmann::json Goldens() {
  return nlohmann::json::parse(
      std::ifstream(std::string(SENSORIUM_TEST_DATA) + "/audio/files.json"));
}

// Appends an integer of so many bytes, the lowest first.
void Put(Bytes& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to.push_back(static_cast<uint8_t>(value >> 8 * i));
}

// WAVE format tags. Source: Microsoft's mmreg.h.
enum Tag : uint16_t { kPcm = 1, kFloat = 3, kALaw = 6, kMuLaw = 7, kExtensible = 0xfffe };

struct WavFormat {
  Tag tag = kPcm;
  int bits = 16;
  int32_t rate = kAudioSampleRate;
  int channels = 1;
};

Bytes Wav(const WavFormat& format, const Bytes& data) {
  const int frame_bytes = format.channels * format.bits / 8;
  const auto put_text = [](Bytes& to, std::string_view s) {
    to.insert(to.end(), s.begin(), s.end());
  };
  Bytes chunk;
  put_text(chunk, "WAVEfmt ");
  Put(chunk, format.tag == kExtensible ? 40 : 18, 4);
  Put(chunk, format.tag, 2);
  Put(chunk, format.channels, 2);
  Put(chunk, format.rate, 4);
  Put(chunk, int64_t{format.rate} * frame_bytes, 4);
  Put(chunk, frame_bytes, 2);
  Put(chunk, format.bits, 2);
  if (format.tag == kExtensible) {
    Put(chunk, 22, 2);
    Put(chunk, format.bits, 2);
    Put(chunk, 0, 4);  // speakers: not said
    Put(chunk, kPcm, 2);
    put_text(chunk, std::string_view("\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71", 14));
  } else {
    Put(chunk, 0, 2);
  }
  put_text(chunk, "data");
  Put(chunk, data.size(), 4);
  chunk.insert(chunk.end(), data.begin(), data.end());
  if (data.size() % 2 == 1) chunk.push_back(0);
  Bytes file;
  put_text(file, "RIFF");
  Put(file, chunk.size(), 4);
  file.insert(file.end(), chunk.begin(), chunk.end());
  return file;
}

Bytes Pcm16(const std::vector<int16_t>& samples) {
  Bytes data;
  for (const int16_t v : samples) Put(data, static_cast<uint16_t>(v), 2);
  return data;
}

Bytes Float32(const std::vector<float>& samples) {
  Bytes data;
  for (const float v : samples) Put(data, std::bit_cast<uint32_t>(v), 4);
  return data;
}

std::vector<float> Decode(const Bytes& bytes) {
  const auto samples = DecodeAudio(bytes, {});
  CHECK(samples.ok()) << samples.status();
  return *samples;
}

void ExpectRefused(const Bytes& bytes, const AudioLimits& limits,
                   const testing::Matcher<std::string>& message) {
  const absl::Status status = DecodeAudio(bytes, limits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), message);
}

// [samples] in [-1, 1]: what the golden files were made from.
std::vector<float> Reference() {
  const Bytes bytes = ReadAudio("reference-16k.s16le");
  std::vector<float> samples;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    samples.push_back(static_cast<int16_t>(bytes[i] | bytes[i + 1] << 8) / 32768.0f);
  }
  return samples;
}

// a is scale * b but for noise this many dB below it. The scale is the best one.
double SignalToNoise(const std::vector<float>& a, const std::vector<float>& b, double* scale) {
  double ab = 0, bb = 0, noise = 0;
  const size_t n = std::min(a.size(), b.size());
  for (size_t i = 0; i < n; ++i) ab += double{a[i]} * b[i], bb += double{b[i]} * b[i];
  *scale = ab / bb;
  for (size_t i = 0; i < n; ++i) noise += std::pow(a[i] - *scale * b[i], 2);
  return 10 * std::log10(*scale * *scale * bb / (noise + 1e-30));
}

TEST(AudioTest, HearsTheSameSentenceInEveryFormat) {
  struct Expected {
    double least_db;  // lossless: the resampler and 16 bits; lossy: what the codec throws away
    double scale;     // of the channels' mean: the files with several have quieter copies
  };
  const std::map<std::string, Expected> expected = {
      {"pcm16-16k-mono.wav", {200, 1}},
      {"pcm16-44k-stereo.wav", {65, 0.95}},
      {"pcm24-48k.wav", {70, 1}},
      {"float-22k.wav", {70, 1}},
      {"u8-8k.wav", {19, 0.99}},
      {"ulaw-8k.wav", {21, 0.99}},
      {"flac-44k-stereo.flac", {65, 0.95}},
      {"vorbis-44k.ogg", {20, 0.99}},
      {"opus-48k.ogg", {19, 0.99}},
      {"mp3-44k.mp3", {32, 1}},
      {"six-channels.wav", {70, 0.75}},
  };
  const std::vector<float> reference = Reference();
  const nlohmann::json goldens = Goldens();
  EXPECT_EQ(goldens["good"].size(), expected.size());
  for (const auto& [name, golden] : goldens["good"].items()) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(expected.contains(name));
    const auto samples = DecodeAudio(ReadAudio(name), {});
    ASSERT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ(static_cast<int64_t>(samples->size()),
              std::llround(golden["frames"].get<double>() * 16000 / golden["rate"].get<double>()));
    double scale = 0;
    EXPECT_GE(SignalToNoise(*samples, reference, &scale), expected.at(name).least_db);
    EXPECT_NEAR(scale, expected.at(name).scale, 0.006);
  }
}

TEST(AudioTest, SaysWhatIsWrongWithEveryBadFile) {
  const std::map<std::string, std::string> expected = {
      {"bad-text.wav", "the recording (13 bytes) cannot be read as audio"},
      {"bad-empty.wav", "the recording is empty: 0 bytes"},
      {"bad-header-only.wav", "the recording has no samples"},
      {"bad-nan.wav", "a sample that is no finite number, in frame 100"},
  };
  const nlohmann::json goldens = Goldens();
  EXPECT_EQ(goldens["bad"].size(), expected.size() + 2);  // the next test has the others
  for (const auto& [name, message] : expected) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(goldens["bad"].contains(name));
    ExpectRefused(ReadAudio(name), {}, HasSubstr(message));
  }
}

TEST(AudioTest, TakesWhatIsThereWhenTheHeaderLies) {
  const std::vector<float> reference = Reference();
  EXPECT_EQ(Decode(ReadAudio("bad-riff-size-lie.wav")), reference);
  // 44 bytes of header, then as many samples as the file still has.
  EXPECT_EQ(Decode(ReadAudio("bad-truncated.wav")),
            std::vector<float>(reference.begin(), reference.begin() + (3000 - 44) / 2));
}

TEST(AudioTest, KeepsEvery16BitValueExactly) {
  std::vector<int16_t> samples;
  std::vector<float> expected;
  for (int v = -32768; v <= 32767; ++v) {
    samples.push_back(static_cast<int16_t>(v));
    expected.push_back(static_cast<float>(v) / 32768.0f);
  }
  EXPECT_EQ(Decode(Wav({}, Pcm16(samples))), expected);
  EXPECT_EQ(Decode(Wav({.tag = kExtensible}, Pcm16(samples))), expected);
  EXPECT_EQ(Decode(ReadAudio("pcm16-16k-mono.wav")), Reference());
}

TEST(AudioTest, KeepsEvery8BitCodeExactly) {
  Bytes codes;
  std::vector<float> linear, mu_law, a_law;
  for (int code = 0; code < 256; ++code) {
    codes.push_back(static_cast<uint8_t>(code));
    linear.push_back(static_cast<float>(code - 128) / 128.0f);
    // Source: ITU-T G.711, tables 1 and 2, as 16-bit values.
    const int u = ~code & 255;
    const int mu = ((((u & 15) << 3) + 132) << (u >> 4 & 7)) - 132;
    mu_law.push_back(static_cast<float>(u & 128 ? -mu : mu) / 32768.0f);
    const int x = code ^ 0x55, segment = x >> 4 & 7;
    const int a = segment == 0 ? ((x & 15) << 4) + 8 : (((x & 15) << 4) + 264) << (segment - 1);
    a_law.push_back(static_cast<float>(x & 128 ? a : -a) / 32768.0f);
  }
  EXPECT_EQ(Decode(Wav({.bits = 8}, codes)), linear);
  EXPECT_EQ(Decode(Wav({.tag = kMuLaw, .bits = 8}, codes)), mu_law);
  EXPECT_EQ(Decode(Wav({.tag = kALaw, .bits = 8}, codes)), a_law);
}

TEST(AudioTest, ReadsTheWiderIntegersAndBothFloats) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Bytes pcm24, pcm32, float32, float64;
  std::vector<float> from24, from32, from_float;
  const auto add = [&](int32_t value, double real) {
    Put(pcm24, static_cast<uint32_t>(value) >> 8, 3);
    from24.push_back(static_cast<float>(value >> 8) / 8388608.0f);
    Put(pcm32, static_cast<uint32_t>(value), 4);
    from32.push_back(static_cast<float>(value) / 2147483648.0f);
    Put(float32, std::bit_cast<uint32_t>(static_cast<float>(real)), 4);
    Put(float64, std::bit_cast<uint64_t>(real), 8);
    from_float.push_back(static_cast<float>(real));
  };
  add(std::numeric_limits<int32_t>::min(), -1);
  add(std::numeric_limits<int32_t>::max(), 1);
  for (int i = 0; i < 9000; ++i) add(static_cast<int32_t>(random()), uniform(random));
  EXPECT_EQ(Decode(Wav({.bits = 24}, pcm24)), from24);
  EXPECT_EQ(Decode(Wav({.bits = 32}, pcm32)), from32);
  EXPECT_EQ(Decode(Wav({.tag = kFloat, .bits = 32}, float32)), from_float);
  EXPECT_EQ(Decode(Wav({.tag = kFloat, .bits = 64}, float64)), from_float);
}

TEST(AudioTest, AveragesAllChannels) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int channels : {2, 3, 6, 8}) {
    SCOPED_TRACE(channels);
    std::vector<int16_t> samples;
    std::vector<float> means;
    for (int frame = 0; frame < 5000; ++frame) {  // more than one block
      int sum = 0;
      for (int c = 0; c < channels; ++c)
        sum += samples.emplace_back(static_cast<int16_t>(random()));
      means.push_back(static_cast<float>(sum) / 32768.0f / static_cast<float>(channels));
    }
    EXPECT_EQ(Decode(Wav({.channels = channels}, Pcm16(samples))), means);
  }
}

TEST(AudioTest, ResamplesToTheRoundedNumberOfSamples) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const int32_t rate : {4000, 8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 96000,
                             192000, 384000, 16001}) {
    for (int i = 0; i < 12; ++i) {
      const auto frames = static_cast<int64_t>(random() % (i < 4 ? 60 : 20000));
      SCOPED_TRACE(testing::Message() << frames << " frames at " << rate << " Hz");
      const double exact = static_cast<double>(frames) * 16000 / rate;
      const auto samples =
          DecodeAudio(Wav({.rate = rate}, Pcm16(std::vector<int16_t>(frames, 99))), {});
      if (exact < 0.5) {  // rounds to none, which is no recording
        EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument);
        continue;
      }
      ASSERT_TRUE(samples.ok()) << samples.status();
      EXPECT_EQ(static_cast<int64_t>(samples->size()), std::llround(exact));
    }
  }
}

TEST(AudioTest, ResamplingKeepsTonesInPlaceAndDropsWhatDoesNotFit) {
  for (const int32_t rate : {8000, 11025, 22050, 44100, 48000, 96000}) {
    SCOPED_TRACE(rate);
    const auto tone = [rate](double hz) {
      std::vector<float> samples(rate);  // one second
      for (int32_t i = 0; i < rate; ++i) {
        samples[i] = static_cast<float>(0.5 * std::sin(2 * std::numbers::pi * hz * i / rate));
      }
      return Decode(Wav({.tag = kFloat, .bits = 32, .rate = rate}, Float32(samples)));
    };
    const std::vector<float> heard = tone(1000);
    ASSERT_EQ(heard.size(), 16000u);
    double worst = 0;  // away from both ends, where the tone begins and stops
    for (size_t i = 1000; i < 15000; ++i) {
      worst = std::max(worst, std::abs(heard[i] - 0.5 * std::sin(2 * std::numbers::pi * i / 16)));
    }
    EXPECT_LT(worst, 1e-4);
    if (rate <= 22050) continue;
    const std::vector<float> above = tone(10000);  // would come back as 6 kHz
    EXPECT_LT(*std::max_element(above.begin() + 1000, above.end() - 1000), 1e-4);
  }
}

TEST(AudioTest, ClipsWhatOvershootsFullScale) {
  const std::vector<float> loud = {0.5f, 1.5f, -1.25f, 1e30f, -1.0f};
  EXPECT_EQ(Decode(Wav({.tag = kFloat, .bits = 32}, Float32(loud))),
            (std::vector<float>{0.5f, 1, -1, 1, -1}));
}

TEST(AudioTest, NeverReturnsWhatIsNoNumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), kInfinity, -kInfinity}) {
    for (const int channels : {1, 2}) {
      std::vector<float> samples(12000 * channels, 0.25f);
      samples[9000 * channels + channels - 1] = bad;  // in the third block
      const WavFormat format = {.tag = kFloat, .bits = 32, .channels = channels};
      ExpectRefused(Wav(format, Float32(samples)), {}, HasSubstr("in frame 9000"));
    }
  }
  Bytes wide;
  Put(wide, std::bit_cast<uint64_t>(1e300), 8);  // finite as a double alone
  ExpectRefused(Wav({.tag = kFloat, .bits = 64}, wide), {}, HasSubstr("in frame 0"));

  // Finite, but a filter's sums of it are not: infinities of both signs would make a NaN.
  std::vector<float> huge(20000);
  for (size_t i = 0; i < huge.size(); ++i) huge[i] = (i / 7 % 2 ? 3.4e38f : -3.4e38f);
  for (const int32_t rate : {8000, 22050, 44100, 96000}) {
    for (const int channels : {1, 2}) {
      const auto samples = DecodeAudio(
          Wav({.tag = kFloat, .bits = 32, .rate = rate, .channels = channels}, Float32(huge)), {});
      ASSERT_TRUE(samples.ok()) << samples.status();
      EXPECT_TRUE(
          std::all_of(samples->begin(), samples->end(), [](float v) { return v >= -1 && v <= 1; }))
          << rate << " Hz, " << channels << " channels";
    }
  }
}

TEST(AudioTest, RefusesWhatIsOverALimitWithBothNumbers) {
  const Bytes stereo = Wav({.rate = 8000, .channels = 2}, Pcm16(std::vector<int16_t>(2 * 8000, 7)));
  AudioLimits limits = {.max_bytes = stereo.size(),
                        .max_seconds = 1,
                        .max_channels = 2,
                        .min_rate = 8000,
                        .max_rate = 8000};
  EXPECT_TRUE(DecodeAudio(stereo, limits).ok());

  AudioLimits bytes = limits;
  bytes.max_bytes = stereo.size() - 1;
  ExpectRefused(stereo, bytes,
                AllOf(HasSubstr(std::to_string(stereo.size()) + " bytes"),
                      HasSubstr("the limit is " + std::to_string(stereo.size() - 1))));
  AudioLimits seconds = limits;
  seconds.max_seconds = 0.75;
  ExpectRefused(stereo, seconds,
                AllOf(HasSubstr("1 seconds or more"), HasSubstr("the limit is 0.75")));
  AudioLimits channels = limits;
  channels.max_channels = 1;
  ExpectRefused(stereo, channels, AllOf(HasSubstr("2 channels"), HasSubstr("the limit is 1")));
  AudioLimits low = limits;
  low.max_rate = 7999;
  ExpectRefused(stereo, low, AllOf(HasSubstr("8000 Hz"), HasSubstr("7999 Hz")));
  AudioLimits high = limits;
  high.min_rate = 8001;
  high.max_rate = 9000;
  ExpectRefused(stereo, high, AllOf(HasSubstr("8000 Hz"), HasSubstr("8001")));
}

TEST(AudioTest, SpendsNoMemoryBeyondTheLimitOfSeconds) {
  // Of 16 MB of 8-bit samples at 4 kHz 256 MB would come; the header tells of them, unheeded.
  const Bytes bytes = Wav({.bits = 8, .rate = 4000}, Bytes(16 << 20, 128));
  AudioLimits limits;
  limits.max_seconds = 10;
  const auto peak = [] {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  };
  const int64_t before = peak();
  ExpectRefused(bytes, limits, HasSubstr("the limit is 10"));
  EXPECT_LT(peak() - before, 32 << 20);
}

// A file that is small enough to be decoded thousands of times: the beginning of a golden one, or
// all of a made one.
Bytes SmallFile(const std::string& name) {
  if (name == "tiny.wav") return Wav({}, Pcm16({0, 1000, -1000, 32767, -32768, 5}));
  if (name == "tiny-mu-law.wav") {
    return Wav({.tag = kMuLaw, .bits = 8, .rate = 8000}, Bytes(64, 0x35));
  }
  Bytes bytes = ReadAudio(name);
  bytes.resize(std::min<size_t>(bytes.size(), 6000));
  return bytes;
}

void ExpectSound(const absl::StatusOr<std::vector<float>>& samples) {
  if (!samples.ok()) {
    EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument) << samples.status();
    EXPECT_FALSE(samples.status().message().empty());
    return;
  }
  EXPECT_FALSE(samples->empty());
  EXPECT_TRUE(
      std::all_of(samples->begin(), samples->end(), [](float v) { return v >= -1 && v <= 1; }));
}

class SmallAudioTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Formats, SmallAudioTest,
                         testing::Values("tiny.wav", "tiny-mu-law.wav", "float-22k.wav",
                                         "flac-44k-stereo.flac", "vorbis-44k.ogg", "opus-48k.ogg",
                                         "mp3-44k.mp3"));

TEST_P(SmallAudioTest, SurvivesBeingCutAnywhere) {
  const Bytes bytes = SmallFile(GetParam());
  for (size_t n = 0; n < bytes.size(); ++n) {
    SCOPED_TRACE(n);
    // Its own buffer, so that a sanitizer sees where it ends.
    ExpectSound(DecodeAudio(Bytes(bytes.begin(), bytes.begin() + n), {}));
  }
}

TEST_P(SmallAudioTest, SurvivesRandomDamage) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const Bytes bytes = SmallFile(GetParam());
  AudioLimits limits;
  limits.max_seconds = 60;
  for (int round = 0; round < 300; ++round) {
    Bytes damaged = bytes;
    // Every other time in the header, where a byte does most.
    const size_t reach = round % 2 ? damaged.size() : std::min<size_t>(damaged.size(), 120);
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      damaged[random() % reach] ^= static_cast<uint8_t>(1 + random() % 255);
    }
    ExpectSound(DecodeAudio(damaged, limits));
  }
}

TEST(AudioTest, SurvivesNoiseBehindEveryFormatsFirstBytes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (const std::string_view magic :
       {"RIFF\x40\0\0\0WAVEfmt ", "fLaC", "OggS", "ID3", "\xff\xfb\x90", "FORM", ".snd", "caff",
        "RF64", "riff", "Creative Voice File", "NIST_1A", ""}) {
    for (int round = 0; round < 40; ++round) {
      Bytes bytes(magic.begin(), magic.end());
      for (uint64_t n = random() % 600; n > 0; --n) bytes.push_back(static_cast<uint8_t>(random()));
      AudioLimits limits;
      limits.max_seconds = 60;
      ExpectSound(DecodeAudio(bytes, limits));
    }
  }
}

}  // namespace
}  // namespace sensorium
