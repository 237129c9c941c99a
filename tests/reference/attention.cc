#include "tests/reference/attention.h"

#include <algorithm>
#include <cmath>

namespace sensorium::reference {

AttentionResult Attention(const Array& q, const Array& k, const Array& v, int64_t heads,
                          int64_t kv_heads, std::span<const int64_t> limits, double scale) {
  const int64_t dims = q.columns / heads;
  AttentionResult result = {Array(q.rows, q.columns), Array(q.rows, q.columns)};
  for (int64_t r = 0; r < q.rows; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t in = h * dims, from = h / (heads / kv_heads) * dims;
      std::vector<double> weights(limits[r]);
      for (int64_t key = 0; key < limits[r]; ++key) {
        double score = 0;
        for (int64_t d = 0; d < dims; ++d) score += q(r, in + d) * k(key, from + d);
        weights[key] = scale * score;
      }
      const double max = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& w : weights) sum += w = std::exp(w - max);
      for (int64_t key = 0; key < limits[r]; ++key) {
        for (int64_t d = 0; d < dims; ++d) {
          const double part = weights[key] / sum * v(key, from + d);
          result.y(r, in + d) += part;
          result.magnitude(r, in + d) += std::fabs(part);
        }
      }
    }
  }
  return result;
}

}  // namespace sensorium::reference
