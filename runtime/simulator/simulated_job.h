// The jobs of a simulation. They ask of the scheduler, the blocks and the caches what the server's
// do (generate_job and transcribe_job in runtime/engine), in the same order, and compute nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/kv_cache/block_cache.h"
#include "runtime/kv_cache/block_table.h"
#include "runtime/kv_cache/encoder_cache.h"
#include "runtime/scheduler/job.h"
#include "runtime/simulator/device_profile.h"
#include "runtime/simulator/simulation_report.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

inline constexpr int32_t kVisionModel = 0, kSpeechModel = 1;

// What the jobs share.
struct SimulatedMemory {
  // `encoder_cache_share`: of the blocks, those that may hold encoded audio nobody uses.
  SimulatedMemory(const DeviceProfile& profile, bool prefix_cache, double encoder_cache_share,
                  int32_t max_jobs, bool preempts);

  const DeviceProfile& profile;
  const bool preempts;  // jobs may be preempted, and computed again
  BlockAllocator blocks;
  BlockCache cache;
  EncoderCache features;
  ContentHasher hasher;
  std::vector<BlockId> matched;   // scratch
  std::vector<BlockCopy> copies;  // scratch: there is nothing to copy
};

// A request's work on one model: encode, prefill and decode, once in each round.
struct SimulatedPhase {
  int32_t model = kVisionModel;
  int32_t rounds = 1;
  int32_t rows = 1;
  int32_t encode_units = 0;    // of a round
  int64_t prefill_tokens = 1;  // of a round
  int64_t output_tokens = 1;   // of all rounds, of each row
  int64_t cross_len = 0;
  bool is_answer = false;  // its tokens are what the client asked for
  // Of the prompt, in this order: those that stand for the picture, that all requests of the tenant
  // begin with, and that were heard. The rest is its own.
  int64_t picture_tokens = 0, system_tokens = 0, heard_tokens = 0;

  int64_t OutputOf(int32_t round) const;
};

// A spoken question is heard first, then asked.
std::vector<SimulatedPhase> PhasesOf(const Arrival& arrival, const DeviceProfile& profile);

class SimulatedJob {
 public:
  // `number`: the arrival's, no other's.
  SimulatedJob(const SimulatedPhase& phase, const Arrival& arrival, int64_t number,
               SimulatedMemory& memory);
  ~SimulatedJob() { End(); }
  SimulatedJob(const SimulatedJob&) = delete;
  SimulatedJob& operator=(const SimulatedJob&) = delete;

  const SimulatedPhase& phase() const { return phase_; }
  const JobSpec& spec() const { return spec_; }
  const CacheUse& cache_use() const { return cache_use_; }  // so far

  void Start(JobId id);  // admitted, perhaps again
  void Preempt();
  void End();  // gives everything back; once more does nothing
  bool running() const { return !rows_.empty(); }
  // What it owns now: KV blocks in all its tables, and holds of feature slots.
  int32_t BlocksHeld() const;
  int32_t FeaturesHeld() const { return lease_ ? 1 : 0; }

  JobWork Pending() const;
  // Another job is encoding the same picture: what Pending says changes with that one.
  bool WaitsForAnother() const;
  // Before the step: room for its item's tokens. Returns what the item asks of the device.
  Work Take(const PlanItem& item);
  // After it. True: each row has a new token.
  bool Done(const PlanItem& item);
  // All tokens of the round are there. Goes on to the next round; false: that was the last.
  bool RoundIsOver() const { return produced_ >= phase_.OutputOf(round_); }
  bool NextRound();

 private:
  struct Row {
    BlockTable table;
    int64_t computed = 0;  // tokens in its cache
  };
  int32_t BlockSize() const;
  bool WaitsForFeatures() const;
  void DropFeatures();
  ContentHash MediaHash() const;
  void HashPrompt();
  void TakePrompt();
  void TakeWindow();
  // The row that lacks what it had before a preemption, or that computes the prompt; null: none.
  const Row* Behind() const;
  int64_t Until() const;  // which Behind is to come to

  const SimulatedPhase phase_;
  const Arrival arrival_;
  const int64_t number_;
  SimulatedMemory& memory_;
  JobSpec spec_;
  CacheUse cache_use_;
  JobId id_ = 0;

  std::vector<ContentHash> chain_;  // of the prompt's full blocks, or of the window in cross_
  std::optional<EncoderCache::Lease> lease_;  // of the picture's features
  int32_t encoded_ = 0;                       // units, of this round
  std::optional<BlockTable> cross_;
  bool has_window_ = false;  // cross_ is complete
  std::vector<Row> rows_;    // [1] until the prompt is computed; empty: it waits
  bool forked_ = false;
  int32_t round_ = 0;
  int32_t rounds_counted_ = 0;  // in cache_use_
  int64_t produced_ = 0;        // tokens of each row, of this round
};

}  // namespace sensorium
