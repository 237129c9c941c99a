#include "runtime/cpu/log_softmax.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

double Naive(const std::vector<float>& logits) {
  double max = -kInf, sum = 0;
  for (const float x : logits) max = std::max<double>(max, x);
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
  return max + std::log(sum);
}

std::vector<std::pair<int32_t, float>> Top(std::span<const float> logits, double norm,
                                           int32_t count) {
  std::vector<std::pair<int32_t, float>> best(count);
  best.resize(TopLogProbs(logits, norm, best));
  return best;
}

TEST(LogSoftmaxTest, LogSumExpAgreesWithDoublePrecisionAtEverySize) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::normal_distribution<float> logit(0, 8);
  for (const int size : {1, 2, 7, 8, 9, 63, 97, 1000, 152064}) {
    std::vector<float> logits(size);
    for (float& x : logits) x = logit(random) + 300;
    EXPECT_NEAR(LogSumExp(logits), Naive(logits), 1e-6) << size;
  }
}

TEST(LogSoftmaxTest, ProbabilitiesSumToOne) {
  std::vector<float> logits(321);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i)) * 10;
  const double norm = LogSumExp(logits);
  double sum = 0;
  for (int32_t id = 0; id < 321; ++id) sum += std::exp(LogProb(logits, norm, id));
  EXPECT_NEAR(sum, 1, 1e-6);
}

TEST(LogSoftmaxTest, MaskedAndBrokenLogitsNeverCount) {
  const std::vector<float> logits = {-kInf, 1, kNan, 2, -kInf};
  EXPECT_EQ(Argmax(logits), 3);
  EXPECT_NEAR(LogSumExp(logits), std::log(std::exp(1.0) + std::exp(2.0)), 1e-6);
  const double norm = LogSumExp(logits);
  EXPECT_EQ(LogProb(logits, norm, 0), -kInf);
  EXPECT_EQ(LogProb(logits, norm, 2), -kInf);
  EXPECT_THAT(Top(logits, norm, 5), ElementsAre(Pair(3, testing::_), Pair(1, testing::_)));
}

TEST(LogSoftmaxTest, ARowOfNothingHasNoProbability) {
  const std::vector<float> nothing(9, -kInf), broken(9, kNan);
  for (const auto& row : {nothing, broken}) {
    EXPECT_EQ(LogSumExp(row), -kInf);
    EXPECT_EQ(Argmax(row), 0);
    EXPECT_EQ(LogProb(row, LogSumExp(row), 4), -kInf);
    EXPECT_TRUE(Top(row, LogSumExp(row), 3).empty());
  }
}

TEST(LogSoftmaxTest, TiesGoToTheLowestId) {
  std::vector<float> logits(50, 0);
  for (const int id : {13, 14, 40}) logits[id] = 3;
  EXPECT_EQ(Argmax(logits), 13);
  EXPECT_THAT(Top(logits, LogSumExp(logits), 4),
              ElementsAre(Pair(13, testing::_), Pair(14, testing::_), Pair(40, testing::_),
                          Pair(0, testing::_)));
}

TEST(LogSoftmaxTest, SumExpCountsOnlyWhatIsAboveTheFloor) {
  const std::vector<float> logits = {0, -1, -2, -3, -40, -kInf};
  const double all = 1 + std::exp(-0.5) + std::exp(-1.0) + std::exp(-1.5) + std::exp(-20.0);
  EXPECT_NEAR(SumExp(logits, 0, 2, -87), all, 1e-6);
  EXPECT_NEAR(SumExp(logits, 0, 2, -1.0f), 1 + std::exp(-0.5) + std::exp(-1.0), 1e-6);
  EXPECT_EQ(SumExp(logits, 0, 2, 0), 1);
}

}  // namespace
}  // namespace sensorium
