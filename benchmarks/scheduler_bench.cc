// What planning costs: Schedule + Commit over so many live sequences, on one core. All of them
// decode, or one in a hundred is a prefill that the step cuts to its budget. Goal: 100 us a plan at
// 10,000 sequences, and the same time per sequence at every count.
#include <benchmark/benchmark.h>

#include <vector>

#include "runtime/scheduler/scheduler.h"

namespace sensorium {
namespace {

void Plan(benchmark::State& state, bool optimistic, int32_t prefilling_in_100) {
  const auto seqs = static_cast<int32_t>(state.range(0));
  constexpr int32_t kMaxContext = 1 << 30;  // no benchmark comes to the end of it; one block
  const Prices prices{.encode_unit_ps = 4'000'000'000,
                      .forward_ps = 1'000'000'000,
                      .prefill_token_ps = 10'000'000,
                      .decode_row_ps = 1'000'000,
                      .decode_context_ps = 1'000};
  BlockAllocator blocks(seqs);
  Scheduler scheduler({.models = {{.block_size = kMaxContext, .prices = prices}},
                       .max_batch_tokens = seqs + 512,
                       .max_batch_seqs = seqs,
                       .max_waiting = seqs,
                       .target_step_us = 15'000,
                       .optimistic = optimistic},
                      blocks);
  std::vector<JobId> jobs;
  for (int32_t i = 0; i < seqs; ++i) {
    jobs.push_back(*scheduler.Add({.max_context = kMaxContext}, 0));
  }
  scheduler.Admit(0);
  if (scheduler.running() != seqs) {
    state.SkipWithError("not everybody was admitted");
    return;
  }
  for (int32_t i = 0; i < seqs; ++i) {
    const bool prefills = prefilling_in_100 > 0 && i % (100 / prefilling_in_100) == 0;
    scheduler.SetWork(jobs[i], {.kind = prefills ? WorkKind::kPrefill : WorkKind::kDecode,
                                .amount = prefills ? kMaxContext : 1,
                                .context = prefills ? 0 : 1000 + i % 500});
  }
  int64_t now_us = 0;
  for (auto _ : state) {
    const StepPlan& plan = scheduler.Schedule(now_us, [](JobId) {});
    benchmark::DoNotOptimize(plan.items.data());
    scheduler.Commit(plan.predicted_ns / 1000);
    now_us += 10'000;
  }
  state.counters["per_seq"] =
      benchmark::Counter(static_cast<double>(seqs), benchmark::Counter::kIsIterationInvariantRate |
                                                        benchmark::Counter::kInvert);
}

void Decodes(benchmark::State& state) { Plan(state, false, 0); }
void OnePercentPrefills(benchmark::State& state) { Plan(state, false, 1); }
void OptimisticDecodes(benchmark::State& state) { Plan(state, true, 0); }

BENCHMARK(Decodes)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(OnePercentPrefills)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(OptimisticDecodes)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace sensorium

BENCHMARK_MAIN();
