#include "runtime/scheduler/cost_model.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

constexpr int64_t kMaxPs = std::numeric_limits<int64_t>::max();

// How sure the prior is, against one sample: (noise / spread)^2 with calls repeating to some 5 %
// and guesses spread by a factor of ten (ln 10 = 2.3).
constexpr double kPriorWeight = 5e-4;
// Fit: residuals up to here count squared, beyond it linearly. Huber's 1.345 sigma (1964) for a
// noise of 7 %, which is a call of 100 us on a desktop that does other things too.
constexpr double kFitHuber = 0.1;
constexpr int kMaxFitPasses = 200;
constexpr double kMaxFitStep = 1;  // in u a pass: a linearised log is no good further out
constexpr double kFitTolerance = 1e-7;

// Observe: the variance of a price of which nothing is known, in units of one observation's.
constexpr double kIgnorance = 0.5;
// One observation is believed to be off by so much (e^0.25 = 1.28 times) and no more. With
// kIgnorance it bounds what one can do to a price: 0.25 * 0.5 / (1 + 0.5) = 0.083 in u, 8.7 %.
constexpr double kBelief = 0.25;
// Knowledge lost by the next observation, so that the model goes on learning: gains settle at
// 0.07 (a call of many prices) to 0.13 (of one), which is a memory of 8 to 15 calls like this one.
constexpr double kForgetting = 0.05;
constexpr double kMaxLogRatio =
    20;  // prices stay finite under any observation: 5e8 times the prior

// Work and Prices as arrays, in one order.
std::array<int64_t, 7> Units(const Work& w) {
  return {w.encode_units, w.forwards,       w.prefill_tokens, w.prefill_context,
          w.decode_rows,  w.decode_context, w.cross_positions};
}
std::array<int64_t, 7> PerUnit(const Prices& p) {
  return {p.encode_unit_ps, p.forward_ps,        p.prefill_token_ps, p.prefill_context_ps,
          p.decode_row_ps,  p.decode_context_ps, p.cross_position_ps};
}

// Solves a x = b in place of b. `a` is symmetric positive definite; its lower half is overwritten
// with L of a = L L^T (Golub & Van Loan, Matrix Computations, algorithm 4.2.1).
template <size_t n>
void SolveCholesky(std::array<std::array<double, n>, n>& a, std::array<double, n>& b) {
  for (size_t j = 0; j < n; ++j) {
    for (size_t k = 0; k < j; ++k) a[j][j] -= a[j][k] * a[j][k];
    a[j][j] = std::sqrt(a[j][j]);
    for (size_t i = j + 1; i < n; ++i) {
      for (size_t k = 0; k < j; ++k) a[i][j] -= a[i][k] * a[j][k];
      a[i][j] /= a[j][j];
    }
  }
  for (size_t i = 0; i < n; ++i) {  // L y = b
    for (size_t k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  for (size_t i = n; i-- > 0;) {  // L^T x = y
    for (size_t k = i + 1; k < n; ++k) b[i] -= a[k][i] * b[k];
    b[i] /= a[i][i];
  }
}

}  // namespace

int64_t PriceNs(const Prices& prices, const Work& work) {
  const auto units = Units(work);
  const auto per_unit = PerUnit(prices);
  int64_t total_ps = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    if (units[i] <= 0 || per_unit[i] <= 0) continue;
    int64_t ps = 0;
    if (__builtin_mul_overflow(units[i], per_unit[i], &ps) ||
        __builtin_add_overflow(total_ps, ps, &total_ps)) {
      total_ps = kMaxPs;
      break;
    }
  }
  return total_ps / 1000 + (total_ps % 1000 != 0);
}

CostModel::CostModel(const Prices& prior) : prices_(prior) {
  static_assert(std::is_trivially_copyable_v<CostModel>, "owns no memory, so allocates none");
  const auto per_unit = PerUnit(prior);
  for (size_t i = 0; i < kNumPrices; ++i) {
    CHECK_GE(per_unit[i], 0) << "price " << i;
    prior_ps_[i] = static_cast<double>(per_unit[i]);
  }
  Forget();
}

// Gauss-Newton on the log residuals, reweighted after Huber in every pass, with a quadratic prior
// on u: the most probable prices if each call's log time has Huber's noise and each price is
// log-normal around its prior. (Iteratively reweighted least squares: Holland & Welsch 1977.)
void CostModel::Fit(std::span<const Sample> calibration) {
  Forget();
  for (int pass = 0; pass < kMaxFitPasses; ++pass) {
    Matrix normal{};  // J^T W J + prior, where a row of J is a call's shares
    Vector step;      // first J^T W r - prior's pull, then the solution
    for (size_t i = 0; i < kNumPrices; ++i) {
      normal[i][i] = kPriorWeight;
      step[i] = -kPriorWeight * log_ratio_[i];
    }
    for (const Sample& sample : calibration) {
      const Prediction predicted = Predict(sample.work);
      if (sample.measured_ns <= 0 || predicted.ns <= 0) continue;
      const double residual = std::log(static_cast<double>(sample.measured_ns) / predicted.ns);
      const double weight = std::min(1.0, kFitHuber / std::max(kFitHuber, std::abs(residual)));
      for (size_t i = 0; i < kNumPrices; ++i) {
        const double weighted = weight * predicted.shares[i];
        step[i] += weighted * residual;
        for (size_t j = 0; j <= i; ++j) normal[i][j] += weighted * predicted.shares[j];
      }
    }
    SolveCholesky(normal, step);
    double largest = 0;
    for (double& s : step) {
      s = std::clamp(s, -kMaxFitStep, kMaxFitStep);
      largest = std::max(largest, std::abs(s));
    }
    Move(step);
    if (largest < kFitTolerance) break;
  }
}

// A Kalman filter on u with the call's shares as its observation (extended: they change with u),
// the innovation clipped as Huber would. Between calls the covariance relaxes towards kIgnorance
// on the diagonal, not beyond: prices long unseen are learnt afresh, and never blow up as they
// would if the covariance were divided by a forgetting factor.
void CostModel::Observe(const Work& work, int64_t measured_ns) {
  const Prediction predicted = Predict(work);
  if (measured_ns <= 0 || predicted.ns <= 0) return;
  const double measured = static_cast<double>(measured_ns);
  const double promised = static_cast<double>(PriceNs(prices_, work));
  errors_[static_cast<size_t>(observed_ % kErrorWindow)] = std::abs(promised - measured) / measured;
  ++observed_;

  // The n-th surprise in a row on the same side is believed n times as far as the first.
  const double residual = std::log(measured / predicted.ns);
  if (std::abs(residual) <= kBelief) {
    surprises_ = 0;
  } else if (residual > 0) {
    surprises_ = std::max<int64_t>(surprises_, 0) + 1;
  } else {
    surprises_ = std::min<int64_t>(surprises_, 0) - 1;
  }
  const double limit = kBelief * static_cast<double>(std::max<int64_t>(std::abs(surprises_), 1));
  const double believed = std::clamp(residual, -limit, limit);

  Vector gain{};        // covariance * shares / (1 + variance)
  double variance = 0;  // of the log prediction; at most kIgnorance
  for (size_t i = 0; i < kNumPrices; ++i) {
    for (size_t j = 0; j < kNumPrices; ++j) gain[i] += covariance_[i][j] * predicted.shares[j];
    variance += gain[i] * predicted.shares[i];
  }
  for (double& g : gain) g /= 1 + variance;
  Vector step;
  for (size_t i = 0; i < kNumPrices; ++i) {
    step[i] = gain[i] * believed;
    for (size_t j = 0; j < kNumPrices; ++j) {
      covariance_[i][j] -= gain[i] * gain[j] * (1 + variance);
      covariance_[i][j] *= 1 - kForgetting;
    }
    covariance_[i][i] += kForgetting * kIgnorance;
  }
  Move(step);
}

CostModel::Prediction CostModel::Predict(const Work& work) const {
  const auto units = Units(work);
  Prediction predicted;
  double total_ps = 0;
  for (size_t i = 0; i < kNumPrices; ++i) {
    predicted.shares[i] = price_ps_[i] * static_cast<double>(std::max<int64_t>(units[i], 0));
    total_ps += predicted.shares[i];
  }
  if (total_ps <= 0) return {};
  predicted.ns = total_ps / 1000;
  for (double& share : predicted.shares) share /= total_ps;
  return predicted;
}

// Back to the prior.
void CostModel::Forget() {
  log_ratio_ = {};
  covariance_ = {};
  for (size_t i = 0; i < kNumPrices; ++i) covariance_[i][i] = kIgnorance;
  surprises_ = 0;
  observed_ = 0;
  Move({});
}

void CostModel::Move(const Vector& step) {
  std::array<int64_t, kNumPrices> rounded;
  for (size_t i = 0; i < kNumPrices; ++i) {
    log_ratio_[i] = std::clamp(log_ratio_[i] + step[i], -kMaxLogRatio, kMaxLogRatio);
    price_ps_[i] = prior_ps_[i] * std::exp(log_ratio_[i]);
    // At least 1 where there is a prior: work without a price would be planned without bound.
    // 2^62 is exact as a double and as an integer.
    rounded[i] = prior_ps_[i] == 0 ? 0 : std::llround(std::clamp(price_ps_[i], 1.0, 0x1p62));
  }
  prices_ = {.encode_unit_ps = rounded[0],
             .forward_ps = rounded[1],
             .prefill_token_ps = rounded[2],
             .prefill_context_ps = rounded[3],
             .decode_row_ps = rounded[4],
             .decode_context_ps = rounded[5],
             .cross_position_ps = rounded[6]};
}

double CostModel::RelativeErrorQuantile(double quantile) const {
  const int64_t held = std::min<int64_t>(observed_, kErrorWindow);
  if (held == 0) return 0;
  auto sorted = errors_;
  const auto at = sorted.begin() + static_cast<int64_t>(quantile * static_cast<double>(held - 1));
  std::nth_element(sorted.begin(), at, sorted.begin() + held);
  return *at;
}

}  // namespace sensorium
