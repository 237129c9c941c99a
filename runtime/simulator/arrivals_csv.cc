#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

namespace {

constexpr size_t kMaxCsvLine = 4096;
constexpr int32_t kMaxTenants = 4096;

// A line, as far as it has been read.
struct Row {
  Workload& workload;
  Arrival arrival;
  double deadline_ms = 0;
};

// A number; an empty field is 0.
struct NumberColumn {
  const char* name;
  double least, most;
  void (*set)(Row&, double);
};
constexpr NumberColumn kNumbers[] = {
    {"time_ms", 0, 1e12, [](Row& r, double n) { r.arrival.time_us = std::llround(n * 1000); }},
    {"image_crops", 0, 1e9, [](Row& r, double n) { r.arrival.image_crops = std::lround(n); }},
    {"audio_ms", 0, 1e9, [](Row& r, double n) { r.arrival.audio_ms = std::llround(n); }},
    {"media", 0, 1e15, [](Row& r, double n) { r.arrival.media = std::llround(n); }},
    {"prompt_tokens", 0, 1e9, [](Row& r, double n) { r.arrival.prompt_tokens = std::lround(n); }},
    {"system_tokens", 0, 1e9, [](Row& r, double n) { r.arrival.system_tokens = std::lround(n); }},
    {"output_tokens", 0, 1e9,
     [](Row& r, double n) { r.arrival.output_tokens = std::max(1L, std::lround(n)); }},
    {"rows", 0, 1e6, [](Row& r, double n) { r.arrival.rows = std::max(1L, std::lround(n)); }},
    {"priority", -1e6, 1e9, [](Row& r, double n) { r.arrival.priority = std::lround(n); }},
    {"deadline_ms", 0, 1e9, [](Row& r, double n) { r.deadline_ms = n; }},
};

// Reads one field into the row, or says what is wrong with it.
using Column = std::function<std::string(const std::string& field, Row& row)>;

std::string ReadTenant(const std::string& field, Row& row) {
  std::vector<TenantMix>& tenants = row.workload.tenants;
  auto found = std::find_if(tenants.begin(), tenants.end(),
                            [&](const TenantMix& t) { return t.name == field; });
  if (found == tenants.end()) {
    if (tenants.size() >= kMaxTenants) return "there are too many tenants";
    found = tenants.insert(tenants.end(), {.name = field});
  }
  row.arrival.tenant = static_cast<int32_t>(found - tenants.begin());
  return "";
}

std::string ReadKind(const std::string& field, Row& row) {
  const absl::StatusOr<RequestKind> kind = ParseRequestKind(field);
  if (!kind.ok()) return std::string(kind.status().message());
  row.arrival.kind = *kind;
  return "";
}

std::string ReadNumber(const NumberColumn& column, const std::string& field, Row& row) {
  double value = 0;
  if (!field.empty() &&
      (!absl::SimpleAtod(field, &value) || !(value >= column.least && value <= column.most))) {
    return absl::StrCat(column.name, " is '", field, "'; allowed are ", column.least, " to ",
                        column.most);
  }
  column.set(row, value);
  return "";
}

std::optional<Column> FindColumn(const std::string& name) {
  if (name == "tenant") return ReadTenant;
  if (name == "kind") return ReadKind;
  for (const NumberColumn& column : kNumbers) {
    if (name != column.name) continue;
    return [&column](const std::string& field, Row& row) { return ReadNumber(column, field, row); };
  }
  return std::nullopt;
}

}  // namespace

absl::Status ReadArrivalsCsv(const std::string& path, Workload& workload) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  int64_t number = 0;
  const auto at = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", what));
  };
  std::vector<Column> columns;
  int64_t last_us = 0;
  std::string line;
  while (std::getline(file, line)) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.size() > kMaxCsvLine) return at("the line is too long");
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> fields = absl::StrSplit(line, ',');
    if (columns.empty()) {
      for (const std::string& name : fields) {
        std::optional<Column> column = FindColumn(name);
        if (!column) return at(absl::StrCat("there is no column '", name, "'"));
        columns.push_back(*std::move(column));
      }
      if (std::find(fields.begin(), fields.end(), "time_ms") == fields.end()) {
        return at("the header has no column time_ms");
      }
      continue;
    }
    if (fields.size() != columns.size()) {
      return at(absl::StrCat(fields.size(), " fields; the header has ", columns.size()));
    }
    Row row{.workload = workload, .arrival = {}};
    for (size_t i = 0; i < fields.size(); ++i) {
      if (const std::string wrong = columns[i](fields[i], row); !wrong.empty()) return at(wrong);
    }
    Arrival& a = row.arrival;
    if (row.deadline_ms > 0) a.deadline_us = a.time_us + std::llround(row.deadline_ms * 1000);
    last_us = std::max(last_us, a.time_us);
    workload.arrivals.push_back(a);
  }
  if (workload.arrivals.empty()) return at("no requests");
  workload.duration_s = static_cast<double>(last_us + 1) / 1e6;
  return absl::OkStatus();
}

}  // namespace sensorium
