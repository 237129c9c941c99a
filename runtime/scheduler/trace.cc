#include "runtime/scheduler/trace.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

using Json = nlohmann::json;

constexpr int64_t kVersion = 2;
constexpr std::array<std::string_view, 4> kKinds = {"none", "encode", "prefill", "decode"};

// Ranges of what is read: beyond anything a device does, and small enough that sums of them stay
// within 64 bits (replay.cc bounds the products).
constexpr int64_t kMaxTime = int64_t{1} << 52;    // us: 142 years
constexpr int64_t kMaxTokens = int64_t{1} << 31;  // rows x context too
constexpr int64_t kMaxPricePs = 1'000'000'000'000'000;
constexpr int64_t kMaxSeqs = 1 << 20;
constexpr int64_t kMaxBlocks = 1 << 26;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxLineBytes = 64 << 20;  // a plan of a million items
constexpr int kMaxNesting = 8;

// The longest line but a plan's and the header's, and what one item of a plan takes.
constexpr size_t kLineBytes = 4096, kItemBytes = 64;
constexpr size_t kBufferBytes = 256 << 10;
constexpr size_t kMaxRequestBytes = 128;
constexpr int64_t kFlushUs = 1'000'000;

// Every field of a struct that is written and read, in one order. `f(name, field, low, high)`.
template <typename T, typename F>
void ForEachPrice(T& p, F&& f) {
  f("encode_unit_ps", p.encode_unit_ps, 0, kMaxPricePs);
  f("forward_ps", p.forward_ps, 0, kMaxPricePs);
  f("prefill_token_ps", p.prefill_token_ps, 0, kMaxPricePs);
  f("prefill_context_ps", p.prefill_context_ps, 0, kMaxPricePs);
  f("decode_row_ps", p.decode_row_ps, 0, kMaxPricePs);
  f("decode_context_ps", p.decode_context_ps, 0, kMaxPricePs);
  f("cross_position_ps", p.cross_position_ps, 0, kMaxPricePs);
}
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

std::string HeaderLine(const TraceHeader& header) {
  const SchedulerOptions& o = header.options;
  nlohmann::ordered_json options, models = Json::array(), tenants = Json::array();
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
  line["version"] = kVersion;
  line["num_blocks"] = header.num_blocks;
  line["options"] = std::move(options);
  return line.dump() + "\n";
}

absl::Status SystemError(const std::string& path, const char* what) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", what));
}

}  // namespace

std::string_view WorkKindName(WorkKind kind) { return kKinds[static_cast<size_t>(kind)]; }

// ---- Writing

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

void TraceWriter::Number(std::string_view label, int64_t value) {
  char digits[24];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  Text(label);
  Text({digits, static_cast<size_t>(end - digits)});
}

void TraceWriter::PriceList(const Prices& prices) {
  char before = '{';
  ForEachPrice(prices, [&](std::string_view name, int64_t value, int64_t, int64_t) {
    Text({&before, 1});
    Text("\"");
    Text(name);
    Number("\":", value);
    before = ',';
  });
  Text("}");
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
  Number("\"t\":", now_us);
  if (!request.empty()) {
    Text(",\"request\":\"");
    for (const char c : request.substr(0, kMaxRequestBytes)) {
      // What JSON or UTF-8 could stumble over is in no id of ours.
      const bool plain = c >= ' ' && c <= '~' && c != '"' && c != '\\';
      Text(plain ? std::string_view(&c, 1) : "?");
    }
    Text("\"");
  }
  Text(",\"spec\":");
  char before = '{';
  ForEachSpecField(spec, [&](std::string_view name, int64_t value, int64_t, int64_t) {
    if (name == "deadline_us" && value == kNever) return;
    Text({&before, 1});
    Text("\"");
    Text(name);
    Number("\":", value);
    before = ',';
  });
  Text("}");
  EndLine();
}

void TraceWriter::OnAdd(JobId id, const JobSpec& spec, int64_t now_us, std::string_view request) {
  Number("{\"e\":\"add\",\"job\":", id);
  Text(",");
  Arrival(spec, now_us, request);
}

void TraceWriter::OnRefuse(const JobSpec& spec, int64_t now_us, std::string_view request) {
  Text("{\"e\":\"refuse\",");
  Arrival(spec, now_us, request);
}

void TraceWriter::OnRemove(JobId id) {
  Number("{\"e\":\"remove\",\"job\":", id);
  EndLine();
}

void TraceWriter::OnAdmit(JobId id, int64_t now_us) {
  Number("{\"e\":\"admit\",\"job\":", id);
  Number(",\"t\":", now_us);
  EndLine();
}

void TraceWriter::OnPreempt(JobId id) {
  Number("{\"e\":\"preempt\",\"job\":", id);
  EndLine();
}

void TraceWriter::OnWork(JobId id, const JobWork& work) {
  Number("{\"e\":\"work\",\"job\":", id);
  Text(",\"kind\":\"");
  Text(WorkKindName(work.kind));
  Number("\",\"amount\":", work.amount);
  Number(",\"context\":", work.context);
  Number(",\"tables\":", work.tables);
  EndLine();
}

void TraceWriter::OnPrices(int32_t model, const Prices& prices) {
  Number("{\"e\":\"prices\",\"model\":", model);
  Text(",\"prices\":");
  PriceList(prices);
  EndLine();
}

void TraceWriter::OnPlan(const StepPlan& plan, int64_t now_us) {
  Number("{\"e\":\"plan\",\"t\":", now_us);
  Number(",\"predicted_ns\":", plan.predicted_ns);
  Number(",\"decode_ns\":", plan.decode_ns);
  Text(",\"items\":[");
  bool first = true;
  for (const PlanItem& item : plan.items) {
    Number(first ? "[" : ",[", item.job);
    Text(",\"");
    Text(WorkKindName(item.kind));
    Number("\",", item.amount);
    if (item.kind == WorkKind::kEncode) Number(",", item.encoder_slot);
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
  Number("{\"e\":\"commit\",\"elapsed_us\":", elapsed_us);
  EndLine();
}

// ---- Reading

namespace {

// Reads the fields of one line; remembers the first thing that is wrong.
class Fields {
 public:
  explicit Fields(const Json& json, std::string* wrong) : json_(json), wrong_(*wrong) {
    if (!json.is_object()) Fail("an object is expected");
  }

  template <typename T>
  void Int(const char* name, T& out, int64_t low, int64_t high) {
    const Json* field = Find(name);
    if (field == nullptr) return;
    Number(name, *field, out, low, high);
  }
  template <typename T>
  void OptionalInt(const char* name, T& out, int64_t low, int64_t high) {
    if (json_.is_object() && json_.contains(name)) Int(name, out, low, high);
  }
  void Bool(const char* name, bool& out) {
    const Json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_boolean()) return Fail(absl::StrCat("'", name, "' must be true or false"));
    out = field->get<bool>();
  }
  void Text(const char* name, std::string& out) {
    const Json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_string()) return Fail(absl::StrCat("'", name, "' must be a text"));
    out = field->get_ref<const std::string&>();
  }
  void OptionalText(const char* name, std::string& out) {
    out.clear();
    if (json_.is_object() && json_.contains(name)) Text(name, out);
  }
  void Kind(const char* name, WorkKind& out) {
    std::string text;
    Text(name, text);
    if (wrong_.empty()) ParseKind(text, out);
  }
  // A list, empty if there is none.
  const Json& List(const char* name) {
    static const Json kNone = Json::array();
    const Json* field = Find(name);
    if (field == nullptr) return kNone;
    if (field->is_array()) return *field;
    Fail(absl::StrCat("'", name, "' must be a list"));
    return kNone;
  }
  const Json& Object(const char* name) {
    static const Json kNone = Json::object();
    const Json* field = Find(name);
    return field == nullptr ? kNone : *field;
  }

  template <typename T>
  void Number(const char* name, const Json& field, T& out, int64_t low, int64_t high) {
    if (!field.is_number_integer()) return Fail(absl::StrCat("'", name, "' must be an integer"));
    const bool huge = field.is_number_unsigned() &&
                      field.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
    const int64_t value = huge ? 0 : field.get<int64_t>();
    if (huge || value < low || value > high) {
      return Fail(
          absl::StrCat("'", name, "' is ", field.dump(), "; allowed are ", low, " to ", high));
    }
    out = static_cast<T>(value);
  }
  void ParseKind(std::string_view text, WorkKind& out) {
    const auto found = std::find(kKinds.begin(), kKinds.end(), text);
    if (found == kKinds.end()) return Fail("a kind of work is none, encode, prefill or decode");
    out = static_cast<WorkKind>(found - kKinds.begin());
  }
  void Fail(std::string what) {
    if (wrong_.empty()) wrong_ = std::move(what);
  }
  auto ForEach() {
    return [this](const char* name, auto& field, int64_t low, int64_t high) {
      Int(name, field, low, high);
    };
  }

 private:
  const Json* Find(const char* name) {
    if (!wrong_.empty()) return nullptr;
    const auto field = json_.find(name);
    if (field != json_.end()) return &*field;
    Fail(absl::StrCat("'", name, "' is missing"));
    return nullptr;
  }
  const Json& json_;
  std::string& wrong_;
};

void ReadSpec(const Json& json, JobSpec& spec, std::string* wrong) {
  Fields fields(json, wrong);
  spec = {};
  ForEachSpecField(spec, [&](const char* name, auto& field, int64_t low, int64_t high) {
    if (&field == static_cast<void*>(&spec.deadline_us)) {
      fields.OptionalInt(name, field, low, high);
    } else {
      fields.Int(name, field, low, high);
    }
  });
  if (wrong->empty() && spec.rows * spec.max_context > kMaxTokens) {
    fields.Fail(absl::StrCat("'rows' x 'max_context' is ", spec.rows * spec.max_context,
                             "; the limit is ", kMaxTokens));
  }
}

void ReadItems(const Json& list, std::vector<PlanItem>& items, Fields& fields) {
  items.clear();
  for (const Json& in : list) {
    if (!in.is_array() || in.size() < 3 || in.size() > 4 || !in[1].is_string()) {
      return fields.Fail("an item of a plan is [job, kind, amount] or [job, kind, amount, slot]");
    }
    PlanItem& item = items.emplace_back();
    fields.Number("job", in[0], item.job, 1, kNever);
    fields.ParseKind(in[1].get_ref<const std::string&>(), item.kind);
    fields.Number("amount", in[2], item.amount, 0, kMaxInt32);
    if (in.size() > 3) fields.Number("slot", in[3], item.encoder_slot, -1, kMaxSeqs);
  }
}

void ReadOptions(const Json& json, SchedulerOptions& o, std::string* wrong) {
  Fields fields(json, wrong);
  ForEachOption(o, fields.ForEach());
  fields.Bool("optimistic", o.optimistic);
  const Json& seed = fields.Object("chaos_seed");
  if (seed.is_number_integer()) {
    o.chaos_seed = seed.get<uint64_t>();
  } else {
    fields.Fail("'chaos_seed' must be an integer");
  }
  o.models.clear();
  for (const Json& in : fields.List("models")) {
    SchedulerModel& model = o.models.emplace_back();
    Fields of(in, wrong);
    ForEachModelField(model, of.ForEach());
    Fields prices(of.Object("prices"), wrong);
    ForEachPrice(model.prices, prices.ForEach());
  }
  o.tenants.clear();
  for (const Json& in : fields.List("tenants")) {
    Fields of(in, wrong);
    TenantOptions& tenant = o.tenants.emplace_back();
    ForEachTenantField(tenant, of.ForEach());
    of.Bool("known", tenant.known);
  }
  if (o.models.empty()) fields.Fail("'models' is empty");
  if (o.tenants.empty()) fields.Fail("'tenants' is empty");
}

void ReadEvent(const Json& json, TraceEvent& event, std::string* wrong) {
  using Kind = TraceEvent::Kind;
  static const std::pair<std::string_view, Kind> kNames[] = {
      {"add", Kind::kAdd},       {"refuse", Kind::kRefuse},   {"remove", Kind::kRemove},
      {"admit", Kind::kAdmit},   {"preempt", Kind::kPreempt}, {"work", Kind::kWork},
      {"prices", Kind::kPrices}, {"plan", Kind::kPlan},       {"commit", Kind::kCommit}};
  Fields fields(json, wrong);
  std::string name;
  fields.Text("e", name);
  const auto known = std::find_if(std::begin(kNames), std::end(kNames),
                                  [&](const auto& entry) { return entry.first == name; });
  if (known == std::end(kNames)) return fields.Fail("'e' names no event");
  event.kind = known->second;
  const auto job = [&] { fields.Int("job", event.job, 1, kNever); };
  const auto time = [&] { fields.Int("t", event.now_us, 0, kMaxTime); };
  switch (event.kind) {
    case Kind::kAdd:
      job();
      [[fallthrough]];
    case Kind::kRefuse:
      time();
      fields.OptionalText("request", event.request);
      return ReadSpec(fields.Object("spec"), event.spec, wrong);
    case Kind::kAdmit:
      job();
      return time();
    case Kind::kRemove:
    case Kind::kPreempt:
      return job();
    case Kind::kWork:
      job();
      fields.Kind("kind", event.work.kind);
      fields.Int("amount", event.work.amount, 0, kMaxInt32);
      fields.Int("context", event.work.context, 0, kMaxTokens);
      return fields.Int("tables", event.work.tables, 0, kMaxSeqs);
    case Kind::kPrices: {
      fields.Int("model", event.model, 0, kMaxInt32);
      Fields prices(fields.Object("prices"), wrong);
      return ForEachPrice(event.prices, prices.ForEach());
    }
    case Kind::kPlan:
      time();
      fields.Int("predicted_ns", event.plan.predicted_ns, 0, kNever);
      fields.Int("decode_ns", event.plan.decode_ns, 0, kNever);
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
  Fields fields(json, &wrong);
  std::string name;
  fields.Text("e", name);
  if (name != "trace") return At(line_, "a trace begins with {\"e\":\"trace\", ...}");
  int64_t version = 0;
  fields.Int("version", version, 0, kNever);
  if (wrong.empty() && version != kVersion) {
    return At(line_,
              absl::StrCat("the trace has version ", version, "; this program reads ", kVersion));
  }
  fields.Int("num_blocks", header_.num_blocks, 0, kMaxBlocks);
  ReadOptions(fields.Object("options"), header_.options, &wrong);
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
