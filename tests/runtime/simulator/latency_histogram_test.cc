#include "runtime/simulator/latency_histogram.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

TEST(LatencyHistogramTest, QuantilesAreWithinOnePercentOfTheSortedSamples) {
  std::mt19937_64 random(1);
  LatencyHistogram histogram;
  std::vector<int64_t> samples;
  for (int i = 0; i < 20'000; ++i) {
    samples.push_back(static_cast<int64_t>(random() >> (20 + random() % 40)));
    histogram.Add(samples.back());
  }
  std::sort(samples.begin(), samples.end());
  for (const double q : {0.0, 0.1, 0.5, 0.9, 0.99, 1.0}) {
    const double exact = static_cast<double>(
        samples[static_cast<size_t>(q * static_cast<double>(samples.size() - 1))]);
    EXPECT_NEAR(static_cast<double>(histogram.QuantileUs(q)), exact, exact * 0.01) << q;
  }
  EXPECT_EQ(histogram.max_us(), samples.back());
  EXPECT_EQ(histogram.count(), 20'000);
}

TEST(LatencyHistogramTest, IsExactBelow256AndEmptyWithoutSamples) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.QuantileUs(0.5), 0);
  EXPECT_TRUE(histogram.Cdf().empty());
  for (int64_t us = 0; us < 256; ++us) histogram.Add(us);
  EXPECT_EQ(histogram.QuantileUs(0.5), 127);
  EXPECT_EQ(histogram.Cdf().size(), 256u);
  EXPECT_EQ(histogram.Cdf().back(), (std::pair<int64_t, double>(255, 1.0)));
}

}  // namespace
}  // namespace sensorium
