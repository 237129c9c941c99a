// Runs a recorded scheduler again: the same Scheduler over the same BlockAllocator, driven by what
// a trace says came from outside (its options, requests, their ends and their work, prices, times),
// and checks what it decided itself (refusals, admissions, preemptions and plans) item for item.
//
// The memory behind the blocks is not there: a scheduler sees reservations alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/scheduler/trace.h"

namespace sensorium {

struct ReplayMismatch {
  int64_t line = 0;
  std::string what;                // "plan at 1200 us", "admission"
  std::string recorded, replayed;  // both plans or lists, one item after the other
};

struct ReplayReport {
  int64_t jobs = 0, refusals = 0, admissions = 0, preemptions = 0;
  int64_t plans = 0;  // made, empty ones too
  int64_t steps = 0;  // carried out
  int64_t items = 0;  // of all plans
  int64_t mismatches = 0;
  std::optional<ReplayMismatch> first_mismatch;

  // |predicted - recorded| / recorded time over the steps that took a microsecond or more. The
  // prediction is the plan's, the recorded time the whole step's: with the host's work beside it.
  double median_step_error = 0, p99_step_error = 0;
  int64_t predicted_us = 0, recorded_us = 0;  // of those steps together
  double host_us_per_plan = 0;                // of this run: Schedule and Commit
};

// Reads to the end. A trace that no scheduler can have written is INVALID_ARGUMENT naming file and
// line; one that a different scheduler wrote has mismatches. After the first one the two go
// different ways, so their number says little. `progress` hears bytes read and the file's.
absl::StatusOr<ReplayReport> Replay(
    TraceReader& reader,
    absl::FunctionRef<void(int64_t, int64_t)> progress = [](int64_t, int64_t) {});

}  // namespace sensorium
