// What planning costs: Schedule + Commit over so many live sequences, on one core. All of them
// decode, or one in a hundred or everybody is a prefill that the step cuts to its budget, or blocks
// are short and somebody is preempted in every step. TellWork adds what the engine does between two
// plans: it says of every sequence what it needs next. Goal: 100 us a plan at 10,000 sequences.
#include <benchmark/benchmark.h>
#include <time.h>

#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {
namespace {

void Plan(benchmark::State& state, bool optimistic, int32_t prefilling_in_100, bool tell = false) {
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
                       .max_waiting = seqs + 1,  // one place is kept for another tenant
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
  int64_t now_us = 0, steps = 0;
  for (auto _ : state) {
    const StepPlan& plan = scheduler.Schedule(now_us, [](JobId) {});
    benchmark::DoNotOptimize(plan.items.data());
    scheduler.Commit(plan.predicted_ns / 1000);
    now_us += 10'000;
    if (!tell) continue;
    ++steps;
    for (int32_t i = 0; i < seqs; ++i) {
      scheduler.SetWork(
          jobs[i], {.kind = WorkKind::kDecode, .amount = 1, .context = 1000 + i % 500 + steps});
    }
  }
  state.counters["per_seq"] =
      benchmark::Counter(static_cast<double>(seqs), benchmark::Counter::kIsIterationInvariantRate |
                                                        benchmark::Counter::kInvert);
}

// Of this thread, as Google Benchmark counts the others: not what else the machine does.
double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// As many as there is room for, who decode 1024 tokens each and are admitted with half of that: in
// every step some end, others come in their place, and the youngest are preempted for the blocks of
// the older. Only Schedule and Commit are
// timed.
void ShortOfBlocks(benchmark::State& state) {
  const auto seqs = static_cast<int32_t>(state.range(0));
  constexpr int32_t kLength = 1024;
  const Prices prices{.forward_ps = 1'000'000'000, .decode_row_ps = 1'000'000};
  const JobSpec spec{.max_context = kLength, .expected_context = kLength / 2};
  BlockAllocator blocks(seqs * (kLength * 5 / 8) / 16);
  Scheduler scheduler({.models = {{.block_size = 16, .prices = prices}},
                       .max_batch_tokens = 2 * seqs,
                       .max_batch_seqs = 2 * seqs,
                       .max_waiting = seqs + 1,  // one place is kept for another tenant
                       .target_step_us = 15'000,
                       .optimistic = true},
                      blocks);
  // What a job has decoded is reckoned from the step that it came in: to walk all of them between
  // two plans would push the scheduler out of the cache.
  struct Life {
    int64_t context = 0, since = 0;
    bool waits = true;
  };
  absl::flat_hash_map<JobId, Life> lives;
  std::vector<std::vector<JobId>> due(kLength + 1);  // by step, a ring
  int64_t now = 0;
  const auto add = [&](int64_t context) {
    const absl::StatusOr<JobId> id = scheduler.Add(spec, 0);
    if (id.ok()) lives[*id] = {.context = context};
  };
  const auto admit = [&] {
    for (const JobId id : scheduler.Admit(0)) {
      Life& life = lives[id];
      life.since = now;
      life.waits = false;
      due[(now + kLength - life.context) % (kLength + 1)].push_back(id);
      scheduler.SetWork(id, {.kind = WorkKind::kDecode, .amount = 1, .context = life.context});
    }
  };
  // The oldest has most behind it: as many end in each step as in any other.
  for (int64_t i = 0; i < seqs; ++i) add((seqs - 1 - i) * kLength / seqs);
  admit();
  int64_t decoded = 0;
  const auto step = [&] {
    double seconds = -ThreadSeconds();
    const StepPlan& plan = scheduler.Schedule(0, [&](JobId id) {
      lives[id].context += now - lives[id].since;
      lives[id].waits = true;
    });
    decoded += static_cast<int64_t>(plan.items.size());
    scheduler.Commit(plan.predicted_ns / 1000);
    seconds += ThreadSeconds();
    ++now;
    for (const JobId id : due[now % (kLength + 1)]) {
      const auto life = lives.find(id);
      if (life == lives.end() || life->second.waits ||
          life->second.context + now - life->second.since < kLength) {
        continue;  // it was preempted since
      }
      scheduler.Remove(id);
      lives.erase(life);
      add(0);
    }
    due[now % (kLength + 1)].clear();
    admit();
    return seconds;
  };
  for (int i = 0; i < 2 * kLength; ++i) step();  // by now as many end as come
  decoded = 0;
  const int64_t before = scheduler.preemptions();
  for (auto _ : state) state.SetIterationTime(step());
  state.counters["decode"] =
      benchmark::Counter(static_cast<double>(decoded), benchmark::Counter::kAvgIterations);
  state.counters["preempted"] = benchmark::Counter(
      static_cast<double>(scheduler.preemptions() - before), benchmark::Counter::kAvgIterations);
}

void Decodes(benchmark::State& state) { Plan(state, false, 0); }
void OnePercentPrefills(benchmark::State& state) { Plan(state, false, 1); }
void AllPrefill(benchmark::State& state) { Plan(state, false, 100); }
void DecodesAndTellWork(benchmark::State& state) { Plan(state, false, 0, true); }
void OptimisticDecodes(benchmark::State& state) { Plan(state, true, 0); }

BENCHMARK(Decodes)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(OnePercentPrefills)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(AllPrefill)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(DecodesAndTellWork)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(OptimisticDecodes)->Arg(100)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
BENCHMARK(ShortOfBlocks)
    ->Arg(100)
    ->Arg(1000)
    ->Arg(10000)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace sensorium

BENCHMARK_MAIN();
