#include "runtime/simulator/workload.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <numbers>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

constexpr std::array<std::string_view, kNumRequestKinds> kKindNames = {"picture", "speech", "text"};
constexpr size_t kMaxCsvLine = 4096;
constexpr int32_t kMaxTenants = 4096;

}  // namespace

std::string_view RequestKindName(RequestKind kind) { return kKindNames[static_cast<int>(kind)]; }

absl::StatusOr<RequestKind> ParseRequestKind(const std::string& name) {
  for (int k = 0; k < kNumRequestKinds; ++k) {
    if (kKindNames[k] == name) return static_cast<RequestKind>(k);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is no kind of request; there are picture, speech and text"));
}

uint64_t SimulationRandom::Bits() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double SimulationRandom::Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }

double SimulationRandom::Exponential() { return -std::log1p(-Uniform()); }

double SimulationRandom::Normal() {
  const double radius = std::sqrt(2 * Exponential());
  return radius * std::cos(2 * std::numbers::pi * Uniform());
}

int64_t Distribution::Draw(SimulationRandom& random) const {
  double value = a;
  switch (kind) {
    case Kind::kConstant:
      return std::llround(a);
    case Kind::kUniform:
      return std::llround(std::floor(a + random.Uniform() * (b - a + 1)));
    case Kind::kLognormal:
      value = a * std::exp(b * random.Normal());
      break;
    case Kind::kGeometric:  // on 1, 2, ...: the mean is 1 / p
      value = a <= 1 ? 1 : 1 + std::floor(-random.Exponential() / std::log1p(-1 / a));
      break;
  }
  return std::llround(std::clamp(value, 0.0, most));
}

double Distribution::Mean() const {
  switch (kind) {
    case Kind::kConstant:
    case Kind::kGeometric:
      return a;
    case Kind::kUniform:
      return (a + b) / 2;
    case Kind::kLognormal:
      return a * std::exp(b * b / 2);
  }
  return a;
}

absl::StatusOr<Distribution> Distribution::Parse(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text,
                     "' is no distribution; there are 120, uniform:1:13, lognormal:200:0.8[:most] "
                     "and geometric:64[:most]"));
  };
  std::vector<double> numbers;
  const size_t first = parts.size() > 1 ? 1 : 0;
  for (size_t i = first; i < parts.size(); ++i) {
    double& number = numbers.emplace_back();
    if (!absl::SimpleAtod(parts[i], &number) || !(number >= 0 && number <= 1e9)) return wrong();
  }
  Distribution d;
  if (first == 0) {
    d = {.kind = Kind::kConstant, .a = numbers[0]};
  } else if (parts[0] == "uniform" && numbers.size() == 2 && numbers[0] <= numbers[1]) {
    d = {.kind = Kind::kUniform, .a = numbers[0], .b = numbers[1]};
  } else if (parts[0] == "lognormal" && (numbers.size() == 2 || numbers.size() == 3) &&
             numbers[1] <= 10) {
    d = {.kind = Kind::kLognormal, .a = numbers[0], .b = numbers[1]};
    if (numbers.size() == 3) d.most = numbers[2];
  } else if (parts[0] == "geometric" && (numbers.size() == 1 || numbers.size() == 2)) {
    d = {.kind = Kind::kGeometric, .a = numbers[0]};
    if (numbers.size() == 2) d.most = numbers[1];
  } else {
    return wrong();
  }
  return d;
}

RequestMix DefaultMix(RequestKind kind, double weight) {
  using Kind = Distribution::Kind;
  RequestMix mix{.kind = kind, .weight = weight};
  switch (kind) {
    case RequestKind::kPicture:
      mix.image_crops = {.kind = Kind::kUniform, .a = 1, .b = 13};
      mix.prompt_tokens = {.kind = Kind::kLognormal, .a = 24, .b = 0.6, .most = 512};
      mix.output_tokens = {.kind = Kind::kGeometric, .a = 80, .most = 512};
      break;
    case RequestKind::kSpeech:
      mix.audio_ms = {.kind = Kind::kUniform, .a = 5000, .b = 60000};
      mix.output_tokens = {.kind = Kind::kGeometric, .a = 100, .most = 400};
      break;
    case RequestKind::kText:
      mix.prompt_tokens = {.kind = Kind::kLognormal, .a = 150, .b = 0.9, .most = 1500};
      mix.output_tokens = {.kind = Kind::kGeometric, .a = 120, .most = 512};
      break;
  }
  return mix;
}

absl::StatusOr<std::vector<RequestMix>> ParseMix(const std::string& text) {
  std::vector<RequestMix> mix;
  for (const auto part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> pair = absl::StrSplit(part, ':');
    double weight = 1;
    if (pair.size() > 2 || (pair.size() == 2 && (!absl::SimpleAtod(pair[1], &weight) ||
                                                 !(weight >= 0 && weight <= 1e9)))) {
      return absl::InvalidArgumentError(absl::StrCat("'", part, "' is no kind:weight"));
    }
    ASSIGN_OR_RETURN(const RequestKind kind, ParseRequestKind(pair[0]));
    if (weight > 0) mix.push_back(DefaultMix(kind, weight));
  }
  if (mix.empty()) return absl::InvalidArgumentError("a mix of no requests");
  return mix;
}

namespace {

int32_t Count(int64_t n) { return static_cast<int32_t>(std::clamp<int64_t>(n, 0, 1'000'000'000)); }

template <typename T, typename Weight>
const T& Choose(const std::vector<T>& from, Weight weight, SimulationRandom& random) {
  double total = 0;
  for (const T& one : from) total += weight(one);
  double at = random.Uniform() * total;
  for (const T& one : from) {
    at -= weight(one);
    if (at < 0) return one;
  }
  return from.back();
}

}  // namespace

absl::StatusOr<std::vector<Arrival>> DrawArrivals(const Workload& w, uint64_t seed, int64_t most) {
  if (!w.arrivals.empty()) {
    std::vector<Arrival> sorted = w.arrivals;
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const Arrival& a, const Arrival& b) { return a.time_us < b.time_us; });
    return sorted;
  }
  if (w.mix.empty() || w.tenants.empty()) {
    return absl::InvalidArgumentError("the workload has no kinds of requests or no tenants");
  }
  if (w.rate * w.duration_s > static_cast<double>(most)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the workload has ", w.rate * w.duration_s, " requests; the limit is ", most));
  }
  // Times and sizes come from streams of their own, so that another mix has the same arrivals.
  SimulationRandom clock(seed), sizes(seed ^ 0x5deece66d1ce4e5bu);
  const bool bursty = w.on_s > 0 && w.off_s > 0;
  const double rate = bursty ? w.rate * (w.on_s + w.off_s) / w.on_s : w.rate;
  std::vector<Arrival> arrivals;
  double now = 0;
  double on_until = bursty ? w.on_s * clock.Exponential() : w.duration_s;
  while (rate > 0) {
    double gap = clock.Exponential() / rate;  // of time that is on
    while (bursty && now + gap > on_until) {
      gap -= on_until - now;
      now = on_until + w.off_s * clock.Exponential();
      on_until = now + w.on_s * clock.Exponential();
      if (now >= w.duration_s) break;
    }
    now += gap;
    if (now >= w.duration_s) break;
    const RequestMix& mix = Choose(
        w.mix, [](const RequestMix& m) { return m.weight; }, sizes);
    const TenantMix& tenant = Choose(
        w.tenants, [](const TenantMix& t) { return t.share; }, sizes);
    Arrival a{.time_us = static_cast<int64_t>(now * 1e6),
              .tenant = static_cast<int32_t>(&tenant - w.tenants.data()),
              .kind = mix.kind,
              .image_crops = Count(mix.image_crops.Draw(sizes)),
              .audio_ms = mix.audio_ms.Draw(sizes),
              .prompt_tokens = Count(mix.prompt_tokens.Draw(sizes)),
              .output_tokens = std::max(1, Count(mix.output_tokens.Draw(sizes))),
              .priority = mix.priority};
    if (mix.deadline_ms > 0) a.deadline_us = a.time_us + mix.deadline_ms * 1000;
    arrivals.push_back(a);
  }
  return arrivals;
}

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
          a.image_crops = Count(whole);
          break;
        case 4:
          a.audio_ms = whole;
          break;
        case 5:
          a.prompt_tokens = Count(whole);
          break;
        case 6:
          a.output_tokens = std::max(1, Count(whole));
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
