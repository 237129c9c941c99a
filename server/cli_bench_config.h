// What `sensorium bench simulate` is told, on the command line and in a workload file, as the
// simulator's structs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/simulator/device_profile.h"
#include "runtime/simulator/simulator.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

// The flags; those that are set go before the file.
struct BenchFlags {
  std::string config;
  std::optional<std::string> profile, mix, policy, csv, tenants;
  std::optional<double> rate, duration_s, warmup_s, noise;
  std::optional<int64_t> target_step_us;
  std::optional<int32_t> max_batch_seqs, max_batch_tokens, max_waiting;
  std::optional<uint64_t> seed;
  bool optimistic = false;
};

struct BenchSetup {
  Workload workload;
  DeviceProfile profile;
  SimulationOptions options;
};

inline constexpr int64_t kDefaultTargetStepUs = 20'000;
inline constexpr char kDefaultBenchMix[] = "picture:3,speech:1,text:6";

// INVALID_ARGUMENT or NOT_FOUND naming the flag, or file and line. config/bench.yaml has every key.
absl::StatusOr<BenchSetup> MakeBenchSetup(const BenchFlags& flags);

}  // namespace sensorium
