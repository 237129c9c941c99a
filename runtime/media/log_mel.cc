#include "runtime/media/log_mel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

constexpr double kSampleRate = 16000;

// Slaney's mel scale: linear to 1 kHz (mel 15), logarithmic above.
// Source: librosa.core.convert.mel_to_hz with htk=False.
double MelToHz(double mel) {
  const double log_step = std::log(6.4) / 27;
  return mel < 15 ? 200 * mel / 3 : 1000 * std::exp(log_step * (mel - 15));
}
double HzToMel(double hz) {
  return hz < 1000 ? 3 * hz / 200 : 15 + 27 * std::log(hz / 1000) / std::log(6.4);
}

// Index into [0, size) of a signal mirrored at its first and last sample, which are not repeated.
int64_t Reflect(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

}  // namespace

// Source: librosa.filters.mel, norm="slaney": triangles of equal area over neighbouring mel points.
std::vector<float> SlaneyMelFilters(int32_t num_mels, int32_t n_fft) {
  CHECK(num_mels > 0 && n_fft > 0);
  const int32_t bins = n_fft / 2 + 1;
  const double top = HzToMel(kSampleRate / 2);
  std::vector<double> hz(num_mels + 2);
  for (size_t i = 0; i < hz.size(); ++i) hz[i] = MelToHz(top * i / (num_mels + 1));
  std::vector<float> filters(static_cast<size_t>(num_mels) * bins);
  for (int32_t m = 0; m < num_mels; ++m) {
    const double low = hz[m], centre = hz[m + 1], high = hz[m + 2];
    for (int32_t k = 0; k < bins; ++k) {
      const double f = kSampleRate * k / n_fft;
      const double slope = std::min((f - low) / (centre - low), (high - f) / (high - centre));
      filters[static_cast<size_t>(m) * bins + k] =
          static_cast<float>(std::max(0.0, slope) * 2 / (high - low));
    }
  }
  return filters;
}

LogMelExtractor::LogMelExtractor(int32_t num_mels, int32_t n_fft, int32_t hop)
    : num_mels_(num_mels), n_fft_(n_fft), hop_(hop), fft_(n_fft), window_(n_fft) {
  CHECK_GT(hop, 0);
  for (int32_t i = 0; i < n_fft; ++i) {
    window_[i] = static_cast<float>(0.5 * (1 - std::cos(2 * std::numbers::pi * i / n_fft)));
  }
  const int32_t bins = fft_.num_bins();
  const std::vector<float> filters = SlaneyMelFilters(num_mels, n_fft);
  for (int32_t m = 0; m < num_mels; ++m) {
    const auto row = std::span(filters).subspan(static_cast<size_t>(m) * bins, bins);
    Band band{.weights_at = static_cast<int32_t>(weights_.size())};
    for (int32_t k = 0; k < bins; ++k) {
      if (row[k] == 0) continue;
      if (band.num_bins == 0) band.first_bin = k;
      band.num_bins = k - band.first_bin + 1;
    }
    weights_.insert(weights_.end(), row.begin() + band.first_bin,
                    row.begin() + band.first_bin + band.num_bins);
    bands_.push_back(band);
  }
}

MelSpectrogram LogMelExtractor::Compute(std::span<const float> samples, int64_t zeros_after,
                                        const Stop& stop) const {
  CHECK_GE(zeros_after, 0);
  const int64_t given = static_cast<int64_t>(samples.size());
  const int64_t total = given + zeros_after;
  const int64_t pad = n_fft_ / 2;
  const int64_t mirrored = std::max(total, pad + 1);  // what reflection sees
  MelSpectrogram out{.mels = num_mels_, .frames = total / hop_};
  out.data.resize(static_cast<size_t>(out.frames) * num_mels_);

  std::vector<double> frame(n_fft_), power(fft_.num_bins());
  std::vector<RealFft::Complex> scratch(fft_.scratch_size());
  float loudest = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < out.frames; ++t) {
    if (t % 64 == 0 && Stopped(stop)) return {.mels = num_mels_};
    const int64_t begin = t * hop_ - pad;  // centred on sample t * hop
    bool silent = true;
    if (begin < given || begin + n_fft_ > mirrored) {  // else zeros alone
      for (int64_t i = 0; i < n_fft_; ++i) {
        const int64_t at = Reflect(begin + i, mirrored);
        const float v = at < given ? samples[at] : 0.0f;
        silent &= v == 0;
        frame[i] = static_cast<double>(v) * window_[i];
      }
    }
    float* row = out.data.data() + t * num_mels_;
    if (silent) {
      std::fill_n(row, num_mels_, -10.0f);  // log10 of the least power counted
    } else {
      fft_.PowerSpectrum(frame, power, scratch);
      for (int32_t m = 0; m < num_mels_; ++m) {
        const Band& band = bands_[m];
        double energy = 0;
        for (int32_t k = 0; k < band.num_bins; ++k) {
          energy += power[band.first_bin + k] * weights_[band.weights_at + k];
        }
        row[m] = std::log10(std::max(static_cast<float>(energy), 1e-10f));
      }
    }
    loudest = std::max(loudest, *std::max_element(row, row + num_mels_));
  }
  for (float& v : out.data) v = (std::max(v, loudest - 8.0f) + 4.0f) / 4.0f;
  return out;
}

}  // namespace sensorium
