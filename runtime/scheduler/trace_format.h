// What a trace file is made of: one list for its writer and its reader, who cannot drift apart.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/scheduler/price_fields.h"
#include "runtime/scheduler/trace.h"

namespace sensorium {

inline constexpr int64_t kTraceVersion = 4;

// By kind.
inline constexpr std::array<std::string_view, 9> kEventNames = {
    "add", "refuse", "remove", "admit", "preempt", "work", "prices", "plan", "commit"};
inline constexpr std::array<std::string_view, 5> kWorkKindNames = {"none", "encode", "prefill",
                                                                   "decode", "parked"};

// Ranges of what is read: beyond anything a device does, and small enough that sums of them stay
// within 64 bits (replay.cc bounds the products).
inline constexpr int64_t kMaxTime = int64_t{1} << 52;    // us: 142 years
inline constexpr int64_t kMaxTokens = int64_t{1} << 31;  // rows x context too
inline constexpr int64_t kMaxSeqs = 1 << 20;
inline constexpr int64_t kMaxBlocks = 1 << 26;
inline constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// Every field of a struct, in one order: f(name, field, low, high).
template <typename T, typename F>
void ForEachSpecField(T& s, F&& f) {
  f("model", s.model, 0, kMaxInt32);
  f("tenant", s.tenant, 0, kMaxInt32);
  f("priority", s.priority, std::numeric_limits<int32_t>::min(), kMaxInt32);
  f("deadline_us", s.deadline_us, std::numeric_limits<int64_t>::min() / 2, kNever);
  f("rows", s.rows, 1, kMaxSeqs);
  f("max_context", s.max_context, 0, kMaxTokens);
  f("expected_context", s.expected_context, 0, kMaxTokens);
  f("fixed_blocks", s.fixed_blocks, 0, kMaxBlocks);
  f("feature_slots", s.feature_slots, 0, kMaxSeqs);
  f("encode_units", s.encode_units, 0, kMaxInt32);
  f("prefill_tokens", s.prefill_tokens, 0, kMaxTokens);
  f("decode_tokens", s.decode_tokens, 0, kMaxTokens);
  f("cross_len", s.cross_len, 0, kMaxTokens);
}
template <typename T, typename F>
void ForEachModelField(T& m, F&& f) {
  f("block_size", m.block_size, 1, kMaxInt32);
  f("max_encode_units", m.max_encode_units, 1, kMaxInt32);
  f("feature_slots", m.feature_slots, 0, kMaxSeqs);
}
template <typename T, typename F>
void ForEachTenantField(T& t, F&& f) {
  f("weight", t.weight, 1, kMaxInt32);
  f("max_waiting", t.max_waiting, 0, kMaxInt32);
  f("max_running", t.max_running, 0, kMaxInt32);
  f("max_blocks", t.max_blocks, 0, kMaxInt32);
}
template <typename T, typename F>
void ForEachOption(T& o, F&& f) {
  f("max_batch_tokens", o.max_batch_tokens, 1, kMaxSeqs);
  f("max_batch_seqs", o.max_batch_seqs, 1, kMaxSeqs);
  f("max_waiting", o.max_waiting, 0, kMaxSeqs);
  f("encoder_slots", o.encoder_slots, 1, kMaxSeqs);
  f("target_step_us", o.target_step_us, 0, kMaxTime / 1000);
  f("starvation_us", o.starvation_us, 0, kMaxTime);
}
template <typename T, typename F>
void ForEachWorkField(T& w, F&& f) {
  f("amount", w.amount, 0, kMaxInt32);
  f("context", w.context, 0, kMaxTokens);
  f("tables", w.tables, 0, kMaxSeqs);
  f("later_units", w.later_units, 0, kMaxInt32);
  f("later_tokens", w.later_tokens, 0, kMaxInt32);
}
template <typename T, typename F>
void ForEachPlanField(T& p, F&& f) {
  f("predicted_ns", p.predicted_ns, 0, kNever);
  f("decode_ns", p.decode_ns, 0, kNever);
}

inline absl::Status SystemError(const std::string& path, const char* what) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", what));
}

}  // namespace sensorium
