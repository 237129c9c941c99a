// What a call on the device will take, in predicted nanoseconds: the price of each kind of work for
// one model, fitted at start-up and refined by every call since. Engine thread only; no device, no
// clock, no allocation after construction, and the same observations give the same integers.
//
// A price is prior * exp(u), and the u are what is learnt, from the log of measured / predicted. So
// no price can become negative, a 100 us step counts like a 100 ms one, and the derivative of a
// log prediction by u is the share of the call that this price makes up: shares sum to 1 whatever
// the model or the machine, and with them every constant in the .cc is a plain number.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace sensorium {

// What one call on the device consists of, for one model; sums over its rows. An encode call has
// encode units only; a forward call has the rest.
struct Work {
  int64_t encode_units = 0;  // ViT crops, or stages of a Whisper encoder (at a price of its own)
  int64_t forwards = 0;      // 1 for a decoder forward pass: its fixed cost
  int64_t prefill_tokens = 0;
  int64_t prefill_context = 0;  // over new tokens, the tokens each attends to
  int64_t decode_rows = 0;
  int64_t decode_context = 0;   // over rows, the tokens each attends to
  int64_t cross_positions = 0;  // over rows and prefill tokens, the encoder positions read
  bool operator==(const Work&) const = default;
};

// Picoseconds a unit of Work, field by field. Integers: what the scheduler multiplies with, so that
// a plan can be replayed exactly.
struct Prices {
  int64_t encode_unit_ps = 0;
  int64_t forward_ps = 0;
  int64_t prefill_token_ps = 0;
  int64_t prefill_context_ps = 0;
  int64_t decode_row_ps = 0;
  int64_t decode_context_ps = 0;
  int64_t cross_position_ps = 0;

  bool operator==(const Prices&) const = default;
};

// Rounded up, so that priced work is never free. Never negative: counts and prices below 0 are
// taken as 0. Saturates at 106 days, INT64_MAX picoseconds, so that hundreds of calls
// can still be added up.
int64_t PriceNs(const Prices& prices, const Work& work);

struct Sample {
  Work work;
  int64_t measured_ns = 0;
};

class CostModel {
 public:
  // `prior` holds guesses, good to a factor of a hundred or so, for the work this model does. A
  // price of 0 says that it does none of that kind, and stays 0. REQUIRES: none is negative.
  explicit CostModel(const Prices& prior);

  // Starts again from the prior and a calibration run: work it does not hold keeps the prior's
  // price, work it hardly tells apart stays near it, and a few samples that are wildly off are
  // outvoted. 160 us for 400 samples, on one core of an AMD EPYC.
  void Fit(std::span<const Sample> calibration);

  // Learns from a call that was just made. A single one moves no price by more than 9 %; a run of
  // them that all say the same is a machine that changed: one twice as slow is known to 8 % after
  // 50 calls of one sort, to 16 % after 50 of every sort. 400 ns.
  void Observe(const Work& work, int64_t measured_ns);

  const Prices& prices() const { return prices_; }

  // Calls observed since construction or the last Fit; those without priced work or with a
  // measured time of 0 or less are ignored, here and everywhere.
  int64_t observed() const { return observed_; }
  // Of |predicted - measured| / measured over the last calls observed, each as predicted when it
  // was made. 0 before the first.
  double median_relative_error() const { return RelativeErrorQuantile(0.5); }
  double p90_relative_error() const { return RelativeErrorQuantile(0.9); }

 private:
  static constexpr int kNumPrices = 7;
  static constexpr int kErrorWindow = 128;
  using Vector = std::array<double, kNumPrices>;
  using Matrix = std::array<Vector, kNumPrices>;

  struct Prediction {
    double ns = 0;
    Vector shares{};  // of ns, by price
  };
  // ns is 0 if none of the work has a price.
  Prediction Predict(const Work& work) const;
  void Forget();
  void Move(const Vector& step);
  double RelativeErrorQuantile(double quantile) const;

  Vector prior_ps_;        // constant after construction
  Vector log_ratio_{};     // u: log of price / prior
  Vector price_ps_;        // prior_ps_ * exp(log_ratio_)
  Prices prices_;          // price_ps_ rounded
  Matrix covariance_;      // of log_ratio_, in units of one observation's variance
  int64_t surprises_ = 0;  // calls in a row beyond belief: slower if positive, faster if negative
  int64_t observed_ = 0;
  std::array<double, kErrorWindow> errors_{};  // a ring, by observed_
};

}  // namespace sensorium
