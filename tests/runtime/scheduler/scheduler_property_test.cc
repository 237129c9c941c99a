// Ten million steps of random houses: whoever comes, goes, parks, is preempted or refused, the
// rules of scheduler.h hold in every single step (fake_engine.h checks them), nothing that was
// taken is kept, and once nobody comes any more everybody is served to the end.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "gtest/gtest.h"
#include "tests/runtime/scheduler/fake_engine.h"
#include "tests/sanitized.h"

namespace sensorium {
namespace {

constexpr int64_t kSteps = kSanitized ? 500'000 : 10'000'000;
constexpr int64_t kStepsPerHouse = kSteps / 500;

struct House {
  SchedulerOptions options;
  int32_t num_blocks = 0;
  int32_t arrivals = 0;  // one in so many steps
  bool slow_readers = false;
  bool overlaps = false;  // some come, go and are admitted while a step runs
  bool new_prices = false;
};

Prices RandomPrices(Dice& dice) {
  // From nothing to more than a step's target, in picoseconds; 1 + so that fractions show.
  const auto price = [&](int32_t most_us) {
    return dice.OneIn(6) ? 0 : 1 + int64_t{dice.Uniform(0, most_us * 1000)} * 1001;
  };
  return {.encode_unit_ps = price(3000),
          .forward_ps = price(300),
          .prefill_token_ps = price(20),
          .prefill_context_ps = price(1),
          .decode_row_ps = price(50),
          .decode_context_ps = price(1),
          .cross_position_ps = price(1)};
}

House RandomHouse(Dice& dice) {
  House house;
  SchedulerOptions& options = house.options;
  options.models.resize(dice.Uniform(1, 3));
  for (SchedulerModel& model : options.models) {
    model = {.block_size = dice.OneIn(2) ? dice.Uniform(1, 64) : dice.Uniform(1, 8),
             .max_encode_units = dice.Uniform(1, 4),
             .feature_slots = dice.Uniform(0, 4),
             .prices = RandomPrices(dice)};
  }
  house.num_blocks = dice.OneIn(4) ? dice.Uniform(1, 8) : dice.Uniform(8, 64);
  options.tenants.resize(dice.Uniform(1, 3));
  for (TenantOptions& tenant : options.tenants) {
    tenant.weight = dice.Uniform(1, 3000);
    if (dice.OneIn(3)) tenant.max_waiting = dice.Uniform(1, 4);
    tenant.known = dice.OneIn(3);
    if (dice.OneIn(3)) tenant.max_running = dice.Uniform(1, 4);
    if (dice.OneIn(3)) tenant.max_blocks = dice.Uniform(house.num_blocks / 4 + 1, house.num_blocks);
  }
  options.max_batch_tokens = dice.OneIn(4) ? dice.Uniform(1, 4) : dice.Uniform(4, 64);
  options.max_batch_seqs = dice.OneIn(4) ? dice.Uniform(1, 3) : dice.Uniform(4, 16);
  options.max_waiting = dice.Uniform(1, 8);
  options.encoder_slots = dice.Uniform(1, 2);
  options.target_step_us = dice.OneIn(4) ? 0 : dice.Uniform(1, 2000);
  options.starvation_us = dice.OneIn(2) ? dice.Uniform(0, 20'000) : 30'000'000;
  options.optimistic = dice.OneIn(2);
  options.chaos_seed = dice.OneIn(4) ? dice.Roll() | 1 : 0;
  house.arrivals = dice.Uniform(1, 10);
  house.slow_readers = dice.OneIn(2);
  house.overlaps = dice.OneIn(2);
  house.new_prices = dice.OneIn(4);
  return house;
}

FakeRequest RandomRequest(const House& house, int64_t now_us, Dice& dice) {
  FakeRequest request;
  JobSpec& spec = request.spec;
  spec.model = dice.Uniform(0, static_cast<int32_t>(house.options.models.size()) - 1);
  spec.tenant = dice.Uniform(0, static_cast<int32_t>(house.options.tenants.size()) - 1);
  spec.priority = dice.Uniform(-1, 1);
  if (dice.OneIn(4)) spec.deadline_us = now_us + dice.Uniform(0, 50'000);
  spec.rows = dice.OneIn(3) ? dice.Uniform(1, 4) : 1;
  request.encode_units = dice.OneIn(2) ? dice.Uniform(1, 6) : 0;
  request.rounds = dice.OneIn(4) ? 2 : 1;
  // As a rule it fits, and takes some part of the pool; a few ask for too much.
  const int64_t blocks = std::min(house.num_blocks, house.options.tenants[spec.tenant].max_blocks);
  const int64_t room = blocks * house.options.models[spec.model].block_size / spec.rows;
  const auto most = static_cast<int32_t>(
      dice.OneIn(20) ? 1000 : std::clamp<int64_t>(room / dice.Uniform(1, 6), 2, 120));
  spec.max_context = dice.Uniform(2, most);
  request.decode_tokens =
      dice.Uniform(1, static_cast<int32_t>(std::min<int64_t>(24, spec.max_context - 1)));
  request.prompt_tokens = static_cast<int32_t>(spec.max_context) - request.decode_tokens;
  if (!dice.OneIn(4)) spec.expected_context = dice.Uniform(1, request.prompt_tokens / 2 + 1);
  spec.fixed_blocks = dice.OneIn(8) ? dice.Uniform(1, 3) : 0;
  spec.feature_slots = request.encode_units > 0 ? dice.Uniform(0, 2) : 0;
  spec.encode_units = request.encode_units;
  spec.prefill_tokens = request.prompt_tokens;
  spec.decode_tokens = request.decode_tokens;
  spec.cross_len = dice.OneIn(3) ? dice.Uniform(1, 30) : 0;
  return request;
}

struct Totals {
  int64_t steps = 0, busy = 0, items = 0, arrived = 0, refused = 0, cancelled = 0, preempted = 0,
          finished = 0;
};

void Live(const House& house, uint64_t seed, Totals& totals) {
  FakeEngine engine(house.options, house.num_blocks, seed);
  engine.set_rows_end(true);
  Dice dice(seed + 1);
  for (int64_t step = 0; step < kStepsPerHouse; ++step) {
    const auto come = [&] {
      if (!dice.OneIn(house.arrivals)) return;
      ++totals.arrived;
      totals.refused += !engine.Submit(RandomRequest(house, engine.now_us(), dice)).ok();
    };
    come();
    if (dice.OneIn(60)) {
      totals.cancelled += engine.live() > 0;
      engine.CancelAnybody();
    }
    if (house.slow_readers && dice.OneIn(8)) engine.ParkAnybody(dice.OneIn(3));
    if (house.new_prices && dice.OneIn(50)) engine.SetPrices(0, RandomPrices(dice));
    totals.busy += engine.Step([&] {  // as the step loop does
      if (!house.overlaps) return;
      come();
      if (dice.OneIn(60)) engine.CancelAnybodyWhoWaits();
      engine.AdmitWaiting();
    });
    if (dice.OneIn(30)) engine.Sleep(dice.Uniform(0, 20'000));
  }
  engine.UnparkAll();
  engine.Finish(/*most=*/200'000);
  totals.steps += kStepsPerHouse;
  totals.items += engine.items();
  totals.finished += engine.finished();
  totals.preempted += engine.scheduler().preemptions();
}

TEST(SchedulerPropertyTest, KeepsItsRulesThroughTenMillionRandomStepsAndServesEverybody) {
  const int given = GTEST_FLAG_GET(random_seed);
  const uint64_t first = given != 0 ? given : std::random_device{}() % 99'999 + 1;
  std::printf("seed %d (again with --gtest_random_seed)\n", static_cast<int>(first));
  const auto start = std::chrono::steady_clock::now();
  Totals totals;
  for (uint64_t house = 0; totals.steps < kSteps; ++house) {
    const uint64_t seed = first * 1'000'000 + house * 2;
    if (house % 100 == 0) std::printf("house %llu\n", static_cast<unsigned long long>(house));
    std::fflush(stdout);
    Dice dice(seed);
    Live(RandomHouse(dice), seed, totals);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf(
      "%.1f million steps in %.1f s, %.1f million with work of %.1f items: %.0f thousand arrived, "
      "%.0f refused, %.0f cancelled, %.0f preempted, %.0f finished\n",
      totals.steps / 1e6, took.count(), totals.busy / 1e6, 1.0 * totals.items / totals.busy,
      totals.arrived / 1e3, totals.refused / 1e3, totals.cancelled / 1e3, totals.preempted / 1e3,
      totals.finished / 1e3);
  EXPECT_GE(totals.steps, kSteps);
  EXPECT_GT(totals.busy, totals.steps / 2);
  EXPECT_GT(totals.preempted, 0);
  EXPECT_GT(totals.finished, totals.steps / 200);
}

}  // namespace
}  // namespace sensorium
