#include "tests/reference/norms.h"

#include <cmath>

namespace sensorium::reference {

Array RmsNorm(const Array& x, const Array& weight, double eps) {
  Array y(x.rows, x.columns);
  for (int64_t r = 0; r < x.rows; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < x.columns; ++c) sum += x(r, c) * x(r, c);
    const double norm = std::sqrt(sum / x.columns + eps);
    for (int64_t c = 0; c < x.columns; ++c) y(r, c) = x(r, c) / norm * weight(0, c);
  }
  return y;
}

Array LayerNorm(const Array& x, const Array& weight, const Array& bias, double eps) {
  Array y(x.rows, x.columns);
  for (int64_t r = 0; r < x.rows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < x.columns; ++c) mean += x(r, c) / x.columns;
    for (int64_t c = 0; c < x.columns; ++c) {
      variance += (x(r, c) - mean) * (x(r, c) - mean) / x.columns;
    }
    for (int64_t c = 0; c < x.columns; ++c) {
      y(r, c) = (x(r, c) - mean) / std::sqrt(variance + eps) * weight(0, c) + bias(0, c);
    }
  }
  return y;
}

Array SiluMul(const Array& up, const Array& gate) {
  Array y(up.rows, up.columns);
  for (size_t i = 0; i < y.values.size(); ++i) {
    y.values[i] = gate.values[i] / (1 + std::exp(-gate.values[i])) * up.values[i];
  }
  return y;
}

Array Rope(const Array& x, std::span<const int32_t> positions, std::span<const float> inv_freq) {
  Array y(x.rows, x.columns);
  const int64_t half = static_cast<int64_t>(inv_freq.size());
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t head = 0; head < x.columns; head += 2 * half) {
      for (int64_t i = 0; i < half; ++i) {
        const float rounded = static_cast<float>(positions[t]) * inv_freq[i];
        const double angle = rounded, a = x(t, head + i), b = x(t, head + half + i);
        y(t, head + i) = a * std::cos(angle) - b * std::sin(angle);
        y(t, head + half + i) = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  return y;
}

Array MeanRows(const Array& x, int64_t group) {
  Array y(x.rows / group, x.columns);
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.columns; ++c) y(r / group, c) += x(r, c) / group;
  return y;
}

}  // namespace sensorium::reference
