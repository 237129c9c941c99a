// A random life of a scheduler, written to a trace file: what the tests of trace and replay read.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/scheduler/trace.h"

namespace sensorium {

// A file of its own, gone with the object.
class TemporaryFile {
 public:
  TemporaryFile() {
    char name[] = "/tmp/sensorium-trace-XXXXXX";
    const int fd = mkstemp(name);
    EXPECT_GE(fd, 0);
    close(fd);
    path_ = name;
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }
  std::string Read() const {
    std::ostringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }
  void Write(const std::string& text) const { std::ofstream(path_, std::ios::trunc) << text; }

 private:
  std::string path_;
};

inline TraceHeader RandomHeader(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto up_to = [&](int64_t most) { return static_cast<int32_t>(random() % (most + 1)); };
  SchedulerOptions o;
  const Prices prices = {.encode_unit_ps = 900'000'000,
                         .forward_ps = 200'000'000,
                         .prefill_token_ps = 20'000'000,
                         .prefill_context_ps = 10'000,
                         .decode_row_ps = 60'000'000,
                         .decode_context_ps = 90'000,
                         .cross_position_ps = 20'000};
  o.models = {
      {.block_size = 1 + up_to(31), .max_encode_units = 4, .feature_slots = 3, .prices = prices},
      {.block_size = 5, .max_encode_units = 2, .prices = prices}};
  o.tenants = {{.weight = 1000}, {.weight = 3000, .max_running = 4}, {.weight = 500}};
  o.max_batch_tokens = 24 + up_to(200);
  o.max_batch_seqs = 6 + up_to(10);
  o.max_waiting = 12;
  o.encoder_slots = 1 + up_to(2);
  o.target_step_us = up_to(3) == 0 ? 0 : 500 + up_to(4000);
  o.starvation_us = 200'000;
  o.optimistic = up_to(1) == 0;
  o.chaos_seed = up_to(2) == 0 ? seed + 1 : 0;
  return {.options = o, .num_blocks = 40 + up_to(200)};
}

// Jobs encode, prefill and decode some tokens; some are cancelled, some refused, some preempted.
inline void RecordRun(uint64_t seed, int steps, const std::string& path) {
  const TraceHeader header = RandomHeader(seed);
  absl::StatusOr<std::unique_ptr<TraceWriter>> opened = TraceWriter::Open(path, header);
  ASSERT_TRUE(opened.ok()) << opened.status();
  TraceWriter& writer = **opened;
  std::mt19937_64 random(seed * 7 + 1);
  const auto up_to = [&](int64_t most) { return static_cast<int64_t>(random() % (most + 1)); };

  struct Life {
    JobSpec spec;
    int64_t encode = 0, prefill = 0, decode = 0, context = 0;
    bool running = false;
  };
  std::map<JobId, Life> lives;
  BlockAllocator blocks(header.num_blocks);
  Scheduler scheduler(header.options, blocks, &writer);
  int64_t now = 0, requests = 0;
  const auto tell = [&](JobId id, const Life& life) {
    JobWork work{.context = life.context};
    if (life.encode > 0) {
      work.kind = WorkKind::kEncode;
      work.amount = static_cast<int32_t>(life.encode);
    } else if (life.prefill > 0) {
      work.kind = WorkKind::kPrefill;
      work.amount = static_cast<int32_t>(life.prefill);
    } else {
      work.kind = WorkKind::kDecode;
      work.amount = life.spec.rows;
      work.tables = life.spec.rows;
    }
    scheduler.SetWork(id, work);
  };
  for (int step = 0; step < steps; ++step) {
    for (int64_t n = up_to(6) - 4; n > 0; --n) {
      Life life;
      life.encode = up_to(1) * up_to(13);
      life.prefill = 1 + up_to(150);
      life.decode = up_to(40);
      life.spec = {.model = static_cast<int32_t>(up_to(1)),
                   .tenant = static_cast<int32_t>(up_to(2)),
                   .priority = static_cast<int32_t>(up_to(2)) - 1,
                   .rows = 1 + static_cast<int32_t>(up_to(2)),
                   .max_context = life.prefill + life.decode + 1,
                   .expected_context = life.prefill + up_to(10),
                   .fixed_blocks = static_cast<int32_t>(up_to(3)),
                   .encode_units = life.encode,
                   .prefill_tokens = life.prefill,
                   .decode_tokens = life.decode};
      if (life.spec.model == 0 && life.encode > 0) life.spec.feature_slots = 1;
      if (life.spec.model == 1) life.spec.cross_len = 50;
      if (up_to(5) == 0) life.spec.deadline_us = now + up_to(100'000);
      const absl::StatusOr<JobId> id =
          scheduler.Add(life.spec, now, "request-" + std::to_string(++requests));
      if (!id.ok()) continue;
      lives[*id] = life;
    }
    if (!lives.empty() && up_to(15) == 0) {
      auto victim = std::next(lives.begin(), up_to(static_cast<int64_t>(lives.size()) - 1));
      scheduler.Remove(victim->first);
      lives.erase(victim);
    }
    if (up_to(50) == 0) {
      Prices prices = scheduler.prices(0);
      prices.encode_unit_ps += 1000;
      scheduler.SetPrices(0, prices);
    }
    const auto admit = [&] {
      for (const JobId id : scheduler.Admit(now)) {
        lives.at(id).running = true;
        tell(id, lives.at(id));
      }
    };
    admit();
    const StepPlan& plan = scheduler.Schedule(now, [&](JobId id) {
      Life& life = lives.at(id);
      life.running = false;
      life.prefill = life.spec.prefill_tokens;
      life.context = 0;
    });
    if (plan.items.empty()) {
      now += 300;
      continue;
    }
    const std::vector<PlanItem> items = plan.items;
    const int64_t elapsed = plan.predicted_ns / 1000 * (900 + up_to(200)) / 1000;
    if (up_to(1)) admit();  // while the device works, as the engine does
    now += elapsed;
    scheduler.Commit(elapsed);
    for (const PlanItem& item : items) {
      Life& life = lives.at(item.job);
      if (item.kind == WorkKind::kEncode) {
        life.encode -= item.amount;
        if (life.encode == 0) tell(item.job, life);
        continue;
      }
      if (item.kind == WorkKind::kPrefill) {
        life.prefill -= item.amount;
        life.context += item.amount;
        if (life.prefill > 0) continue;
      } else {
        ++life.context;
      }
      if (life.context >= life.spec.prefill_tokens + life.decode) {
        scheduler.Remove(item.job);
        lives.erase(item.job);
      } else if (item.kind == WorkKind::kPrefill) {
        tell(item.job, life);
      }
    }
    scheduler.CheckInvariants();
  }
  ASSERT_TRUE(writer.Close().ok());
}

}  // namespace sensorium
