#include "runtime/simulator/recorder.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sensorium {

namespace {

constexpr size_t kMoments = 150, kMaxMoments = 600;

}  // namespace

Recorder::Recorder(const Workload& workload, int64_t begin_us, int64_t end_us)
    : begin_us_(begin_us), end_us_(end_us) {
  kinds_.resize(kNumRequestKinds);
  for (int k = 0; k < kNumRequestKinds; ++k) {
    kinds_[k].name = std::string(RequestKindName(static_cast<RequestKind>(k)));
  }
  for (const TenantMix& t : workload.tenants) {
    TenantReport& tenant = report_.tenants.emplace_back();
    tenant.name = t.name;
    tenant.weight = t.weight;
  }
  report_.total.name = "all";
  moment_us_ = std::max<int64_t>(1, end_us_ / static_cast<int64_t>(kMoments));
}

void Recorder::Step(int64_t predicted_ns, int64_t decode_ns, int64_t taken_ns) {
  ++report_.steps;
  dearest_decodes_ns_ = std::max(dearest_decodes_ns_, decode_ns);
  if (taken_ns > 0) {
    step_error_.Add(std::llround(1e6 * std::abs(static_cast<double>(predicted_ns - taken_ns)) /
                                 static_cast<double>(taken_ns)));
  }
}

void Recorder::Pass(int64_t from_us, int64_t to_us, bool busy, int32_t waiting, int32_t running) {
  if (busy) {
    busy_us_ += static_cast<double>(
        std::max<int64_t>(0, std::min(to_us, end_us_) - std::max(from_us, begin_us_)));
  }
  // Into the moments, each its part.
  for (int64_t at = from_us; at < to_us;) {
    const size_t moment = static_cast<size_t>(at / moment_us_);
    const int64_t until = std::min(to_us, static_cast<int64_t>(moment + 1) * moment_us_);
    if (moment >= kMaxMoments) {
      HalveMoments();
      continue;
    }
    if (moment >= report_.moments.size()) report_.moments.resize(moment + 1);
    SimulationMoment& m = report_.moments[moment];
    const double us = static_cast<double>(until - at);
    m.waiting += us * waiting;
    m.running += us * running;
    m.utilisation += busy ? us : 0;
    at = until;
  }
}

void Recorder::HalveMoments() {
  moment_us_ *= 2;
  std::vector<SimulationMoment>& all = report_.moments;
  for (size_t i = 0; i < all.size(); ++i) {
    const SimulationMoment m = all[i];
    if (i % 2 == 0) {
      all[i / 2] = m;
    } else {
      all[i / 2].waiting += m.waiting;
      all[i / 2].running += m.running;
      all[i / 2].utilisation += m.utilisation;
    }
  }
  all.resize((all.size() + 1) / 2);
}

void Recorder::Gone(int64_t arrived_us, int64_t now_us) {
  const int64_t from = std::max(arrived_us, begin_us_);
  const int64_t to = std::min(now_us, end_us_);
  if (to > from) in_system_us_ += static_cast<double>(to - from);
}

SimulationReport Recorder::Finish(int64_t now_us, const std::vector<int64_t>& device_ns) {
  const double window_s = static_cast<double>(end_us_ - begin_us_) / 1e6;
  report_.window_s = window_s;
  report_.simulated_s = static_cast<double>(now_us) / 1e6;
  for (GroupReport& kind : kinds_) {
    if (kind.arrived > 0 || kind.output_tokens > 0) report_.kinds.push_back(std::move(kind));
  }
  double sum = 0, squares = 0;
  int active = 0;
  for (size_t t = 0; t < report_.tenants.size(); ++t) {
    TenantReport& tenant = report_.tenants[t];
    tenant.device_s = static_cast<double>(device_ns[t]) / 1e9;
    if (tenant.arrived == 0) continue;
    const double share = tenant.device_s / tenant.weight;
    sum += share;
    squares += share * share;
    ++active;
  }
  report_.fairness = squares > 0 ? sum * sum / (active * squares) : 1;
  std::erase_if(report_.tenants, [](const TenantReport& t) {
    return t.arrived == 0 && t.output_tokens == 0 && t.device_s == 0;
  });
  report_.requests_per_s = static_cast<double>(answered_) / window_s;
  report_.tokens_per_s = static_cast<double>(report_.total.output_tokens) / window_s;
  report_.utilisation = busy_us_ / 1e6 / window_s;
  report_.mean_in_system = in_system_us_ / 1e6 / window_s;
  report_.dearest_decodes_us = dearest_decodes_ns_ / 1000;
  report_.median_step_error = static_cast<double>(step_error_.QuantileUs(0.5)) / 1e6;
  report_.p99_step_error = static_cast<double>(step_error_.QuantileUs(0.99)) / 1e6;
  report_.moment_s = static_cast<double>(moment_us_) / 1e6;
  const double width = static_cast<double>(moment_us_);
  for (size_t i = 0; i < report_.moments.size(); ++i) {
    SimulationMoment& m = report_.moments[i];
    const double here =  // the last one may be cut short
        std::clamp(static_cast<double>(now_us) - static_cast<double>(i) * width, 1.0, width);
    m.time_s = static_cast<double>(i) * report_.moment_s;
    m.waiting /= here;
    m.running /= here;
    m.utilisation /= here;
  }
  return std::move(report_);
}

}  // namespace sensorium
