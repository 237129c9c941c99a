// The server without its models: the same Scheduler, BlockAllocator and BlockTables under a
// workload, with a device that takes as long as a profile's prices say. A discrete event
// simulation: time goes from the end of one step to the end of the next, or to the next arrival.
//
// A picture request encodes its crops, prefills them with its prompt and decodes; a speech request
// does so once for each window; a spoken question is heard first, then asked. The first token comes
// with the last prefill chunk. A request that is past its deadline is ended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/scheduler/scheduler.h"
#include "runtime/simulator/device_profile.h"
#include "runtime/simulator/latency_histogram.h"
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

  uint64_t seed = 1;
  double warmup_s = 0;  // at the start, which the report leaves out
  double noise = 0;     // standard deviation of the logarithm of a call's time
  double price_error =
      1;                // the scheduler's first prices, in the device's; it learns from the steps
  int64_t host_us = 0;  // of each step, beside the device
  SchedulerListener* listener = nullptr;  // may be null
};

// Of some of the requests that arrived in the window: from the end of the warm-up to the last
// arrival.
struct GroupReport {
  std::string name;
  int64_t arrived = 0, completed = 0, refused = 0, expired = 0;
  int64_t output_tokens = 0;     // that came out within the window, whoever they belong to
  LatencyHistogram queueing;     // arrival to admission
  LatencyHistogram first_token;  // arrival to the first token
  LatencyHistogram inter_token;  // from one token to the next; in speech within a window of audio
  LatencyHistogram end_to_end;   // arrival to the last token
  bool operator==(const GroupReport&) const = default;
};

struct TenantReport : GroupReport {
  int32_t weight = 1000;
  double device_s = 0;  // within the window, as charged
  bool operator==(const TenantReport&) const = default;
};

// One moment of the chart: averages over `width_s` from `time_s` on.
struct SimulationMoment {
  double time_s = 0, waiting = 0, running = 0, utilisation = 0;
  bool operator==(const SimulationMoment&) const = default;
};

struct SimulationReport {
  double window_s = 0, simulated_s = 0;
  GroupReport total;
  std::vector<GroupReport> kinds;  // those that have requests
  std::vector<TenantReport> tenants;
  double requests_per_s = 0, tokens_per_s = 0;  // that ended, came out, within the window
  double utilisation = 0;                       // of the window
  double mean_in_system = 0;                    // requests, over the window
  double fairness = 1;  // Jain's index of the tenants' device time over their weights
  int64_t steps = 0, preemptions = 0;
  // What a token that follows another may wait for, after scheduler.h: the dearest decodes of any
  // step, and the target or the dearest unit of work. 0 for first come, first served.
  int64_t stall_bound_us = 0;
  int64_t dearest_decodes_us = 0, dearest_unit_us = 0;
  double median_step_error = 0, p99_step_error = 0;  // |predicted - taken| / taken
  double moment_s = 0;                               // width of the moments
  std::vector<SimulationMoment> moments;
  bool operator==(const SimulationReport&) const = default;
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
