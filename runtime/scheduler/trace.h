// A scheduler's life as lines of JSON: a header with its options, then every call that changed it,
// in order, and every plan. replay.h runs the same scheduler over it again.
//
//   {"e":"trace","version":4,"num_blocks":4096,"options":{...}}
//   {"e":"add","job":16777216,"t":1200,"request":"gen-7","spec":{"model":0,"tenant":0,...}}
//   {"e":"admit","job":16777216,"t":1200}
//   {"e":"work","job":16777216,"kind":"prefill","amount":300,"context":0,"tables":1,
//    "later_units":0,"later_tokens":0}
//   {"e":"plan","t":1210,"predicted_ns":912000,"decode_ns":0,"items":[[16777216,"prefill",300]]}
//   {"e":"commit","elapsed_us":940}
// and refuse {t, request, spec}, remove {job}, preempt {job}, prices {model, prices}. `t` is in
// microseconds of its clock; `request`, which may be missing, is what the client was told: several
// jobs may be of one request. An item is [job, kind, amount], of an encode [job, kind, amount,
// encoder slot].
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/scheduler/scheduler.h"

namespace sensorium {

// "none", "encode", "prefill", "decode", "parked".
std::string_view WorkKindName(WorkKind kind);

struct TraceHeader {
  SchedulerOptions options;
  int32_t num_blocks = 0;
};

// What one line says; the fields that its kind has, see above.
struct TraceEvent {
  enum class Kind : uint8_t {
    kAdd,
    kRefuse,
    kRemove,
    kAdmit,
    kPreempt,
    kWork,
    kPrices,
    kPlan,
    kCommit
  };
  Kind kind = Kind::kCommit;
  int64_t line = 0;
  JobId job = 0;
  int64_t now_us = 0;
  std::string request;
  JobSpec spec;
  JobWork work;
  int32_t model = 0;
  Prices prices;
  StepPlan plan;
  int64_t elapsed_us = 0;
};

// Writes a trace. Engine thread only; allocates nothing after Open. What the disk refuses is told
// once, by Close; the scheduler is never held up by it. Whole lines reach the file: at least once a
// second of the scheduler's clock, when the buffer is full, and at the end.
class TraceWriter : public SchedulerListener {
 public:
  // Replaces the file. `header` is what the scheduler and its allocator are made with.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Open(const std::string& path,
                                                           const TraceHeader& header);
  ~TraceWriter() override;
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // At most 128 bytes of `request` are kept.
  void OnAdd(JobId id, const JobSpec& spec, int64_t now_us, std::string_view request) override;
  void OnRefuse(const JobSpec& spec, int64_t now_us, std::string_view request) override;
  void OnRemove(JobId id) override;
  void OnAdmit(JobId id, int64_t now_us) override;
  void OnPreempt(JobId id) override;
  void OnWork(JobId id, const JobWork& work) override;
  void OnPrices(int32_t model, const Prices& prices) override;
  void OnPlan(const StepPlan& plan, int64_t now_us) override;
  void OnCommit(int64_t elapsed_us) override;

  absl::Status Close();  // the first error of all writes; later calls are ignored

 private:
  TraceWriter(std::string path, FILE* file, size_t buffer_bytes);
  void Begin(TraceEvent::Kind kind);
  void Name(std::string_view name);
  void Field(std::string_view name, int64_t value);
  void Field(std::string_view name, std::string_view text);  // plain text: nothing to escape
  auto Numbers() {
    return [this](std::string_view name, int64_t value, int64_t, int64_t) { Field(name, value); };
  }
  void Number(int64_t value);
  void Text(std::string_view text);
  void Arrival(const JobSpec& spec, int64_t now_us, std::string_view request);
  void EndLine();
  void Flush();

  const std::string path_;
  FILE* file_;          // unbuffered; null after Close
  std::string buffer_;  // whole lines and the one being written; its capacity is never exceeded
  int64_t flushed_us_ = 0;
  absl::Status status_;
};

// Reads a trace that somebody else may have written: lines and nesting are bounded, every number is
// checked against its range, and everything wrong is INVALID_ARGUMENT naming file and line.
class TraceReader {
 public:
  static absl::StatusOr<std::unique_ptr<TraceReader>> Open(const std::string& path);
  ~TraceReader();

  const TraceHeader& header() const { return header_; }
  // The next event, valid until the next call; null at the end. After an error there is no next.
  absl::StatusOr<const TraceEvent*> Next();

  // INVALID_ARGUMENT "file:line: what".
  absl::Status At(int64_t line, const std::string& what) const;
  // Of the file: how far this is, for a progress bar.
  int64_t bytes_read() const { return bytes_read_; }
  int64_t bytes_total() const { return bytes_total_; }

 private:
  TraceReader(std::string path, FILE* file, int64_t bytes);
  absl::StatusOr<bool> ReadLine();  // into text_; false at the end
  absl::Status ReadHeader();

  const std::string path_;
  FILE* const file_;
  const int64_t bytes_total_;
  int64_t bytes_read_ = 0;
  int64_t line_ = 0;
  std::string text_;
  TraceHeader header_;
  TraceEvent event_;
};

}  // namespace sensorium
