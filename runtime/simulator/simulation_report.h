// What a simulation comes to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/simulator/latency_histogram.h"

namespace sensorium {

// What was found in the caches, of what was asked for: at a request's first admission, and for each
// window of audio. A picture that somebody else is encoding counts as found.
struct CacheUse {
  int64_t prompt_tokens = 0, cached_tokens = 0;  // of the models that answer
  int64_t pictures = 0, cached_pictures = 0;
  int64_t windows = 0, cached_windows = 0;

  CacheUse& operator+=(const CacheUse& o) {
    prompt_tokens += o.prompt_tokens;
    cached_tokens += o.cached_tokens;
    pictures += o.pictures;
    cached_pictures += o.cached_pictures;
    windows += o.windows;
    cached_windows += o.cached_windows;
    return *this;
  }
  bool operator==(const CacheUse&) const = default;
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
  CacheUse cache;
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
  int64_t evicted_blocks = 0;  // of the caches, for others' sake
  // What a token that follows another may wait for, after scheduler.h: the dearest decodes of any
  // step, and the target or the dearest unit of work. 0 for first come, first served.
  int64_t stall_bound_us = 0;
  int64_t dearest_decodes_us = 0, dearest_unit_us = 0;
  double median_step_error = 0, p99_step_error = 0;  // |predicted - taken| / taken
  double moment_s = 0;                               // width of the moments
  std::vector<SimulationMoment> moments;
  bool operator==(const SimulationReport&) const = default;
};

}  // namespace sensorium
