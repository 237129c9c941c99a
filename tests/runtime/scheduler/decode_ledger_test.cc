#include "runtime/scheduler/decode_ledger.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(DecodeLedgerTest, ABillIsWhatEveryStepCostAddedUp) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  DecodeLedger ledger(2);
  const auto step = [&] {
    std::vector<RowPrices> prices;
    for (int m = 0; m < 2; ++m) {
      prices.push_back({static_cast<int64_t>(random() % 1'000'000'000'000),
                        static_cast<int64_t>(random() % 1'000'000),
                        static_cast<int64_t>(random() % 1'000'000)});
    }
    ledger.Step(prices);
    return prices;
  };
  for (int trial = 0; trial < 50; ++trial) {
    for (uint64_t before = random() % 1000; before > 0; --before) step();  // others' steps
    const auto model = static_cast<int32_t>(random() % 2);
    const auto rows = static_cast<int64_t>(1 + random() % 20);
    const auto cross = static_cast<int64_t>(random() % 1500);
    int64_t context = static_cast<int64_t>(random() % 100'000);
    const int64_t at_0 = context - ledger.steps();
    const uint64_t before = ledger.Bill(model, rows, at_0, cross);
    int64_t expected = 0;
    for (int i = 0; i < 300; ++i) {
      const RowPrices p = step()[model];
      ++context;
      expected += rows * (p.row_ps + context * p.context_ps + cross * p.cross_ps);
      ASSERT_EQ(static_cast<int64_t>(ledger.Bill(model, rows, at_0, cross) - before), expected);
    }
    EXPECT_EQ(at_0 + ledger.steps(), context);
  }
}

}  // namespace
}  // namespace sensorium
