// The server without its models: the same Scheduler, BlockAllocator, caches and BlockTables under a
// workload, with a device that takes as long as a profile's prices say. A discrete event
// simulation: time goes from the end of one step to the end of the next, or to the next arrival.
//
// A picture request encodes its crops, prefills them with its prompt and decodes; a speech request
// does so once for each window; a spoken question is heard first, then asked. A prompt starts
// behind what an earlier one with the same beginning left in the prefix cache, and what was encoded
// lately is not encoded again. The first token comes with the last prefill chunk. A request that is
// past its deadline is ended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/simulator/device_profile.h"
#include "runtime/simulator/simulation_report.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

struct SimulationOptions {
  // As in SchedulerOptions.
  int32_t max_batch_tokens = 512;
  int32_t max_batch_seqs = 64;
  int32_t max_waiting = 256;
  int32_t encoder_slots = 1;
  int64_t target_step_us = 0;  // 0: first come, first served
  int64_t starvation_us = 30'000'000;
  bool optimistic = false;
  bool prefix_cache = true;
  double encoder_cache_share = 0.25;  // of the KV blocks: encoded audio that nobody uses

  uint64_t seed = 1;
  double warmup_s = 0;  // at the start, which the report leaves out
  double noise = 0;     // standard deviation of the logarithm of a call's time
  double price_error =
      1;                // the scheduler's first prices, in the device's; it learns from the steps
  int64_t host_us = 0;  // of each step, beside the device
  SchedulerListener* listener = nullptr;  // may be null
};

struct SimulationRun {
  SimulationReport report;      // the same for the same seed
  double host_us_per_plan = 0;  // of this machine: Admit, Schedule and Commit
  double wall_s = 0;
};

// Runs until the last request has ended. `progress` hears simulated seconds and the workload's.
absl::StatusOr<SimulationRun> Simulate(
    const Workload& workload, const DeviceProfile& profile, const SimulationOptions& options,
    absl::FunctionRef<void(double, double)> progress = [](double, double) {});

// What Simulate makes a scheduler of: for a trace's header.
SchedulerOptions SimulatedSchedulerOptions(const Workload& workload, const DeviceProfile& profile,
                                           const SimulationOptions& options);

}  // namespace sensorium
