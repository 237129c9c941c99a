// A scheduler whose jobs' work the test tells, and the prices and plan items that its tests speak
// of.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

inline void PrintTo(const PlanItem& item, std::ostream* out) {
  *out << "job " << (item.job >> 24) << " kind " << int{static_cast<uint8_t>(item.kind)}
       << " amount " << item.amount << " encoder " << item.encoder_slot;
}

inline constexpr int64_t kUs = 1'000'000;  // picoseconds

// A pass 1 ms, a decode row 100 us, a prefill token 50 us, an encode unit 4 ms.
inline constexpr Prices kPrices{.encode_unit_ps = 4000 * kUs,
                                .forward_ps = 1000 * kUs,
                                .prefill_token_ps = 50 * kUs,
                                .decode_row_ps = 100 * kUs};

inline PlanItem Encode(JobId job, int32_t units, int32_t slot = 0) {
  return {job, WorkKind::kEncode, units, slot};
}
inline PlanItem Prefill(JobId job, int32_t tokens) { return {job, WorkKind::kPrefill, tokens}; }
inline PlanItem Decode(JobId job, int32_t rows = 1) { return {job, WorkKind::kDecode, rows}; }

// A scheduler whose jobs' work the test tells.
struct House {
  explicit House(const SchedulerOptions& options, int32_t num_blocks = 100)
      : blocks(num_blocks), scheduler(options, blocks) {}

  JobId Add(const JobSpec& spec) {
    const absl::StatusOr<JobId> id = scheduler.Add(spec, now_us);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.ok() ? *id : 0;
  }
  JobId Admitted(const JobSpec& spec, const JobWork& work = {}) {
    const JobId id = Add(spec);
    EXPECT_THAT(scheduler.Admit(now_us), ::testing::ElementsAre(id));
    scheduler.SetWork(id, work);
    return id;
  }
  std::string Refusal(const JobSpec& spec) {
    const absl::Status status = scheduler.Add(spec, now_us).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    scheduler.CheckInvariants();
    return std::string(status.message());
  }
  const std::vector<PlanItem>& Plan() {
    preempted.clear();
    const StepPlan& plan =
        scheduler.Schedule(now_us, [this](JobId id) { preempted.push_back(id); });
    predicted_ns = plan.predicted_ns;
    decode_ns = plan.decode_ns;
    return plan.items;
  }
  void Commit() {
    scheduler.Commit(predicted_ns / 1000);
    now_us += predicted_ns / 1000;
    scheduler.CheckInvariants();
  }
  std::vector<PlanItem> Step() {
    const std::vector<PlanItem> items = Plan();
    Commit();
    return items;
  }

  BlockAllocator blocks;
  Scheduler scheduler;
  int64_t now_us = 0;
  int64_t predicted_ns = 0, decode_ns = 0;  // of the last plan
  std::vector<JobId> preempted;             // by it
};

inline SchedulerOptions Priced(int64_t target_step_us,
                               const SchedulerModel& model = {.prices = kPrices}) {
  return {.models = {model}, .target_step_us = target_step_us};
}

inline constexpr JobWork kDecodes{.kind = WorkKind::kDecode, .amount = 1};

inline SchedulerOptions Optimistic(int32_t block_size) {
  return {.models = {{.block_size = block_size}}, .optimistic = true};
}

}  // namespace sensorium
