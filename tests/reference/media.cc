#include "tests/reference/media.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <vector>

namespace sensorium::reference {

Array MelEnergies(const Recording& recording, const LogMelSource& source) {
  const auto n_fft = static_cast<int64_t>(source.window.size()), bins = n_fft / 2 + 1;
  const auto mels = static_cast<int64_t>(source.filters.size()) / bins;
  std::vector<double> cosines(n_fft), sines(n_fft);
  for (int64_t i = 0; i < n_fft; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n_fft);
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
  const auto given = static_cast<int64_t>(recording.samples.size());
  const int64_t size = std::max(recording.size(), n_fft / 2 + 1);
  Array energies(recording.frames(source.hop), mels);
  std::vector<double> frame(n_fft), power(bins);
  for (int64_t t = 0; t < energies.rows; ++t) {
    for (int64_t i = 0; i < n_fft; ++i) {
      int64_t at = std::abs(t * source.hop + i - n_fft / 2);
      if (at >= size) at = 2 * size - 2 - at;
      frame[i] = at < given ? double{recording.samples[at]} * double{source.window[i]} : 0.0;
    }
    for (int64_t k = 0; k < bins; ++k) {
      double re = 0, im = 0;
      for (int64_t i = 0; i < n_fft; ++i) {
        re += frame[i] * cosines[k * i % n_fft];
        im -= frame[i] * sines[k * i % n_fft];
      }
      power[k] = re * re + im * im;
    }
    for (int64_t m = 0; m < mels; ++m) {
      for (int64_t k = 0; k < bins; ++k) {
        energies(t, m) += double{source.filters[m * bins + k]} * power[k];
      }
    }
  }
  return energies;
}

Array LogMel(const Array& energies, double loudest) {
  Array y = energies;
  for (double& v : y.values) {
    v = (std::max(std::log10(std::max(v, 1e-10)), loudest - 8) + 4) / 4;
  }
  return y;
}

double Loudest(const Array& energies) {
  double greatest = 1e-10;
  for (const double v : energies.values) greatest = std::max(greatest, v);
  return std::log10(greatest);
}

double LogMelTolerance(double depth) {
  return std::min(1e-4, 1e-6 + 3e-8 * std::pow(10, depth / 2));
}

Array Resize(std::span<const uint8_t> pixels, int64_t width, const ResizeAxis& columns,
             const ResizeAxis& rows) {
  const auto height = static_cast<int64_t>(pixels.size()) / (3 * width);
  const auto weigh = [](const ResizeAxis& axis, int64_t k, const auto& input) {
    double sum = 0;
    for (int32_t i = axis.weights_at[k]; i < axis.weights_at[k + 1]; ++i) {
      sum += double{axis.weights[i]} * input(axis.first[k] + i - axis.weights_at[k]);
    }
    return sum;
  };
  Array wide(height, columns.outputs() * 3), y(rows.outputs(), columns.outputs() * 3);
  for (int64_t c = 0; c < wide.columns; ++c) {
    for (int64_t r = 0; r < height; ++r) {
      wide(r, c) = weigh(columns, c / 3,
                         [&](int64_t t) { return pixels[(r * width + t) * 3 + c % 3] / 255.0; });
    }
    for (int64_t r = 0; r < y.rows; ++r) {
      y(r, c) = weigh(rows, r, [&](int64_t t) { return wide(t, c); });
    }
  }
  return y;
}

Array CutCrop(const Array& picture, int64_t x, int64_t y, const PatchShape& shape) {
  const int64_t side = shape.per_side, size = shape.size, width = picture.columns / 3;
  Array patches(side * side, size * size * 3);
  for (int64_t p = 0; p < patches.rows; ++p) {
    for (int64_t i = 0; i < patches.columns; ++i) {
      const int64_t row = y + p / side * size + i / (3 * size);
      const int64_t column = x + p % side * size + i / 3 % size;
      const bool inside = row >= 0 && row < picture.rows && column >= 0 && column < width;
      const double v = inside ? std::clamp(picture(row, column * 3 + i % 3), 0.0, 1.0) : 0.0;
      patches(p, i) = (v - double{shape.mean[i % 3]}) / double{shape.std[i % 3]};
    }
  }
  return patches;
}

}  // namespace sensorium::reference
