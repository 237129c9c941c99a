#include <array>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/check.h"
#include "runtime/scheduler/trace.h"
#include "runtime/scheduler/trace_format.h"

namespace sensorium {

namespace {

// The longest line but a plan's and the header's, and what one item of a plan takes.
constexpr size_t kLineBytes = 4096, kItemBytes = 64;
constexpr size_t kBufferBytes = 256 << 10;
constexpr size_t kMaxRequestBytes = 128;
constexpr int64_t kFlushUs = 1'000'000;

std::string HeaderLine(const TraceHeader& header) {
  const SchedulerOptions& o = header.options;
  nlohmann::ordered_json options, models = nlohmann::json::array(),
                                  tenants = nlohmann::json::array();
  const auto into = [](nlohmann::ordered_json& json) {
    return [&json](const char* name, const auto& field, int64_t, int64_t) { json[name] = field; };
  };
  for (const SchedulerModel& m : o.models) {
    nlohmann::ordered_json model;
    ForEachModelField(m, into(model));
    ForEachPrice(m.prices, into(model["prices"]));
    models.push_back(std::move(model));
  }
  for (const TenantOptions& t : o.tenants) {
    nlohmann::ordered_json tenant;
    ForEachTenantField(t, into(tenant));
    tenant["known"] = t.known;
    tenants.push_back(std::move(tenant));
  }
  ForEachOption(o, into(options));
  options["optimistic"] = o.optimistic;
  options["chaos_seed"] = o.chaos_seed;
  options["models"] = std::move(models);
  options["tenants"] = std::move(tenants);
  nlohmann::ordered_json line;
  line["e"] = "trace";
  line["version"] = kTraceVersion;
  line["num_blocks"] = header.num_blocks;
  line["options"] = std::move(options);
  return line.dump() + "\n";
}

}  // namespace

std::string_view WorkKindName(WorkKind kind) { return kWorkKindNames[static_cast<size_t>(kind)]; }

TraceWriter::TraceWriter(std::string path, FILE* file, size_t buffer_bytes)
    : path_(std::move(path)), file_(file) {
  std::setvbuf(file, nullptr, _IONBF, 0);
  buffer_.reserve(buffer_bytes);
}

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Open(const std::string& path,
                                                               const TraceHeader& header) {
  FILE* file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) return SystemError(path, "cannot be written");
  const std::string line = HeaderLine(header);
  const size_t longest =
      kLineBytes + kItemBytes * static_cast<size_t>(header.options.max_batch_seqs);
  std::unique_ptr<TraceWriter> writer(
      new TraceWriter(path, file, std::max(line.size(), longest + kBufferBytes)));
  writer->buffer_ = line;
  writer->Flush();
  if (!writer->status_.ok()) return writer->Close();
  return writer;
}

TraceWriter::~TraceWriter() { Close().IgnoreError(); }

void TraceWriter::Text(std::string_view text) {
  CHECK_LE(buffer_.size() + text.size(), buffer_.capacity());  // else it would allocate
  buffer_.append(text);
}

void TraceWriter::Number(int64_t value) {
  char digits[24];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  Text({digits, static_cast<size_t>(end - digits)});
}

void TraceWriter::Begin(TraceEvent::Kind kind) {
  Text("{\"e\":\"");
  Text(kEventNames[static_cast<size_t>(kind)]);
  Text("\"");
}

void TraceWriter::Name(std::string_view name) {
  Text(buffer_.back() == '{' ? "\"" : ",\"");
  Text(name);
  Text("\":");
}

void TraceWriter::Field(std::string_view name, int64_t value) {
  Name(name);
  Number(value);
}

void TraceWriter::Field(std::string_view name, std::string_view text) {
  Name(name);
  Text("\"");
  Text(text);
  Text("\"");
}

// The longest line fits behind what is kept.
void TraceWriter::EndLine() {
  Text("}\n");
  if (buffer_.size() > kBufferBytes) Flush();
}

void TraceWriter::Flush() {
  if (file_ && status_.ok() &&
      std::fwrite(buffer_.data(), 1, buffer_.size(), file_) != buffer_.size()) {
    status_ = SystemError(path_, "cannot be written further");
  }
  buffer_.clear();
}

absl::Status TraceWriter::Close() {
  if (file_ == nullptr) return status_;
  Flush();
  if (std::fclose(std::exchange(file_, nullptr)) != 0 && status_.ok()) {
    status_ = SystemError(path_, "cannot be written further");
  }
  return status_;
}

void TraceWriter::Arrival(const JobSpec& spec, int64_t now_us, std::string_view request) {
  Field("t", now_us);
  if (!request.empty()) {
    char plain[kMaxRequestBytes];
    const size_t size = std::min(request.size(), kMaxRequestBytes);
    for (size_t i = 0; i < size; ++i) {
      // What JSON or UTF-8 could stumble over is in no id of ours.
      const char c = request[i];
      plain[i] = c >= ' ' && c <= '~' && c != '"' && c != '\\' ? c : '?';
    }
    Field("request", std::string_view(plain, size));
  }
  Name("spec");
  Text("{");
  ForEachSpecField(spec, [&](std::string_view name, int64_t value, int64_t, int64_t) {
    if (name != "deadline_us" || value != kNever) Field(name, value);
  });
  Text("}");
  EndLine();
}

void TraceWriter::OnAdd(JobId id, const JobSpec& spec, int64_t now_us, std::string_view request) {
  Begin(TraceEvent::Kind::kAdd);
  Field("job", id);
  Arrival(spec, now_us, request);
}

void TraceWriter::OnRefuse(const JobSpec& spec, int64_t now_us, std::string_view request) {
  Begin(TraceEvent::Kind::kRefuse);
  Arrival(spec, now_us, request);
}

void TraceWriter::OnRemove(JobId id) {
  Begin(TraceEvent::Kind::kRemove);
  Field("job", id);
  EndLine();
}

void TraceWriter::OnAdmit(JobId id, int64_t now_us) {
  Begin(TraceEvent::Kind::kAdmit);
  Field("job", id);
  Field("t", now_us);
  EndLine();
}

void TraceWriter::OnPreempt(JobId id) {
  Begin(TraceEvent::Kind::kPreempt);
  Field("job", id);
  EndLine();
}

void TraceWriter::OnWork(JobId id, const JobWork& work) {
  Begin(TraceEvent::Kind::kWork);
  Field("job", id);
  Field("kind", WorkKindName(work.kind));
  ForEachWorkField(work, Numbers());
  EndLine();
}

void TraceWriter::OnPrices(int32_t model, const Prices& prices) {
  Begin(TraceEvent::Kind::kPrices);
  Field("model", model);
  Name("prices");
  Text("{");
  ForEachPrice(prices, Numbers());
  Text("}");
  EndLine();
}

void TraceWriter::OnPlan(const StepPlan& plan, int64_t now_us) {
  Begin(TraceEvent::Kind::kPlan);
  Field("t", now_us);
  ForEachPlanField(plan, Numbers());
  Name("items");
  Text("[");
  bool first = true;
  for (const PlanItem& item : plan.items) {
    Text(first ? "[" : ",[");
    Number(item.job);
    Text(",\"");
    Text(WorkKindName(item.kind));
    Text("\",");
    Number(item.amount);
    if (item.kind == WorkKind::kEncode) {
      Text(",");
      Number(item.encoder_slot);
    }
    Text("]");
    first = false;
  }
  Text("]");
  EndLine();
  if (now_us - flushed_us_ >= kFlushUs) {
    Flush();
    flushed_us_ = now_us;
  }
}

void TraceWriter::OnCommit(int64_t elapsed_us) {
  Begin(TraceEvent::Kind::kCommit);
  Field("elapsed_us", elapsed_us);
  EndLine();
}

}  // namespace sensorium
