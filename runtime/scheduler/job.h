// What the scheduler knows of a request: sizes, limits and where it stands. Integers only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace sensorium {

// How many of `places` one tenant may take without a limit of its own, so that none shuts the
// others out: half once another is known; before that all but one, in which a stranger is seen to
// be there.
constexpr int32_t FairPart(int32_t places, int32_t known_tenants) {
  return known_tenants > 1 ? (places + 1) / 2 : std::max(places - 1, std::min(places, 1));
}

// Names a job while the scheduler has it; never used twice. 0 names none.
using JobId = int64_t;

inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

enum class WorkKind : uint8_t {
  kNone,     // between two phases, or it waits for what another job computes
  kEncode,   // amount: units left (ViT crops, stages of an audio encoder); may be cut
  kPrefill,  // amount: tokens left; may be cut
  kDecode,   // amount: rows, one token each; all or none
  kParked,   // waits for its reader, and nothing says how long
};
constexpr bool IsWork(WorkKind kind) {
  return kind != WorkKind::kNone && kind != WorkKind::kParked;
}

struct JobSpec {
  int32_t model = 0;
  int32_t tenant = 0;
  int32_t priority = 0;          // within the tenant, higher first; of all, when blocks run out
  int64_t deadline_us = kNever;  // on the scheduler's clock
  int32_t rows = 1;              // most rows it decodes at once, at least 1
  int64_t max_context = 0;       // most tokens a row may come to
  int64_t expected_context = 0;  // what optimistic admission sets aside; 0: max_context
  int32_t fixed_blocks = 0;      // blocks beside the rows': a window's cross-attention
  // Slots of its model's image features. Held until it ends where it may be preempted and computed
  // again (optimistic admission), else until it is told to decode.
  int32_t feature_slots = 0;
  // What stands between it and its first token, for the prediction.
  int64_t encode_units = 0;
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;  // expected
  int64_t cross_len = 0;      // encoder positions every row reads
};

// What an admitted job needs next.
struct JobWork {
  WorkKind kind = WorkKind::kNone;
  int32_t amount = 0;
  int64_t context = 0;  // tokens a row has in its cache
  int32_t tables = 1;   // rows that have a cache of their own by now
  // What it has to encode and to prefill after this, for the prediction of others.
  int32_t later_units = 0;
  int32_t later_tokens = 0;
  bool operator==(const JobWork&) const = default;
};

struct PlanItem {
  JobId job = 0;
  WorkKind kind = WorkKind::kNone;
  int32_t amount = 0;
  int32_t encoder_slot = -1;  // kEncode: where the encoder keeps its state between two steps
  bool operator==(const PlanItem&) const = default;
};

// What a job has cost so far.
struct JobCost {
  int64_t encode_ns = 0, prefill_ns = 0, decode_ns = 0;  // of the device, predicted at each step
  int64_t block_ns = 0;  // KV blocks set aside x time, on the scheduler's clock
  JobCost& operator+=(const JobCost& o) {
    encode_ns += o.encode_ns;
    prefill_ns += o.prefill_ns;
    decode_ns += o.decode_ns;
    block_ns += o.block_ns;
    return *this;
  }
  int64_t total_ns() const { return encode_ns + prefill_ns + decode_ns; }
  bool operator==(const JobCost&) const = default;
};

}  // namespace sensorium
