#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/scheduler/field_reader.h"
#include "runtime/scheduler/trace.h"
#include "runtime/scheduler/trace_format.h"

namespace sensorium {

namespace {

using Json = FieldReader::Json;

constexpr size_t kMaxLineBytes = 64 << 20;  // a plan of a million items
constexpr int kMaxNesting = 8;

void ParseKind(std::string_view text, WorkKind& out, FieldReader& fields) {
  if (!fields.ok()) return;
  const auto found = std::find(kWorkKindNames.begin(), kWorkKindNames.end(), text);
  if (found == kWorkKindNames.end()) {
    return fields.Fail("a kind of work is none, encode, prefill, decode or parked");
  }
  out = static_cast<WorkKind>(found - kWorkKindNames.begin());
}

void ReadSpec(const Json& json, JobSpec& spec, std::string* wrong) {
  FieldReader fields(json, wrong);
  spec = {};
  ForEachSpecField(spec, [&](const char* name, auto& field, int64_t low, int64_t high) {
    if (&field == static_cast<void*>(&spec.deadline_us)) {
      if (!fields.Has(name)) return;
    }
    fields.Int(name, field, low, high);
  });
  if (wrong->empty() && spec.rows * spec.max_context > kMaxTokens) {
    fields.Fail(absl::StrCat("'rows' x 'max_context' is ", spec.rows * spec.max_context,
                             "; the limit is ", kMaxTokens));
  }
}

void ReadItems(const Json& list, std::vector<PlanItem>& items, FieldReader& fields) {
  items.clear();
  for (const Json& in : list) {
    if (!in.is_array() || in.size() < 3 || in.size() > 4 || !in[1].is_string()) {
      return fields.Fail("an item of a plan is [job, kind, amount] or [job, kind, amount, slot]");
    }
    PlanItem& item = items.emplace_back();
    fields.Number("job", in[0], item.job, 1, kNever);
    ParseKind(in[1].get_ref<const std::string&>(), item.kind, fields);
    fields.Number("amount", in[2], item.amount, 0, kMaxInt32);
    if (in.size() > 3) fields.Number("slot", in[3], item.encoder_slot, -1, kMaxSeqs);
  }
}

void ReadOptions(const Json& json, SchedulerOptions& o, std::string* wrong) {
  FieldReader fields(json, wrong);
  ForEachOption(o, fields.Required());
  fields.Bool("optimistic", o.optimistic);
  const Json& seed = fields.Value("chaos_seed");
  if (seed.is_number_integer()) {
    o.chaos_seed = seed.get<uint64_t>();
  } else {
    fields.Fail("'chaos_seed' must be an integer");
  }
  o.models.clear();
  for (const Json& in : fields.List("models")) {
    SchedulerModel& model = o.models.emplace_back();
    FieldReader of(in, wrong);
    ForEachModelField(model, of.Required());
    ForEachPrice(model.prices, of.Object("prices").Required());
  }
  o.tenants.clear();
  for (const Json& in : fields.List("tenants")) {
    FieldReader of(in, wrong);
    TenantOptions& tenant = o.tenants.emplace_back();
    ForEachTenantField(tenant, of.Required());
    of.Bool("known", tenant.known);
  }
  if (o.models.empty()) fields.Fail("'models' is empty");
  if (o.tenants.empty()) fields.Fail("'tenants' is empty");
}

void ReadEvent(const Json& json, TraceEvent& event, std::string* wrong) {
  using Kind = TraceEvent::Kind;
  FieldReader fields(json, wrong);
  std::string name;
  fields.Text("e", name);
  const auto known = std::find(kEventNames.begin(), kEventNames.end(), name);
  if (known == kEventNames.end()) return fields.Fail("'e' names no event");
  event.kind = static_cast<Kind>(known - kEventNames.begin());
  const auto job = [&] { fields.Int("job", event.job, 1, kNever); };
  const auto time = [&] { fields.Int("t", event.now_us, 0, kMaxTime); };
  switch (event.kind) {
    case Kind::kAdd:
      job();
      [[fallthrough]];
    case Kind::kRefuse:
      time();
      event.request.clear();
      if (fields.Has("request")) fields.Text("request", event.request);
      return ReadSpec(fields.Value("spec"), event.spec, wrong);
    case Kind::kAdmit:
      job();
      return time();
    case Kind::kRemove:
    case Kind::kPreempt:
      return job();
    case Kind::kWork:
      job();
      fields.Text("kind", name);
      ParseKind(name, event.work.kind, fields);
      return ForEachWorkField(event.work, fields.Required());
    case Kind::kPrices:
      fields.Int("model", event.model, 0, kMaxInt32);
      return ForEachPrice(event.prices, fields.Object("prices").Required());
    case Kind::kPlan:
      time();
      ForEachPlanField(event.plan, fields.Required());
      return ReadItems(fields.List("items"), event.plan.items, fields);
    case Kind::kCommit:
      return fields.Int("elapsed_us", event.elapsed_us, 0, kMaxTime);
  }
}

// The parser, and whoever frees what it made, needs memory by depth.
bool NestsTooDeep(std::string_view line) {
  int depth = 0;
  bool in_text = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_text) {
      if (c == '\\') ++i;
      in_text = c != '"';
    } else if (c == '"') {
      in_text = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxNesting) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

TraceReader::TraceReader(std::string path, FILE* file, int64_t bytes)
    : path_(std::move(path)), file_(file), bytes_total_(bytes) {}

TraceReader::~TraceReader() { std::fclose(file_); }

absl::Status TraceReader::At(int64_t line, const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ":", line, ": ", what));
}

absl::StatusOr<std::unique_ptr<TraceReader>> TraceReader::Open(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) return SystemError(path, "cannot be read");
  struct stat about;
  if (fstat(fileno(file), &about) != 0 || S_ISDIR(about.st_mode)) {
    std::fclose(file);
    return absl::InvalidArgumentError(absl::StrCat(path, ": is no file"));
  }
  std::unique_ptr<TraceReader> reader(new TraceReader(path, file, about.st_size));
  RETURN_IF_ERROR(reader->ReadHeader());
  return reader;
}

absl::StatusOr<bool> TraceReader::ReadLine() {
  text_.clear();
  ++line_;
  char part[1 << 12];
  while (std::fgets(part, sizeof part, file_) != nullptr) {
    // fgets does not say how much it read; a NUL within a line ends it here, and is no JSON anyway.
    const size_t length = std::strlen(part);
    bytes_read_ += static_cast<int64_t>(length);
    text_.append(part, length);
    if (text_.size() > kMaxLineBytes) {
      return At(line_, absl::StrCat("the line is longer than ", kMaxLineBytes, " bytes"));
    }
    if (length == 0 || length + 1 < sizeof part || part[length - 1] == '\n') break;
  }
  if (std::ferror(file_)) return SystemError(path_, "cannot be read further");
  if (text_.empty() && std::feof(file_)) return false;
  if (text_.empty() || text_.back() != '\n') {
    return At(line_, "the line is cut off: it does not end with a line break");
  }
  return true;
}

absl::Status TraceReader::ReadHeader() {
  ASSIGN_OR_RETURN(const bool there, ReadLine());
  if (!there) return At(line_, "the file is empty");
  if (NestsTooDeep(text_)) return At(line_, "nested too deep");
  const Json json = Json::parse(text_, nullptr, /*allow_exceptions=*/false);
  std::string wrong;
  FieldReader fields(json, &wrong);
  std::string name;
  fields.Text("e", name);
  if (name != "trace") return At(line_, "a trace begins with {\"e\":\"trace\", ...}");
  int64_t version = 0;
  fields.Int("version", version, 0, kNever);
  if (wrong.empty() && version != kTraceVersion) {
    return At(line_, absl::StrCat("the trace has version ", version, "; this program reads ",
                                  kTraceVersion));
  }
  fields.Int("num_blocks", header_.num_blocks, 0, kMaxBlocks);
  ReadOptions(fields.Value("options"), header_.options, &wrong);
  return wrong.empty() ? absl::OkStatus() : At(line_, wrong);
}

absl::StatusOr<const TraceEvent*> TraceReader::Next() {
  ASSIGN_OR_RETURN(const bool there, ReadLine());
  if (!there) return nullptr;
  if (NestsTooDeep(text_)) return At(line_, "nested too deep");
  const Json json = Json::parse(text_, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return At(line_, "not valid JSON");
  std::string wrong;
  event_.line = line_;
  ReadEvent(json, event_, &wrong);
  if (!wrong.empty()) return At(line_, wrong);
  return &event_;
}

}  // namespace sensorium
