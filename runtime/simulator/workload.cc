#include "runtime/simulator/workload.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

constexpr std::array<std::string_view, kNumRequestKinds> kKindNames = {"picture", "speech", "text"};

}  // namespace

std::string_view RequestKindName(RequestKind kind) { return kKindNames[static_cast<int>(kind)]; }

absl::StatusOr<RequestKind> ParseRequestKind(const std::string& name) {
  for (int k = 0; k < kNumRequestKinds; ++k) {
    if (kKindNames[k] == name) return static_cast<RequestKind>(k);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is no kind of request; there are picture, speech and text"));
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
    const int64_t media = mix.media.Draw(sizes);
    // A picture or recording is always as large as it is.
    SimulationRandom known(static_cast<uint64_t>(media * kNumRequestKinds) +
                           static_cast<uint64_t>(mix.kind));
    SimulationRandom& media_sizes = media > 0 ? known : sizes;
    Arrival a{.time_us = static_cast<int64_t>(now * 1e6),
              .tenant = static_cast<int32_t>(&tenant - w.tenants.data()),
              .kind = mix.kind,
              .image_crops = Count(mix.image_crops.Draw(media_sizes)),
              .audio_ms = mix.audio_ms.Draw(media_sizes),
              .media = media,
              .prompt_tokens = Count(mix.prompt_tokens.Draw(sizes)),
              .system_tokens = Count(mix.system_tokens.Draw(sizes)),
              .output_tokens = std::max(1, Count(mix.output_tokens.Draw(sizes))),
              .rows = std::max(1, Count(mix.rows.Draw(sizes))),
              .priority = mix.priority};
    if (mix.deadline_ms > 0) a.deadline_us = a.time_us + mix.deadline_ms * 1000;
    arrivals.push_back(a);
  }
  return arrivals;
}

}  // namespace sensorium
