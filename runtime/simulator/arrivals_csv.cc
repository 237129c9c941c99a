#include <algorithm>
#include <cmath>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/simulator/workload.h"

namespace sensorium {

namespace {

constexpr size_t kMaxCsvLine = 4096;
constexpr int32_t kMaxTenants = 4096;

}  // namespace

absl::Status ReadArrivalsCsv(const std::string& path, Workload& workload) {
  static const std::vector<std::string> kColumns = {"time_ms",       "tenant",   "kind",
                                                    "image_crops",   "audio_ms", "prompt_tokens",
                                                    "output_tokens", "priority", "deadline_ms"};
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  int64_t number = 0;
  const auto at = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", what));
  };
  std::vector<size_t> columns;  // of each field: into kColumns
  double last_us = 0;
  std::string line;
  while (std::getline(file, line)) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.size() > kMaxCsvLine) return at("the line is too long");
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> fields = absl::StrSplit(line, ',');
    if (columns.empty()) {
      for (const std::string& name : fields) {
        const auto found = std::find(kColumns.begin(), kColumns.end(), name);
        if (found == kColumns.end()) return at(absl::StrCat("there is no column '", name, "'"));
        columns.push_back(static_cast<size_t>(found - kColumns.begin()));
      }
      if (std::find(columns.begin(), columns.end(), 0u) == columns.end()) {
        return at("the header has no column time_ms");
      }
      continue;
    }
    if (fields.size() != columns.size()) {
      return at(absl::StrCat(fields.size(), " fields; the header has ", columns.size()));
    }
    Arrival a;
    double deadline_ms = 0;
    for (size_t i = 0; i < fields.size(); ++i) {
      if (columns[i] == 1) {
        auto& tenants = workload.tenants;
        auto found = std::find_if(tenants.begin(), tenants.end(),
                                  [&](const TenantMix& t) { return t.name == fields[i]; });
        if (found == tenants.end()) {
          if (tenants.size() >= kMaxTenants) return at("there are too many tenants");
          found = tenants.insert(tenants.end(), {.name = fields[i]});
        }
        a.tenant = static_cast<int32_t>(found - tenants.begin());
        continue;
      }
      if (columns[i] == 2) {
        const absl::StatusOr<RequestKind> kind = ParseRequestKind(fields[i]);
        if (!kind.ok()) return at(std::string(kind.status().message()));
        a.kind = *kind;
        continue;
      }
      const bool is_time = columns[i] == 0;
      const double low = columns[i] == 7 ? -1e6 : 0, high = is_time ? 1e12 : 1e9;
      double value = 0;
      if (!fields[i].empty() &&
          (!absl::SimpleAtod(fields[i], &value) || !(value >= low && value <= high))) {
        return at(absl::StrCat(kColumns[columns[i]], " is '", fields[i], "'; allowed are ", low,
                               " to ", high));
      }
      const int64_t whole = std::llround(value);
      switch (columns[i]) {
        case 0:
          a.time_us = std::llround(value * 1000);
          break;
        case 3:
          a.image_crops = static_cast<int32_t>(whole);
          break;
        case 4:
          a.audio_ms = whole;
          break;
        case 5:
          a.prompt_tokens = static_cast<int32_t>(whole);
          break;
        case 6:
          a.output_tokens = std::max(1, static_cast<int32_t>(whole));
          break;
        case 7:
          a.priority = static_cast<int32_t>(whole);
          break;
        case 8:
          deadline_ms = value;
          break;
      }
    }
    if (deadline_ms > 0) a.deadline_us = a.time_us + std::llround(deadline_ms * 1000);
    last_us = std::max(last_us, static_cast<double>(a.time_us));
    workload.arrivals.push_back(a);
  }
  if (workload.arrivals.empty()) return at("no requests");
  workload.duration_s = (last_us + 1) / 1e6;
  return absl::OkStatus();
}

}  // namespace sensorium
