// What decodes cost, kept so that a step costs the same however many of them there are. Every
// decode of the ledger is in every step and grows by one token in it, so a job's bill is a linear
// function of sums that all jobs share, and is worked out when somebody asks. Engine thread only;
// storage is taken at construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sensorium {

// Of one model, picoseconds: of a row, of a token of a row's context, of a position it reads
// across.
struct RowPrices {
  int64_t row_ps = 0;  // with its share of the pass's fixed cost
  int64_t context_ps = 0;
  int64_t cross_ps = 0;
};

class DecodeLedger {
 public:
  explicit DecodeLedger(size_t num_models) : sums_(num_models) {}

  // Steps so far. A context is kept as what it was at step 0: context - steps().
  int64_t steps() const { return static_cast<int64_t>(steps_); }

  // All decodes have run once more: at these prices, by model, each row attending to the token that
  // it grew by, too.
  void Step(const std::vector<RowPrices>& prices) {
    ++steps_;
    for (size_t m = 0; m < sums_.size(); ++m) {
      Sums& sums = sums_[m];
      const auto context_ps = static_cast<uint64_t>(prices[m].context_ps);
      sums.row_ps += static_cast<uint64_t>(prices[m].row_ps);
      sums.cross_ps += static_cast<uint64_t>(prices[m].cross_ps);
      sums.context_ps += context_ps;
      sums.growing_ps += context_ps * steps_;
    }
  }

  // What `rows` rows would have been billed from step 0 on, in picoseconds, modulo 2^64: what they
  // cost between two moments is the difference, which is exact while it is below 2^63 (106 days).
  uint64_t Bill(int32_t model, int64_t rows, int64_t context_at_0, int64_t cross_len) const {
    const Sums& sums = sums_[model];
    const auto n = static_cast<uint64_t>(rows);
    return n * (sums.row_ps + static_cast<uint64_t>(context_at_0) * sums.context_ps +
                sums.growing_ps + static_cast<uint64_t>(cross_len) * sums.cross_ps);
  }

 private:
  struct Sums {  // over the steps
    uint64_t row_ps = 0, context_ps = 0, cross_ps = 0;
    uint64_t growing_ps = 0;  // of context_ps * the step's number
  };
  std::vector<Sums> sums_;  // by model
  uint64_t steps_ = 0;
};

}  // namespace sensorium
