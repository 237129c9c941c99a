// What `sensorium bench` prints. Pure functions.
#pragma once

#include <string>

#include "runtime/scheduler/replay.h"
#include "server/cli_bench_config.h"

namespace sensorium {

// For people: lines and a table; end with a line break.
std::string ReplayText(const ReplayReport& report);
std::string SimulationText(const BenchSetup& setup, const SimulationRun& run);

// One object on one line, without a line break. Times are in the unit of their names. Only
// host_us_per_plan and wall_s differ between two runs of the same seed.
std::string ReplayJson(const ReplayReport& report);
std::string SimulationJson(const BenchSetup& setup, const SimulationRun& run);

// A page of its own, with four charts as SVG: inter-token and first-token times as cumulative
// shares, the queue and the device over time.
std::string SimulationHtml(const BenchSetup& setup, const SimulationRun& run);

}  // namespace sensorium
