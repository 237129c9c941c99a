// Made-up machines with known prices and some noise: does the model find the prices, and is it
// unmoved by what is not the machine?
#include "runtime/scheduler/cost_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// A small multimodal model on a CPU: a crop 20 ms, a pass 1 ms, a prefill token 100 us, ...
constexpr Prices kPrior = {.encode_unit_ps = 20'000'000'000,
                           .forward_ps = 1'000'000'000,
                           .prefill_token_ps = 100'000'000,
                           .prefill_context_ps = 100'000,
                           .decode_row_ps = 300'000'000,
                           .decode_context_ps = 400'000,
                           .cross_position_ps = 200'000};

using PriceField = int64_t Prices::*;
constexpr PriceField kFields[] = {&Prices::encode_unit_ps,   &Prices::forward_ps,
                                  &Prices::prefill_token_ps, &Prices::prefill_context_ps,
                                  &Prices::decode_row_ps,    &Prices::decode_context_ps,
                                  &Prices::cross_position_ps};

Prices Times(Prices prices, double factor) {
  for (PriceField field : kFields) {
    prices.*field = std::llround(static_cast<double>(prices.*field) * factor);
  }
  return prices;
}

// |a / b - 1|
double RelativeDifference(int64_t a, int64_t b) {
  return std::abs(static_cast<double>(a) / static_cast<double>(b) - 1);
}

// A machine whose calls take what its prices say, give or take some noise.
class Machine {
 public:
  Machine(const Prices& prices, double noise, uint64_t seed)
      : prices_(prices), noise_(noise), random_(seed) {}

  void set_prices(const Prices& prices) { prices_ = prices; }

  int64_t Uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  double LogUniform(double low, double high) {
    return std::exp(std::uniform_real_distribution<double>(std::log(low), std::log(high))(random_));
  }

  // Encode calls, and forward calls of decodes, of prefill and of both, short and long.
  Work AnyWork() {
    const int64_t kind = Uniform(0, 3);
    if (kind == 0) return {.encode_units = Uniform(1, 4)};
    Work work{.forwards = 1};
    if (kind != 1) {
      work.prefill_tokens = std::llround(LogUniform(1, 512));
      work.prefill_context = work.prefill_tokens * std::llround(LogUniform(1, 4096));
    }
    if (kind != 2) {
      work.decode_rows = std::llround(LogUniform(1, 64));
      work.decode_context = work.decode_rows * std::llround(LogUniform(1, 8192));
    }
    if (Uniform(0, 1) == 0) {
      work.cross_positions = 1500 * (work.decode_rows + work.prefill_tokens);
    }
    return work;
  }

  int64_t Run(const Work& work) {
    const double factor = std::exp(std::normal_distribution<double>(0, noise_)(random_));
    return std::llround(static_cast<double>(PriceNs(prices_, work)) * factor);
  }

  std::vector<Sample> Calibrate(int samples) {
    std::vector<Sample> calibration;
    for (int i = 0; i < samples; ++i) {
      const Work work = AnyWork();
      calibration.push_back({work, Run(work)});
    }
    return calibration;
  }

  // Prices up to ten times off those given, each in its own direction.
  Prices Scatter(Prices prices) {
    for (PriceField field : kFields) {
      prices.*field = std::llround(static_cast<double>(prices.*field) * LogUniform(0.1, 10));
    }
    return prices;
  }

 private:
  Prices prices_;
  double noise_;
  std::mt19937_64 random_;
};

// The largest relative error over a thousand calls that the model has not seen.
double WorstPrediction(const CostModel& model, const Prices& truth, uint64_t seed) {
  Machine machine(truth, 0, seed);
  double worst = 0;
  for (int i = 0; i < 1000; ++i) {
    const Work work = machine.AnyWork();
    worst =
        std::max(worst, RelativeDifference(PriceNs(model.prices(), work), PriceNs(truth, work)));
  }
  return worst;
}

TEST(PriceTest, IsTheSumOfUnitsTimesPrices) {
  EXPECT_EQ(PriceNs(kPrior, {.encode_units = 2}), 40'000'000);
  EXPECT_EQ(PriceNs(kPrior, {.forwards = 1,
                             .prefill_tokens = 10,
                             .prefill_context = 55,
                             .decode_rows = 2,
                             .decode_context = 1000,
                             .cross_positions = 1500}),
            1'000'000 + 1'000'000 + 5'500 + 600'000 + 400'000 + 300'000);
  EXPECT_EQ(PriceNs(kPrior, {}), 0);
}

TEST(PriceTest, IsRoundedUpSoThatWorkIsNeverFree) {
  EXPECT_EQ(PriceNs({.decode_row_ps = 1}, {.decode_rows = 1}), 1);
  EXPECT_EQ(PriceNs({.decode_row_ps = 1}, {.decode_rows = 1000}), 1);
  EXPECT_EQ(PriceNs({.decode_row_ps = 1}, {.decode_rows = 1001}), 2);
}

TEST(PriceTest, SaturatesInsteadOfOverflowing) {
  const int64_t most = kMax / 1000 + 1;
  EXPECT_EQ(PriceNs({.decode_row_ps = kMax}, {.decode_rows = 1}), most);
  EXPECT_EQ(PriceNs({.decode_row_ps = kMax}, {.decode_rows = kMax}), most);
  EXPECT_EQ(PriceNs({.forward_ps = kMax, .decode_row_ps = 1}, {.forwards = 1, .decode_rows = 1}),
            most);
  EXPECT_EQ(PriceNs({kMax, kMax, kMax, kMax, kMax, kMax, kMax},
                    {kMax, kMax, kMax, kMax, kMax, kMax, kMax}),
            most);
}

TEST(PriceTest, IsNeverNegative) {
  EXPECT_EQ(PriceNs(kPrior, {.encode_units = -5}), 0);
  EXPECT_EQ(PriceNs({.forward_ps = -7}, {.forwards = 1}), 0);
  EXPECT_EQ(
      PriceNs({.forward_ps = 5000, .decode_row_ps = -kMax}, {.forwards = 1, .decode_rows = 9}), 5);
}

TEST(CostModelTest, StartsWithThePrior) {
  const CostModel model(kPrior);
  EXPECT_EQ(model.prices(), kPrior);
  EXPECT_EQ(model.observed(), 0);
  EXPECT_EQ(model.median_relative_error(), 0);
}

TEST(CostModelTest, AFitRecoversKnownPricesFromNoisySamples) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    const Prices truth = machine.Scatter(kPrior);
    machine.set_prices(truth);
    CostModel model(kPrior);
    model.Fit(machine.Calibrate(400));
    EXPECT_LT(WorstPrediction(model, truth, seed + 1000), 0.08);
    // A price that hardly shows in any call is known less well, and matters as little.
    for (PriceField field : kFields) {
      EXPECT_LT(RelativeDifference(model.prices().*field, truth.*field), 0.35);
    }
  }
}

TEST(CostModelTest, AFitWithoutNoiseIsNearlyExact) {
  Machine machine(Times(kPrior, 3), /*noise=*/0, /*seed=*/1);
  CostModel model(kPrior);
  model.Fit(machine.Calibrate(200));
  EXPECT_LT(WorstPrediction(model, Times(kPrior, 3), /*seed=*/2), 0.001);
}

TEST(CostModelTest, AFitFindsAMachineAThousandTimesFasterThanThePrior) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    const Prices truth = machine.Scatter(Times(kPrior, 0.001));
    machine.set_prices(truth);
    CostModel model(kPrior);
    model.Fit(machine.Calibrate(400));
    EXPECT_LT(WorstPrediction(model, truth, seed + 1000), 0.08);
  }
}

TEST(CostModelTest, AFitOutvotesSamplesThatAreWildlyOff) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    const Prices truth = machine.Scatter(kPrior);
    machine.set_prices(truth);
    std::vector<Sample> calibration = machine.Calibrate(400);
    for (size_t i = 0; i < calibration.size(); i += 10) calibration[i].measured_ns *= 100;
    for (size_t i = 5; i < calibration.size(); i += 50) calibration[i].measured_ns = 1;
    CostModel model(kPrior);
    model.Fit(calibration);
    EXPECT_LT(WorstPrediction(model, truth, seed + 1000), 0.15);
  }
}

TEST(CostModelTest, AShortCallCountsAsMuchAsALongOne) {
  // No price fits both: they err by the same factor, though one is a thousand times the other.
  const Work brief{.decode_rows = 1};
  const Work lengthy{.decode_rows = 1000};
  CostModel model(kPrior);
  model.Fit(std::vector<Sample>{{brief, 100'000}, {lengthy, 121'000'000}});
  EXPECT_NEAR(static_cast<double>(PriceNs(model.prices(), brief)), 110'000, 200);
}

TEST(CostModelTest, WorkThatCalibrationDoesNotHoldKeepsThePrior) {
  Machine machine(Times(kPrior, 5), /*noise=*/0.03, /*seed=*/3);
  std::vector<Sample> decodes;
  for (int i = 0; i < 100; ++i) {
    const int64_t rows = machine.Uniform(1, 64);
    const Work work{
        .forwards = 1, .decode_rows = rows, .decode_context = rows * machine.Uniform(1, 4096)};
    decodes.push_back({work, machine.Run(work)});
  }
  CostModel model(kPrior);
  model.Fit(decodes);
  EXPECT_NEAR(static_cast<double>(model.prices().decode_row_ps), 5.0 * kPrior.decode_row_ps,
              0.5 * kPrior.decode_row_ps);
  EXPECT_EQ(model.prices().encode_unit_ps, kPrior.encode_unit_ps);
  EXPECT_EQ(model.prices().prefill_token_ps, kPrior.prefill_token_ps);
  EXPECT_EQ(model.prices().prefill_context_ps, kPrior.prefill_context_ps);
  EXPECT_EQ(model.prices().cross_position_ps, kPrior.cross_position_ps);
}

TEST(CostModelTest, WorkThatCalibrationCannotTellApartSharesTheDifference) {
  // Always 4 rows and a pass: together twice what the prior says, each by the same factor.
  const Work work{.forwards = 4, .decode_rows = 4};
  const Prices prior{.forward_ps = 1'000'000, .decode_row_ps = 1'000'000};
  CostModel model(prior);
  model.Fit(std::vector<Sample>(20, Sample{work, 16'000}));
  EXPECT_NEAR(static_cast<double>(model.prices().forward_ps), 2'000'000, 1000);
  EXPECT_EQ(model.prices().forward_ps, model.prices().decode_row_ps);
}

TEST(CostModelTest, ASecondFitForgetsTheFirst) {
  Machine machine(Times(kPrior, 2), /*noise=*/0.03, /*seed=*/5);
  const std::vector<Sample> calibration = machine.Calibrate(100);
  CostModel once(kPrior);
  once.Fit(calibration);
  CostModel twice(kPrior);
  twice.Fit(Machine(Times(kPrior, 9), 0.03, /*seed=*/6).Calibrate(100));
  twice.Observe({.forwards = 1}, 5'000'000);
  twice.Fit(calibration);
  EXPECT_EQ(once.prices(), twice.prices());
  EXPECT_EQ(twice.observed(), 0);
}

TEST(CostModelTest, WhatAModelNeverDoesStaysFree) {
  Prices text = kPrior;
  text.encode_unit_ps = 0;
  text.cross_position_ps = 0;
  Machine machine(kPrior, /*noise=*/0.03, /*seed=*/7);
  CostModel model(text);
  model.Fit(machine.Calibrate(200));
  for (const Sample& sample : machine.Calibrate(200))
    model.Observe(sample.work, sample.measured_ns);
  EXPECT_EQ(model.prices().encode_unit_ps, 0);
  EXPECT_EQ(model.prices().cross_position_ps, 0);
}

TEST(CostModelTest, OneOutlierMovesNoPredictionByATenth) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    CostModel model(kPrior);
    const int64_t calls = machine.Uniform(0, 100);  // new to the machine, or at home on it
    for (int64_t i = 0; i < calls; ++i) {
      const Work work = machine.AnyWork();
      model.Observe(work, machine.Run(work));
    }
    for (double factor : {100.0, 0.01, 1e9}) {
      CostModel hit = model;
      const Work work = machine.AnyWork();
      const double measured = static_cast<double>(PriceNs(kPrior, work)) * factor;
      hit.Observe(work, std::max<int64_t>(1, std::llround(std::min(measured, 9e18))));
      EXPECT_LT(WorstPrediction(hit, model.prices(), seed + 1000), 0.1);
    }
  }
}

TEST(CostModelTest, ScatteredOutliersLeaveNoMark) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    CostModel model(kPrior);
    for (int i = 0; i < 1000; ++i) {
      const Work work = machine.AnyWork();
      model.Observe(work, machine.Run(work) * (machine.Uniform(1, 50) == 1 ? 100 : 1));
    }
    EXPECT_LT(WorstPrediction(model, kPrior, seed + 1000), 0.2);
    EXPECT_LT(model.median_relative_error(), 0.06);
  }
}

TEST(CostModelTest, FollowsAMachineThatSlowsDownByTwoWithinFiftyCalls) {
  for (double factor : {2.0, 0.5}) {
    for (uint64_t seed = 1; seed <= 50; ++seed) {
      SCOPED_TRACE(testing::Message() << "factor " << factor << " seed " << seed);
      Machine machine(kPrior, /*noise=*/0.03, seed);
      CostModel model(kPrior);
      // One stream decoding, as in most steps of a server; at home on the machine before.
      Work step{.forwards = 1, .decode_rows = 8, .decode_context = 8 * 500};
      for (int i = 0; i < 300; ++i) {
        step.decode_context += 8;
        model.Observe(step, machine.Run(step));
      }
      EXPECT_LT(RelativeDifference(PriceNs(model.prices(), step), PriceNs(kPrior, step)), 0.05);
      const Prices now = Times(kPrior, factor);
      machine.set_prices(now);
      for (int i = 0; i < 50; ++i) {
        step.decode_context += 8;
        model.Observe(step, machine.Run(step));
      }
      EXPECT_LT(RelativeDifference(PriceNs(model.prices(), step), PriceNs(now, step)), 0.08);
    }
  }
}

TEST(CostModelTest, ARunOfSurprisesIsBelieved) {
  // Ten times slower: an outlier if it comes once, a different machine if it stays.
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(Times(kPrior, 10), /*noise=*/0.03, seed);
    CostModel model(kPrior);
    const Work step{.forwards = 1, .decode_rows = 8, .decode_context = 8 * 500};
    for (int i = 0; i < 80; ++i) model.Observe(step, machine.Run(step));
    EXPECT_LT(RelativeDifference(PriceNs(model.prices(), step), 10 * PriceNs(kPrior, step)), 0.1);
  }
}

TEST(CostModelTest, BlamesTheWorkItKnowsLeast) {
  // Long at home in decoding, then prefill joins and costs three times what was thought: that is
  // no reason to doubt the price of decoding.
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Prices truth = kPrior;
    truth.prefill_token_ps *= 3;
    Machine machine(truth, /*noise=*/0.03, seed);
    CostModel model(kPrior);
    const Work decode{.forwards = 1, .decode_rows = 8, .decode_context = 8 * 500};
    Work mixed = decode;
    mixed.prefill_tokens = 50;
    for (int i = 0; i < 300; ++i) model.Observe(decode, machine.Run(decode));
    for (int i = 0; i < 10; ++i) model.Observe(mixed, machine.Run(mixed));
    EXPECT_LT(RelativeDifference(PriceNs(model.prices(), decode), PriceNs(truth, decode)), 0.15);
    EXPECT_LT(RelativeDifference(PriceNs(model.prices(), mixed), PriceNs(truth, mixed)), 0.3);
  }
}

TEST(CostModelTest, LearnsWhichWorkItIsThatSlowedDown) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    CostModel model(kPrior);
    Prices now = kPrior;
    now.prefill_token_ps *= 3;
    now.decode_context_ps /= 2;
    machine.set_prices(now);
    for (int i = 0; i < 1000; ++i) {
      const Work work = machine.AnyWork();
      model.Observe(work, machine.Run(work));
    }
    EXPECT_LT(WorstPrediction(model, now, seed + 1000), 0.2);
    EXPECT_LT(RelativeDifference(model.prices().prefill_token_ps, now.prefill_token_ps), 0.15);
    EXPECT_LT(RelativeDifference(model.prices().decode_context_ps, now.decode_context_ps), 0.15);
  }
}

TEST(CostModelTest, WorkThatIsNotSeenKeepsItsPrice) {
  Machine machine(Times(kPrior, 2), /*noise=*/0.03, /*seed=*/11);
  CostModel model(kPrior);
  const Work work{.forwards = 1, .decode_rows = 4, .decode_context = 800};
  for (int i = 0; i < 1000; ++i) model.Observe(work, machine.Run(work));
  EXPECT_EQ(model.prices().encode_unit_ps, kPrior.encode_unit_ps);
  EXPECT_EQ(model.prices().prefill_token_ps, kPrior.prefill_token_ps);
}

TEST(CostModelTest, PricesStayPositiveAndFiniteWhateverIsMeasured) {
  const Prices extremes{.encode_unit_ps = kMax, .forward_ps = 1, .decode_row_ps = 1 << 20};
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    for (const Prices& prior : {kPrior, extremes}) {
      Machine machine(prior, /*noise=*/0, seed);
      const auto nonsense = [&] {
        Sample sample{machine.AnyWork(), std::llround(machine.LogUniform(1, 9e18))};
        if (machine.Uniform(0, 3) == 0) sample.measured_ns = machine.Uniform(0, 1) ? 1 : kMax;
        if (machine.Uniform(0, 9) == 0) sample.work.decode_context = kMax;
        return sample;
      };
      std::vector<Sample> calibration(100);
      std::generate(calibration.begin(), calibration.end(), nonsense);
      CostModel model(prior);
      model.Fit(calibration);
      for (int i = 0; i < 3000; ++i) {
        const Sample sample = nonsense();
        // Long stretches of one kind, too: a run of surprises is believed.
        model.Observe(sample.work, i / 200 % 3 == 0 ? sample.measured_ns : i / 200 % 2 ? 1 : kMax);
        for (PriceField field : kFields) {
          ASSERT_EQ(model.prices().*field > 0, prior.*field > 0);
          ASSERT_GE(model.prices().*field, 0);
        }
      }
    }
  }
}

TEST(CostModelTest, FindsBackAfterTheMachineWasHeldUp) {
  // A neighbour that took the cores for thirty calls of whatever kind, a hundred times over.
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(kPrior, /*noise=*/0.03, seed);
    CostModel model(kPrior);
    model.Fit(machine.Calibrate(200));
    for (int i = 0; i < 30; ++i) {
      const Work work = machine.AnyWork();
      model.Observe(work, machine.Run(work) * 100);
    }
    for (int i = 0; i < 500; ++i) {
      const Work work = machine.AnyWork();
      model.Observe(work, machine.Run(work));
    }
    EXPECT_LT(model.p90_relative_error(), 0.15);
    EXPECT_LT(WorstPrediction(model, kPrior, seed + 1000), 0.25);
  }
}

TEST(CostModelTest, IgnoresCallsThatSayNothing) {
  CostModel model(kPrior);
  const Work work{.forwards = 1};
  const std::vector<Sample> nothing = {
      {work, 0}, {work, -5}, {{}, 1000}, {{.decode_rows = -1}, 10}};
  model.Fit(nothing);
  for (const Sample& sample : nothing) model.Observe(sample.work, sample.measured_ns);
  model.Fit({});
  EXPECT_EQ(model.prices(), kPrior);
  EXPECT_EQ(model.observed(), 0);
}

TEST(CostModelTest, TheSameSamplesGiveTheSameIntegers) {
  Machine machine(Times(kPrior, 0.3), /*noise=*/0.1, /*seed=*/17);
  const std::vector<Sample> calibration = machine.Calibrate(100);
  const std::vector<Sample> calls = machine.Calibrate(500);
  CostModel a(kPrior);
  CostModel b(kPrior);
  a.Fit(calibration);
  b.Fit(calibration);
  for (const Sample& call : calls) {
    a.Observe(call.work, call.measured_ns);
    b.Observe(call.work, call.measured_ns);
    ASSERT_EQ(a.prices(), b.prices());
  }
  EXPECT_NE(a.prices(), kPrior);
}

TEST(CostModelTest, SaysHowFarItsPredictionsAre) {
  const Prices prior{.forward_ps = 1'000'000};
  CostModel model(prior);
  model.Observe({.forwards = 1}, 1250);  // 1000 ns were predicted
  EXPECT_DOUBLE_EQ(model.median_relative_error(), 0.2);
  EXPECT_EQ(model.observed(), 1);
  // The window forgets the days when the machine was unknown.
  for (int i = 0; i < 400; ++i) model.Observe({.forwards = 1}, 1250);
  EXPECT_LT(model.p90_relative_error(), 0.001);
  // Every eighth call doubles its time: more than a tenth, less than a half.
  for (int i = 0; i < 128; ++i) model.Observe({.forwards = 1}, i % 8 == 0 ? 2500 : 1250);
  EXPECT_LT(model.median_relative_error(), 0.06);
  EXPECT_GT(model.p90_relative_error(), 0.4);
}

}  // namespace
}  // namespace sensorium
