#include "tests/reference/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/reference/norms.h"

namespace sensorium::reference {

double Activate(Activation a, double v) {
  if (a == Activation::kGelu) return v / 2 * std::erfc(-v / std::sqrt(2.0));
  if (a == Activation::kQuickGelu) return v / (1 + std::exp(-1.702 * v));
  return v;
}

Array Linear(const Array& x, const Array& weight, const Array& bias, Activation activation) {
  Array y(x.rows, weight.rows);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t o = 0; o < weight.rows; ++o) {
      double sum = bias(0, o);
      for (int64_t i = 0; i < x.columns; ++i) sum += x(r, i) * weight(o, i);
      y(r, o) = Activate(activation, sum);
    }
  }
  return y;
}

Array Conv1d(const Array& x, const Array& weight, const Array& bias, int64_t seqs, int64_t kernel,
             int64_t stride, Activation activation) {
  const int64_t frames = x.rows / seqs, frames_out = (frames - 1) / stride + 1;
  const int64_t pad = (kernel - 1) / 2;
  Array y(seqs * frames_out, weight.rows);
  for (int64_t s = 0; s < seqs; ++s) {
    for (int64_t f = 0; f < frames_out; ++f) {
      for (int64_t o = 0; o < weight.rows; ++o) {
        double sum = bias(0, o);
        for (int64_t t = 0; t < kernel; ++t) {
          const int64_t from = f * stride + t - pad;
          if (from < 0 || from >= frames) continue;
          for (int64_t i = 0; i < x.columns; ++i) {
            sum += x(s * frames + from, i) * weight(o, i * kernel + t);
          }
        }
        y(s * frames_out + f, o) = Activate(activation, sum);
      }
    }
  }
  return y;
}

Route MoeRoute(const Array& logits, int64_t k) {
  Route route;
  std::vector<int32_t> order(logits.columns);
  for (int64_t t = 0; t < logits.rows; ++t) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits(t, a) > logits(t, b); });
    double sum = 0;
    for (int64_t e = 0; e < logits.columns; ++e)
      sum += std::exp(logits(t, e) - logits(t, order[0]));
    for (int64_t i = 0; i < k; ++i) {
      route.ids.push_back(order[i]);
      route.weights.push_back(std::exp(logits(t, order[i]) - logits(t, order[0])) / sum);
    }
  }
  return route;
}

Array AddMoe(const Array& y, const Array& x, std::span<const int32_t> ids,
             std::span<const double> weights, std::span<const Expert> experts) {
  Array out = y;
  const int64_t k = static_cast<int64_t>(ids.size()) / x.rows;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      const Expert& e = experts[ids[t * k + i]];
      const int64_t ffn = e.down.columns;
      Array row(1, x.columns), up(1, ffn), gate(1, ffn);
      for (int64_t c = 0; c < x.columns; ++c) row(0, c) = x(t, c);
      const Array both = Linear(row, e.up_gate, Array(1, 2 * ffn), Activation::kNone);
      for (int64_t c = 0; c < ffn; ++c) up(0, c) = both(0, c), gate(0, c) = both(0, ffn + c);
      const Array part =
          Linear(SiluMul(up, gate), e.down, Array(1, e.down.rows), Activation::kNone);
      for (int64_t c = 0; c < out.columns; ++c) out(t, c) += weights[t * k + i] * part(0, c);
    }
  }
  return out;
}

}  // namespace sensorium::reference
