#include "runtime/simulator/simulator.h"

#include <cstdio>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/replay.h"
#include "tests/runtime/scheduler/traced_run.h"

namespace sensorium {
namespace {

constexpr RequestKind kText = RequestKind::kText;

Distribution Always(double n) { return {.kind = Distribution::Kind::kConstant, .a = n}; }

RequestMix Text(double prompt, double output) {
  return {.kind = kText, .prompt_tokens = Always(prompt), .output_tokens = Always(output)};
}

// A decode row or a prefill token costs what it says, a pass nothing.
DeviceProfile Plain(int64_t row_us, int64_t token_us) {
  DeviceProfile profile{.name = "plain", .kv_blocks = 20'000};
  profile.vision.prices = {.prefill_token_ps = token_us * 1'000'000,
                           .decode_row_ps = row_us * 1'000'000};
  return profile;
}

SimulationRun Simulated(const Workload& w, const DeviceProfile& profile,
                        const SimulationOptions& o) {
  const auto run = Simulate(w, profile, o);
  EXPECT_TRUE(run.ok()) << run.status();
  return run.ok() ? *run : SimulationRun{};
}

TEST(SimulatorTest, TheSameSeedGivesTheSameReport) {
  Workload w{.rate = 8, .duration_s = 30, .mix = *ParseMix("picture:3,speech:1,text:6")};
  w.tenants = {{.name = "a"}, {.name = "b", .share = 2, .weight = 3000}};
  const DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  SimulationOptions o{.target_step_us = 20'000, .optimistic = true, .seed = 3};
  o.noise = 0.1;
  o.price_error = 2;
  const SimulationReport first = Simulated(w, profile, o).report;
  EXPECT_EQ(Simulated(w, profile, o).report, first);
  EXPECT_GT(first.total.completed, 100);
  o.seed = 4;
  EXPECT_NE(Simulated(w, profile, o).report, first);
}

TEST(SimulatorTest, LittlesLawHoldsInAStationaryRun) {
  Workload w{.rate = 40, .duration_s = 2000};
  w.mix = {Text(20, 30)};
  w.mix[0].output_tokens = {.kind = Distribution::Kind::kGeometric, .a = 30};
  const SimulationRun run =
      Simulated(w, Plain(500, 50), {.max_waiting = 10'000, .target_step_us = 5000, .warmup_s = 50});
  const SimulationReport& r = run.report;
  EXPECT_EQ(r.total.refused, 0);
  EXPECT_GT(r.utilisation, 0.5);
  EXPECT_LT(r.utilisation, 0.95);
  const double arrival_rate = static_cast<double>(r.total.arrived) / r.window_s;
  const double predicted = arrival_rate * r.total.end_to_end.mean_us() / 1e6;
  EXPECT_NEAR(r.mean_in_system, predicted, 0.03 * predicted);
  std::printf("Little: L = %.3f, lambda W = %.3f\n", r.mean_in_system, predicted);
}

TEST(SimulatorTest, SaturationThroughputIsOneOverTheServiceTime) {
  Workload w{.rate = 100, .duration_s = 200};
  w.mix = {Text(100, 41)};
  // One at a time: 100 tokens of 50 us, then 40 rows of 500 us.
  const SimulationReport r = Simulated(w, Plain(500, 50), {.max_batch_seqs = 1}).report;
  const double service_s = 100 * 50e-6 + 40 * 500e-6;
  EXPECT_NEAR(r.requests_per_s, 1 / service_s, 0.02 / service_s);
  EXPECT_NEAR(r.tokens_per_s, 41 / service_s, 0.02 * 41 / service_s);
  EXPECT_NEAR(r.utilisation, 1, 0.01);
  EXPECT_GT(r.total.refused, 0);
  std::printf("saturation: %.2f requests/s, 1 / service time %.2f\n", r.requests_per_s,
              1 / service_s);
}

TEST(SimulatorTest, TenantsWeightedOneToTwoGetOneToTwoWhenSaturated) {
  Workload w{.rate = 400, .duration_s = 100, .mix = *ParseMix("picture:1,text:2")};
  w.tenants = {{.name = "one", .weight = 1000, .max_waiting = 100},
               {.name = "two", .weight = 2000, .max_waiting = 100}};
  const DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  const SimulationReport r =
      Simulated(w, profile, {.target_step_us = 30'000, .warmup_s = 10}).report;
  ASSERT_EQ(r.tenants.size(), 2u);
  EXPECT_NEAR(r.tenants[1].device_s / r.tenants[0].device_s, 2, 0.1);
  EXPECT_GT(r.fairness, 0.99);
  std::printf("weights 1:2: %.2f s and %.2f s, Jain %.4f\n", r.tenants[0].device_s,
              r.tenants[1].device_s, r.fairness);
}

// A line that is full of one tenant's requests would refuse the other's, whatever its weight.
TEST(SimulatorTest, ATenantThatFloodsTheLineGetsNobodyElseRefused) {
  Workload w{.rate = 300, .duration_s = 60, .mix = *ParseMix("text")};
  w.tenants = {{.name = "flood", .share = 99}, {.name = "quiet", .share = 1}};
  const DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  const SimulationReport r =
      Simulated(w, profile, {.target_step_us = 30'000, .warmup_s = 5}).report;
  ASSERT_EQ(r.tenants.size(), 2u);
  EXPECT_GT(r.tenants[0].refused, r.tenants[0].completed);
  EXPECT_GT(r.tenants[1].arrived, 50);
  EXPECT_EQ(r.tenants[1].refused, 0);
  EXPECT_LT(r.tenants[1].queueing.QuantileUs(0.99), r.tenants[0].queueing.QuantileUs(0.5));
}

TEST(SimulatorTest, EveryRequestEndsInOneWay) {
  Workload w{.rate = 60, .duration_s = 30, .mix = *ParseMix("picture:3,speech:2,text:5")};
  w.mix[0].deadline_ms = 3000;
  w.mix[2].audio_ms = Always(4000);  // spoken questions
  DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  profile.kv_blocks = 300;
  const SimulationReport r =
      Simulated(w, profile, {.max_waiting = 40, .target_step_us = 20'000, .optimistic = true})
          .report;
  EXPECT_EQ(r.total.arrived, r.total.completed + r.total.refused + r.total.expired);
  EXPECT_GT(r.total.completed, 0);
  EXPECT_GT(r.total.refused, 0);
  EXPECT_GT(r.total.expired, 0);
  EXPECT_GT(r.preemptions, 0);
  int64_t arrived = 0;
  for (const GroupReport& kind : r.kinds) arrived += kind.arrived;
  EXPECT_EQ(arrived, r.total.arrived);
  EXPECT_GE(r.total.first_token.count(), r.total.completed);
}

TEST(SimulatorTest, PricesThatAreWrongAtFirstAreLearnt) {
  Workload w{.rate = 6, .duration_s = 60, .mix = *ParseMix("picture:1,text:2")};
  const DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  SimulationOptions o{.target_step_us = 20'000, .warmup_s = 10, .noise = 0.02, .price_error = 4};
  EXPECT_LT(Simulated(w, profile, o).report.median_step_error, 0.1);
}

// What the issue asks for: 8 token streams, and a flood of pictures and recordings beside them.
TEST(SimulatorTest, AFloodStallsTokenStreamsByNoMoreThanTheStatedBound) {
  for (const std::string& name : BuiltInProfiles()) {
    const DeviceProfile profile = *LoadDeviceProfile(name);
    const bool mini = name == "cpu-mini";
    Workload streams{.duration_s = 60};
    for (int i = 0; i < 8; ++i) {
      streams.arrivals.push_back({.kind = kText, .prompt_tokens = 100, .output_tokens = 1500});
    }
    Workload flood = streams;
    for (int i = 0; i < 400; ++i) {
      Arrival a{.time_us = 100'000 + i * 10'000};
      if (i % 3 == 2) {
        a.kind = RequestKind::kSpeech;
        a.audio_ms = 30'000;
        a.output_tokens = 40;
      } else {
        a.kind = RequestKind::kPicture;
        a.image_crops = 13;
        a.prompt_tokens = 30;
        a.output_tokens = 20;
      }
      flood.arrivals.push_back(a);
    }
    const SimulationOptions first_come{.max_batch_seqs = 24, .max_waiting = 1000};
    SimulationOptions budget = first_come;
    budget.target_step_us = mini ? 12'000 : 20'000;
    const SimulationReport alone = Simulated(streams, profile, budget).report;
    const SimulationReport fair = Simulated(flood, profile, budget).report;
    const SimulationReport first = Simulated(flood, profile, first_come).report;
    const auto text = [](const SimulationReport& r) -> const LatencyHistogram& {
      for (const GroupReport& kind : r.kinds) {
        if (kind.name == "text") return kind.inter_token;
      }
      return r.total.inter_token;
    };
    const auto print = [&](const char* what, const SimulationReport& r) {
      std::printf(
          "%s, %s: inter-token of the 8 streams p50 %.1f ms, p99 %.1f ms, most %.1f ms; "
          "stated bound %.1f ms = decodes %.1f + max(target, unit %.1f); pictures' and "
          "recordings' first token p50 %.2f s; %.1f s in all\n",
          name.c_str(), what, static_cast<double>(text(r).QuantileUs(0.5)) / 1e3,
          static_cast<double>(text(r).QuantileUs(0.99)) / 1e3,
          static_cast<double>(text(r).max_us()) / 1e3, static_cast<double>(r.stall_bound_us) / 1e3,
          static_cast<double>(r.dearest_decodes_us) / 1e3,
          static_cast<double>(r.dearest_unit_us) / 1e3,
          static_cast<double>(r.total.first_token.QuantileUs(0.5)) / 1e6, r.simulated_s);
    };
    print("alone", alone);
    print("flood, budget", fair);
    print("flood, first-come", first);
    EXPECT_EQ(fair.total.refused + first.total.refused, 0);
    EXPECT_LE(text(fair).QuantileUs(0.99), fair.stall_bound_us) << name;
    EXPECT_LE(text(fair).max_us(), fair.stall_bound_us + 2) << name;
    EXPECT_GT(text(first).QuantileUs(0.99), fair.stall_bound_us) << name;
  }
}

TEST(SimulatorTest, ItsTraceReplaysWithoutAMismatch) {
  TemporaryFile file;
  Workload w{.rate = 20, .duration_s = 20, .mix = *ParseMix("picture:3,speech:1,text:6")};
  const DeviceProfile profile = *LoadDeviceProfile("cpu-mini");
  SimulationOptions o{.target_step_us = 20'000, .optimistic = true, .noise = 0.1};
  auto writer = TraceWriter::Open(file.path(), {.options = SimulatedSchedulerOptions(w, profile, o),
                                                .num_blocks = profile.kv_blocks});
  ASSERT_TRUE(writer.ok()) << writer.status();
  o.listener = writer->get();
  const SimulationReport simulated = Simulated(w, profile, o).report;
  ASSERT_TRUE((*writer)->Close().ok());
  auto reader = TraceReader::Open(file.path());
  ASSERT_TRUE(reader.ok()) << reader.status();
  const auto replayed = Replay(**reader);
  ASSERT_TRUE(replayed.ok()) << replayed.status();
  EXPECT_EQ(replayed->mismatches, 0);
  EXPECT_EQ(replayed->steps, simulated.steps);
  EXPECT_GT(replayed->steps, 500);
}

}  // namespace
}  // namespace sensorium
