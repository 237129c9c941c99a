#include "runtime/media/resize.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

constexpr int32_t kChannels = 3;

// pixel / 255 of every byte: the same quotients as dividing, made once.
std::array<float, 256> MakeUnitValues() {
  std::array<float, 256> values;
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) / 255.0f;
  return values;
}

// One row to the output's width. x [width, 3], y [to, 3].
void ResizeRow(const std::vector<float>& x, const ResizeFilter& filter, std::vector<float>& y) {
  float* out = y.data();
  const int32_t outputs = static_cast<int32_t>(filter.first.size());
  for (int32_t k = 0; k < outputs; ++k) {
    const float* in = x.data() + static_cast<int64_t>(filter.first[k]) * kChannels;
    const float* w = filter.weights.data() + filter.weights_at[k];
    float r = 0, g = 0, b = 0;
    for (int32_t t = 0; t < filter.count(k); ++t, in += kChannels) {
      r += in[0] * w[t];
      g += in[1] * w[t];
      b += in[2] * w[t];
    }
    *out++ = r;
    *out++ = g;
    *out++ = b;
  }
}

}  // namespace

ScaledSize FitInside(int32_t width, int32_t height, int32_t max_width, int32_t max_height) {
  const float y = static_cast<float>(max_height) / static_cast<float>(height);
  const float x = static_cast<float>(max_width) / static_cast<float>(width);
  const float scale = std::min(x, y);
  return {.width = static_cast<int32_t>(static_cast<float>(width) * scale),
          .height = static_cast<int32_t>(static_cast<float>(height) * scale)};
}

// float32 throughout, as aten's _compute_indices_weights_aa with a triangle filter.
ResizeFilter MakeResizeFilter(int32_t in, int32_t out) {
  ResizeFilter filter;
  filter.first.reserve(out);
  filter.weights_at.reserve(out + 1);
  filter.weights_at.push_back(0);
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  const float support = std::max(scale, 1.0f);
  const float inverse = 1.0f / support;
  for (int32_t k = 0; k < out; ++k) {
    const float center = scale * (static_cast<float>(k) + 0.5f);
    const int32_t low = std::max(static_cast<int32_t>(center - support + 0.5f), 0);
    const int32_t high = std::min(static_cast<int32_t>(center + support + 0.5f), in);
    const size_t begin = filter.weights.size();
    float sum = 0;
    for (int32_t t = low; t < high; ++t) {
      const float distance = std::abs((static_cast<float>(t) - center + 0.5f) * inverse);
      const float weight = distance < 1.0f ? 1.0f - distance : 0.0f;
      filter.weights.push_back(weight);
      sum += weight;
    }
    CHECK(sum > 0) << in << " to " << out;
    for (size_t t = begin; t < filter.weights.size(); ++t) filter.weights[t] /= sum;
    filter.first.push_back(low);
    filter.weights_at.push_back(static_cast<int32_t>(filter.weights.size()));
  }
  return filter;
}

std::vector<float> ResizeAntialias(const RgbImage& image, ScaledSize to, const Stop& stop) {
  CHECK(image.width > 0 && image.height > 0 && to.width > 0 && to.height > 0);
  const size_t row_values = static_cast<size_t>(to.width) * kChannels;
  std::vector<float> out(static_cast<size_t>(to.height) * row_values, 0.0f);
  std::vector<float> source(static_cast<size_t>(image.width) * kChannels);  // [image.width, 3]
  std::vector<float> row(row_values);                                       // [to.width, 3]
  const std::array<float, 256> unit = MakeUnitValues();
  const ResizeFilter columns = MakeResizeFilter(image.width, to.width);
  const ResizeFilter rows = MakeResizeFilter(image.height, to.height);
  // Input rows in order, each added to the outputs it has a weight in: every output sums its taps
  // from the first to the last, as if all resized rows had been kept.
  int32_t first_out = 0;
  for (int32_t t = 0; t < image.height; ++t) {
    if (Stopped(stop)) return {};
    while (first_out < to.height && rows.first[first_out] + rows.count(first_out) <= t) {
      ++first_out;
    }
    if (first_out == to.height) break;
    // A pass whose size stays the same has one tap of weight 1 and one of 0: it changes nothing.
    const uint8_t* bytes = image.pixels.data() + static_cast<size_t>(t) * source.size();
    for (size_t i = 0; i < source.size(); ++i) source[i] = unit[bytes[i]];
    ResizeRow(source, columns, row);
    for (int32_t k = first_out; k < to.height && rows.first[k] <= t; ++k) {
      const float w = rows.weights[rows.weights_at[k] + (t - rows.first[k])];
      float* y = out.data() + static_cast<size_t>(k) * row_values;
      for (size_t i = 0; i < row_values; ++i) y[i] += row[i] * w;
    }
  }
  for (float& v : out) v = std::clamp(v, 0.0f, 1.0f);
  return out;
}

}  // namespace sensorium
