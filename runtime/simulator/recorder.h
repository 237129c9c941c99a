// Keeps the books of a simulation: who came and went when, and what the device did meanwhile.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/simulator/simulation_report.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

class Recorder {
 public:
  // The window that is reported: [begin_us, end_us), of which an arrival is either in or out.
  Recorder(const Workload& workload, int64_t begin_us, int64_t end_us);

  bool InWindow(int64_t us) const { return us >= begin_us_ && us < end_us_; }
  int64_t begin_us() const { return begin_us_; }
  int64_t end_us() const { return end_us_; }

  // f(group) for every group that the request belongs to.
  template <typename F>
  void ForGroups(const Arrival& a, F&& f) {
    f(report_.total);
    f(kinds_[static_cast<int>(a.kind)]);
    f(static_cast<GroupReport&>(report_.tenants[a.tenant]));
  }

  void Step(int64_t predicted_ns, int64_t decode_ns, int64_t taken_ns);
  // The clock went on; all the while so many waited and were admitted.
  void Pass(int64_t from_us, int64_t to_us, bool busy, int32_t waiting, int32_t running);
  void Answered(int64_t now_us) { answered_ += InWindow(now_us); }
  // For Little's law: the time it was here, within the window.
  void Gone(int64_t arrived_us, int64_t now_us);

  // `device_ns`: what each tenant was charged within the window.
  SimulationReport Finish(int64_t now_us, const std::vector<int64_t>& device_ns);

 private:
  void HalveMoments();

  const int64_t begin_us_, end_us_;
  std::vector<GroupReport> kinds_;
  int64_t moment_us_ = 1;
  int64_t answered_ = 0;
  int64_t dearest_decodes_ns_ = 0;
  double busy_us_ = 0, in_system_us_ = 0;
  LatencyHistogram step_error_;  // in millionths
  SimulationReport report_;
};

}  // namespace sensorium
