// The ops on media of the backends that have them, against tests/reference.
#include "runtime/backend/media_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "runtime/media/log_mel.h"
#include "runtime/media/resize.h"
#include "tests/reference/media.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {
namespace {

constexpr DType kF32 = DType::kFloat32;

// ---- Sound -------------------------------------------------------------------------------------

struct FrontEnd {
  FrontEnd(int32_t mels, int32_t n_fft, int32_t hop)
      : extractor(mels, n_fft, hop), filters(SlaneyMelFilters(mels, n_fft)) {}
  LogMelSource source() const {
    return {.window = extractor.window(), .filters = filters, .hop = extractor.hop()};
  }
  LogMelExtractor extractor;
  std::vector<float> filters;
};

// A tone over faint noise, a silence, then noise that is 70 dB louder than the first.
std::vector<float> Sound(int64_t n, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> samples(n);
  for (int64_t i = 0; i < n; ++i) {
    const double t = static_cast<double>(i) / 16000;
    const float tone = static_cast<float>(std::sin(2 * std::numbers::pi * 440 * t));
    samples[i] = i < n / 2       ? 0.5f * tone + 1e-4f * normal(rng)
                 : i < n * 3 / 4 ? 0.0f
                                 : 0.3f * normal(rng);
  }
  return samples;
}

void ExpectLogMel(const Matrix& y, const reference::Array& energies, int64_t begin, int64_t frames,
                  double loudest, DType stored) {
  const reference::Array truth = reference::LogMel(energies, loudest);
  int64_t wrong = 0;
  std::string first;
  for (int64_t r = 0; r < y.rows(); ++r) {
    double most = 1e-10;
    for (int64_t m = 0; r < frames && m < y.columns(); ++m) {
      most = std::max(most, energies(begin + r, m));
    }
    for (int64_t m = 0; m < y.columns(); ++m) {
      const double want = r < frames ? truth(begin + r, m) : 0;
      double bound = 0;
      if (r < frames) {
        const double depth = std::log10(most / std::max(energies(begin + r, m), 1e-10));
        bound = reference::LogMelTolerance(depth) + ToleranceOf(stored).result * std::fabs(want);
      }
      if (std::fabs(y.Get(r, m) - want) <= bound) continue;  // false for a NaN
      if (wrong++ > 0) continue;
      std::ostringstream where;
      where << "(" << r << ", " << m << ") is " << y.Get(r, m) << ", truth " << want << ", bound "
            << bound;
      first = where.str();
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << y.rows() << " x " << y.columns() << "; first " << first;
  EXPECT_TRUE(y.PaddingUntouched());
}

// What is heard of a recording, on the device and, once that was waited for, on the host.
class Heard {
 public:
  explicit Heard(Backend& be) : be_(be) { greatest.device = place_.view().as<float>(); }
  Heard(const Heard&) = delete;
  Heard& operator=(const Heard&) = delete;

  // log10(max(greatest, 1e-10)) of all that was listened to. Waits.
  float Loudest() {
    be_.Wait();
    return greatest.host <= 1e-10f ? -10.0f : std::log10(greatest.host);
  }
  GreatestEnergy greatest;

 private:
  Backend& be_;
  Matrix place_{1, 1, kF32};
};

float Loudest(Backend& be, const LogMelTables& tables, const Recording& recording, int64_t begin,
              int64_t end) {
  Heard heard(be);
  be.media_ops()->Listen(heard.greatest, tables, recording, begin, end);
  return heard.Loudest();
}

TEST_P(OpsTest, LogMelMatchesTheReferenceInEveryBand) {
  MediaOps& ops = *be_->media_ops();
  struct Case {
    int32_t mels, n_fft, hop;
    int64_t samples, zeros_after;
  };
  for (const Case& c : {Case{80, 400, 160, 9000, 0}, Case{128, 400, 160, 4001, 8000},
                        Case{7, 98, 33, 4000, 45}, Case{131, 256, 200, 3000, 500}}) {
    if (kForRaces && c.mels != 7) continue;
    SCOPED_TRACE(testing::Message() << c.mels << " mels of " << c.samples << " samples");
    const FrontEnd front(c.mels, c.n_fft, c.hop);
    const auto tables = ops.MakeLogMel(front.source());
    EXPECT_EQ(tables->mels(), c.mels);
    const std::vector<float> samples = Sound(c.samples, rng_);
    const Recording recording = {samples, c.zeros_after};
    const reference::Array energies = reference::MelEnergies(recording, front.source());
    const int64_t frames = recording.frames(c.hop);
    EXPECT_EQ(energies.rows, frames);
    Heard heard(*be_), louder(*be_);
    const float loudest = Loudest(*be_, *tables, recording, 0, frames);
    EXPECT_NEAR(loudest, reference::Loudest(energies), 1e-6 * std::fabs(loudest));
    louder.greatest.host = std::pow(10.0f, loudest + 5);
    for (const DType act : Acts()) {
      Matrix y = Poisoned(frames + 3, c.mels, act);
      // Before the device was waited for, and behind it.
      heard.greatest.host = 0;
      ops.Listen(heard.greatest, *tables, recording, 0, frames);
      EXPECT_TRUE(std::isnan(heard.greatest.host));
      ops.LogMel(y.view(), *tables, recording, 0, frames, heard.greatest);
      EXPECT_EQ(heard.Loudest(), loudest);
      ExpectLogMel(y, energies, 0, frames, loudest, act);
      // From the middle, some of it: and the floor is what the caller says it is.
      const int64_t begin = frames / 3, some = frames / 2;
      Matrix part = Poisoned(some + 1, c.mels, act);
      ops.LogMel(part.view(), *tables, recording, begin, some, heard.greatest);
      for (int64_t r = 0; r < some; ++r) EXPECT_TRUE(part.SameRowBits(r, y, begin + r)) << r;
      ops.LogMel(part.view(), *tables, recording, begin, some, louder.greatest);
      ExpectLogMel(part, energies, begin, some, loudest + 5, act);
    }
  }
}

// The host's extractor, which transforms in double: the same numbers at the same tolerance.
TEST_P(OpsTest, LogMelGivesWhatTheHostWouldGive) {
  MediaOps& ops = *be_->media_ops();
  const FrontEnd front(80, 400, 160);
  const auto tables = ops.MakeLogMel(front.source());
  for (const int64_t n : {0, 1, 37, 160, 199, 200, 201, 399, 2500}) {
    for (const int64_t zeros : {0, 3, 700, 2400}) {
      if (kForRaces && n + zeros > 300) continue;
      SCOPED_TRACE(testing::Message() << n << " samples, " << zeros << " zeros");
      std::vector<float> samples = Sound(4 * n, rng_);
      samples.erase(samples.begin(), samples.begin() + 3 * n);  // the loud end of it
      const Recording recording = {samples, zeros};
      const int64_t frames = recording.frames(160);
      const MelSpectrogram mel = front.extractor.Compute(samples, zeros);
      ASSERT_EQ(mel.frames, frames);
      Heard heard(*be_);
      ops.Listen(heard.greatest, *tables, recording, 0, frames);
      const float loudest = heard.Loudest();
      if (frames == 0) {
        EXPECT_EQ(loudest, -10.0f);
        continue;
      }
      Matrix y = Poisoned(frames, 80, kF32);
      ops.LogMel(y.view(), *tables, recording, 0, frames, heard.greatest);
      for (int64_t t = 0; t < frames; ++t) {
        const float* row = mel.data.data() + t * 80;
        const float most = *std::max_element(row, row + 80);
        for (int64_t m = 0; m < 80; ++m) {
          ASSERT_NEAR(y.Get(t, m), row[m], reference::LogMelTolerance(4 * (most - row[m])))
              << "frame " << t << ", mel " << m;
        }
      }
    }
  }
}

TEST_P(OpsTest, TheLoudestValueDoesNotDependOnHowARecordingIsCut) {
  MediaOps& ops = *be_->media_ops();
  const FrontEnd front(23, 98, 33);
  const auto tables = ops.MakeLogMel(front.source());
  std::vector<float> samples =
      Sound(kForRaces ? 9'000 : 70'000, rng_);   // more than goes up at once
  std::reverse(samples.begin(), samples.end());  // the noise first, and louder yet
  for (float& v : std::span(samples).first(samples.size() / 4)) v *= 8;
  const Recording recording = {samples, 1000};
  const int64_t frames = recording.frames(33);
  const float whole = Loudest(*be_, *tables, recording, 0, frames);
  // Of another call nothing is left.
  EXPECT_LT(Loudest(*be_, *tables, recording, frames / 2, frames), whole - 0.1f);
  // One call after the other; the device is waited for now and then.
  Heard heard(*be_);
  for (int64_t begin = 0; begin < frames;) {
    const int64_t end = std::min(frames, begin + 1 + Below(600));
    ops.Listen(heard.greatest, *tables, recording, begin, end);
    if (Below(2) == 0) {
      be_->Wait();
      *heard.greatest.device = 1e30f;  // the place is somebody else's: the host has it
    }
    begin = end;
  }
  EXPECT_EQ(heard.Loudest(), whole);
  EXPECT_EQ(Loudest(*be_, *tables, recording, 5, 5), -10.0f);
  // Nothing but zeros: at the end of this one, and all of another.
  EXPECT_EQ(Loudest(*be_, *tables, recording, frames - 20, frames), -10.0f);
  std::fill(samples.begin(), samples.end(), 0.0f);
  EXPECT_EQ(Loudest(*be_, *tables, recording, 0, frames), -10.0f);
  Matrix y = Poisoned(4, 23, kF32);
  ops.LogMel(y.view(), *tables, recording, 1, 4, {});
  for (int64_t m = 0; m < 23; ++m) EXPECT_EQ(y.Get(3, m), -1.5f);  // (-10 + 4) / 4
}

// The highest band may be the loudest, and the last frame: a tone below 8 kHz that swells.
TEST_P(OpsTest, TheLoudestValueIsLookedForInEveryBandAndFrame) {
  MediaOps& ops = *be_->media_ops();
  const FrontEnd front(40, 98, 33);
  const auto tables = ops.MakeLogMel(front.source());
  std::vector<float> samples(3000);
  for (size_t i = 0; i < samples.size(); ++i) {
    const double t = static_cast<double>(i);
    samples[i] = static_cast<float>(t * std::cos(std::numbers::pi * 7750 / 8000 * t) / 3000);
  }
  const Recording recording = {samples, 0};
  const reference::Array energies = reference::MelEnergies(recording, front.source());
  for (const int64_t end : {1, 31, 64, 70}) {
    const int64_t begin = end * 3 / 4;
    reference::Array some(end - begin, 40);
    std::copy_n(&energies.values[begin * 40], some.values.size(), some.values.begin());
    const auto loudest = std::max_element(some.values.begin(), some.values.end());
    EXPECT_EQ(loudest - some.values.begin(), (end - begin) * 40 - 1);
    EXPECT_NEAR(Loudest(*be_, *tables, recording, begin, end), reference::Loudest(some), 1e-5);
  }
}

// ---- Pictures ----------------------------------------------------------------------------------

std::vector<uint8_t> Pixels(int64_t width, int64_t height, std::mt19937& rng) {
  std::vector<uint8_t> pixels(static_cast<size_t>(3 * width * height));
  for (uint8_t& v : pixels) v = static_cast<uint8_t>(rng() >> 7);
  return pixels;
}

ResizeAxis AxisOf(const ResizeFilter& f) {
  return {.first = f.first, .weights_at = f.weights_at, .weights = f.weights};
}

reference::Array Constant(int64_t rows, int64_t columns, double value) {
  reference::Array a(rows, columns);
  std::fill(a.values.begin(), a.values.end(), value);
  return a;
}

TEST_P(OpsTest, ResizeMatchesTheReferenceOnTwoTargetsAtOnce) {
  MediaOps& ops = *be_->media_ops();
  struct Case {
    int32_t width, height;
    int32_t to[2][2];
  };
  for (const Case& c : {Case{1, 1, {{1, 1}, {5, 3}}}, Case{97, 61, {{33, 21}, {150, 94}}},
                        Case{64, 48, {{64, 48}, {64, 13}}}, Case{7, 300, {{3, 128}, {1, 42}}},
                        Case{500, 3, {{400, 2}, {345, 5}}}}) {
    SCOPED_TRACE(testing::Message() << c.width << "x" << c.height);
    const std::vector<uint8_t> pixels = Pixels(c.width, c.height, rng_);
    std::vector<ResizeFilter> filters;
    std::vector<Matrix> y, cut;
    std::vector<ResizeTarget> targets;
    for (const auto& [w, h] : c.to) {
      filters.push_back(MakeResizeFilter(c.width, w));
      filters.push_back(MakeResizeFilter(c.height, h));
      for (auto* to : {&y, &cut}) to->push_back(Matrix(h, 3 * w, kF32));  // NaN throughout
    }
    const auto give = [&](std::vector<Matrix>& to, int64_t begin, int64_t end) {
      targets.clear();
      for (size_t t = 0; t < 2; ++t) {
        targets.push_back({to[t].view(), AxisOf(filters[2 * t]), AxisOf(filters[2 * t + 1])});
      }
      const int64_t row = 3 * c.width;
      ops.Resize(targets, std::span(pixels).subspan(begin * row, (end - begin) * row), c.width,
                 begin);
    };
    give(y, 0, c.height);
    for (size_t t = 0; t < 2; ++t) {
      const reference::Array truth =
          reference::Resize(pixels, c.width, AxisOf(filters[2 * t]), AxisOf(filters[2 * t + 1]));
      ExpectNear(y[t], truth, Constant(truth.rows, truth.columns, 1.0), ToleranceOf(kF32));
    }
    // In strips of any height: the same bits.
    for (int64_t begin = 0; begin < c.height;) {
      const int64_t end = std::min<int64_t>(c.height, begin + 1 + Below(20));
      give(cut, begin, end);
      begin = end;
    }
    for (size_t t = 0; t < 2; ++t) {
      for (int64_t r = 0; r < y[t].rows(); ++r) EXPECT_TRUE(cut[t].SameRowBits(r, y[t], r)) << r;
    }
  }
}

TEST_P(OpsTest, CropsAreCutWhereverTheyLie) {
  MediaOps& ops = *be_->media_ops();
  const PatchShape shape = {
      .per_side = 3, .size = 5, .mean = {0.48f, 0.45f, 0.4f}, .std = {0.27f, 0.26f, 0.28f}};
  const int64_t height = 19, width = 22;
  Matrix picture(height, 3 * width, kF32);
  std::uniform_real_distribution<float> values(-0.1f, 1.1f);  // some to be clipped
  for (int64_t r = 0; r < height; ++r) {
    for (int64_t c = 0; c < 3 * width; ++c) picture.Set(r, c, values(rng_));
  }
  const reference::Array seen = Truth(picture);
  for (const DType act : Acts()) {
    for (const auto& [x, y0] : {std::pair<int32_t, int32_t>{0, 0},
                                {4, 3},
                                {-6, -4},
                                {15, 12},
                                {7, 4},
                                {-40, 2},
                                {2, 60},
                                {8, -14}}) {
      const reference::Array truth = reference::CutCrop(seen, x, y0, shape);
      Matrix y = Poisoned(9, 75, act);
      ops.CutCrop(y.view(), View(picture), x, y0, shape);
      ExpectNear(y, truth, Constant(9, 75, 4.0), {ToleranceOf(act).result, 0x1p-22});
    }
  }
}

}  // namespace
}  // namespace sensorium
