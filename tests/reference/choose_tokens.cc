#include "tests/reference/choose_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace sensorium::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double Max(std::span<const float> row) {
  double max = -kInf;
  for (const float x : row) max = std::max<double>(max, x);  // the first argument if x is NaN
  return max;
}

double LogSumExp(std::span<const float> row) {
  const double max = Max(row);
  if (std::isinf(max)) return max;
  double sum = 0;
  for (const float x : row) sum += std::isnan(x) ? 0 : std::exp(x - max);
  return max + std::log(sum);
}

// All ids by value, likeliest first.
std::vector<int32_t> Order(std::span<const float> row) {
  std::vector<int32_t> ids(row.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
  return ids;
}

// Steps 5 to 8 of a row whose largest logit is finite.
void Cut(Choice& out, std::span<const float> row, const TokenChoice& c) {
  const std::vector<int32_t> order = Order(row);
  const float max = row[order[0]];
  std::vector<float> scaled;  // in order; float32, as the op's contract says
  for (const int32_t id : order) scaled.push_back((row[id] - max) / c.temperature);
  size_t kept = 0;
  while (kept < scaled.size() && scaled[kept] >= -87.0f) ++kept;
  if (c.top_k > 0 && static_cast<size_t>(c.top_k) < kept) {
    const float kth = scaled[c.top_k - 1];
    while (kept > 0 && scaled[kept - 1] < kth) --kept;
  }
  if (c.min_p > 0) {
    const double least = std::log(static_cast<double>(c.min_p));
    for (const float x : scaled) out.cut_margin = std::min(out.cut_margin, std::fabs(x - least));
    while (kept > 1 && scaled[kept - 1] < least) --kept;
  }
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += std::exp(static_cast<double>(scaled[i]));
  if (c.top_p < 1) {
    const double needed = total * c.top_p;
    double mass = 0;
    size_t nucleus = 0;
    while (nucleus < kept && mass < needed) {
      mass += std::exp(static_cast<double>(scaled[nucleus++]));
      out.cut_margin = std::min(out.cut_margin, std::fabs(mass - needed) / total);
    }
    kept = nucleus;
    total = mass;
  }
  double begin = 0;
  for (size_t i = 0; i < kept; ++i) {
    const double end = begin + std::exp(static_cast<double>(scaled[i])) / total;
    out.shares.push_back({order[i], begin, end});
    begin = end;
  }
}

}  // namespace

Choice Choose(std::span<const float> logits, const TokenChoice& c) {
  Choice out;
  out.raw_log_sum_exp = LogSumExp(logits);
  std::vector<float> row(logits.begin(), logits.end());
  const auto ban = [&](size_t id) { row[id] = static_cast<float>(-kInf); };
  for (size_t id = 0; id < row.size(); ++id) {
    if (std::isnan(row[id])) ban(id);
  }
  for (const auto& ids : c.banned) {
    for (const int32_t id : ids) ban(id);
  }
  for (const auto& [from, to] : c.banned_ranges) {
    for (int32_t id = from; id < to; ++id) ban(id);
  }
  if (c.timestamp_begin > 0) {
    const auto split = static_cast<size_t>(c.timestamp_begin);
    const double text = Max(std::span(row).first(split));
    const double times = LogSumExp(std::span(row).subspan(split));
    if (std::isfinite(text) && std::isfinite(times)) out.rule_margin = std::fabs(times - text);
    if (times > text) {
      for (size_t id = 0; id < split; ++id) ban(id);
    }
  }
  const double norm = LogSumExp(row);
  for (const float x : row) {
    const double own = std::isinf(norm) ? (x == kInf ? 0 : -kInf) : x - norm;
    out.logprobs.push_back(own);
  }
  for (const int32_t id : Order(row)) {
    if (row[id] > -kInf) out.likeliest.push_back(id);
  }
  for (const LogitEdit& e : c.edits) {
    float& x = row[e.id];
    x += e.bias;
    x = x > 0 ? x / e.repetition : x * e.repetition;
    x -= e.penalty;
    if (std::isnan(x)) ban(e.id);
  }
  const int32_t best = Order(row)[0];
  if (c.temperature == 0 || !std::isfinite(row[best])) {
    out.shares.push_back({best, 0, 1});
  } else {
    Cut(out, row, c);
  }
  return out;
}

}  // namespace sensorium::reference
