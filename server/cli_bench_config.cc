#include "server/cli_bench_config.h"

#include <filesystem>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"
#include "yaml-cpp/yaml.h"

namespace sensorium {

namespace {

using ReadNode = std::function<absl::Status(const YAML::Node&)>;

// What the file says of the things that are not in the simulator's structs.
struct Choices {
  std::string profile = "cpu-mini";
  std::string policy = "budget";
  std::string csv;
  int64_t target_step_us = kDefaultTargetStepUs;
};

class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  absl::Status At(const YAML::Node& node, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ":", node.Mark().line + 1, ": ", what));
  }

  // A map of exactly these keys, any of which may be missing.
  absl::Status Keys(const YAML::Node& node, const std::map<std::string, ReadNode>& keys) const {
    if (!node.IsMap()) return At(node, "keys with values are expected");
    for (const auto& entry : node) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      const auto known = keys.find(key);
      if (known == keys.end()) {
        std::string names;
        for (const auto& [name, read] : keys)
          absl::StrAppend(&names, names.empty() ? "" : ", ", name);
        return At(entry.first, absl::StrCat("'", key, "' is no key; there are ", names));
      }
      RETURN_IF_ERROR(known->second(entry.second));
    }
    return absl::OkStatus();
  }
  absl::Status Each(const YAML::Node& node, const ReadNode& read) const {
    if (!node.IsSequence()) return At(node, "a list is expected");
    for (const YAML::Node& one : node) RETURN_IF_ERROR(read(one));
    return absl::OkStatus();
  }

  template <typename T>
  ReadNode Number(T& out, double low, double high) const {
    return [this, &out, low, high](const YAML::Node& node) {
      double value = 0;
      if (!node.IsScalar() || !YAML::convert<double>::decode(node, value) ||
          !(value >= low && value <= high)) {
        return At(node, absl::StrCat("a number from ", low, " to ", high, " is expected"));
      }
      out = static_cast<T>(value);
      return absl::OkStatus();
    };
  }
  ReadNode Text(std::string& out) const {
    return [this, &out](const YAML::Node& node) {
      if (!node.IsScalar()) return At(node, "a text is expected");
      out = node.Scalar();
      return absl::OkStatus();
    };
  }
  ReadNode Bool(bool& out) const {
    return [this, &out](const YAML::Node& node) {
      if (node.IsScalar() && YAML::convert<bool>::decode(node, out)) return absl::OkStatus();
      return At(node, "true or false is expected");
    };
  }
  ReadNode Lengths(Distribution& out) const {
    return [this, &out](const YAML::Node& node) {
      if (!node.IsScalar()) return At(node, "a distribution is expected");
      absl::StatusOr<Distribution> parsed = Distribution::Parse(node.Scalar());
      if (!parsed.ok()) return At(node, std::string(parsed.status().message()));
      out = *parsed;
      return absl::OkStatus();
    };
  }

 private:
  const std::string file_;
};

absl::Status ReadMix(const Reader& in, const YAML::Node& node, Workload& workload) {
  std::string kind = "text";
  if (node.IsMap() && node["kind"] && node["kind"].IsScalar()) kind = node["kind"].Scalar();
  const absl::StatusOr<RequestKind> parsed = ParseRequestKind(kind);
  if (!parsed.ok()) return in.At(node, std::string(parsed.status().message()));
  RequestMix& mix = workload.mix.emplace_back(DefaultMix(*parsed, 1));
  return in.Keys(node, {{"kind", in.Text(kind)},
                        {"weight", in.Number(mix.weight, 0, 1e9)},
                        {"image_crops", in.Lengths(mix.image_crops)},
                        {"audio_ms", in.Lengths(mix.audio_ms)},
                        {"media", in.Lengths(mix.media)},
                        {"prompt_tokens", in.Lengths(mix.prompt_tokens)},
                        {"system_tokens", in.Lengths(mix.system_tokens)},
                        {"output_tokens", in.Lengths(mix.output_tokens)},
                        {"rows", in.Lengths(mix.rows)},
                        {"priority", in.Number(mix.priority, -1e6, 1e6)},
                        {"deadline_ms", in.Number(mix.deadline_ms, 0, 1e9)}});
}

absl::Status ReadFile(const std::string& path, Workload& w, SimulationOptions& o, Choices& c) {
  if (!std::filesystem::is_regular_file(path)) {
    return absl::NotFoundError(absl::StrCat(path, ": there is no such file"));
  }
  const Reader in(path);
  const auto keys = [&in](std::map<std::string, ReadNode> of) -> ReadNode {
    return [&in, of = std::move(of)](const YAML::Node& node) { return in.Keys(node, of); };
  };
  const ReadNode arrivals = keys({{"rate", in.Number(w.rate, 0, 1e6)},
                                  {"duration_s", in.Number(w.duration_s, 0.001, 1e7)},
                                  {"warmup_s", in.Number(o.warmup_s, 0, 1e7)},
                                  {"on_s", in.Number(w.on_s, 0, 1e7)},
                                  {"off_s", in.Number(w.off_s, 0, 1e7)},
                                  {"csv", in.Text(c.csv)}});
  const ReadNode mix = [&](const YAML::Node& node) {
    w.mix.clear();
    return in.Each(node, [&](const YAML::Node& one) { return ReadMix(in, one, w); });
  };
  const ReadNode tenants = [&](const YAML::Node& node) {
    w.tenants.clear();
    return in.Each(node, [&](const YAML::Node& one) {
      TenantMix& tenant = w.tenants.emplace_back();
      return in.Keys(one, {{"name", in.Text(tenant.name)},
                           {"share", in.Number(tenant.share, 0, 1e9)},
                           {"weight", in.Number(tenant.weight, 1, 1e9)},
                           {"max_waiting", in.Number(tenant.max_waiting, 0, 1 << 20)},
                           {"max_running", in.Number(tenant.max_running, 0, 1 << 20)}});
    });
  };
  const ReadNode scheduler = keys({{"policy", in.Text(c.policy)},
                                   {"target_step_us", in.Number(c.target_step_us, 1, 1e9)},
                                   {"max_batch_tokens", in.Number(o.max_batch_tokens, 1, 1 << 20)},
                                   {"max_batch_seqs", in.Number(o.max_batch_seqs, 1, 1 << 16)},
                                   {"max_waiting", in.Number(o.max_waiting, 0, 1 << 20)},
                                   {"encoder_slots", in.Number(o.encoder_slots, 1, 1 << 16)},
                                   {"starvation_us", in.Number(o.starvation_us, 0, 1e12)},
                                   {"optimistic", in.Bool(o.optimistic)}});
  const ReadNode device = keys({{"profile", in.Text(c.profile)},
                                {"noise", in.Number(o.noise, 0, 3)},
                                {"price_error", in.Number(o.price_error, 0.001, 1000)},
                                {"host_us", in.Number(o.host_us, 0, 1e6)},
                                {"prefix_cache", in.Bool(o.prefix_cache)},
                                {"encoder_cache_share", in.Number(o.encoder_cache_share, 0, 1)}});
  try {
    RETURN_IF_ERROR(in.Keys(YAML::LoadFile(path), {{"arrivals", arrivals},
                                                   {"mix", mix},
                                                   {"tenants", tenants},
                                                   {"scheduler", scheduler},
                                                   {"device", device},
                                                   {"seed", in.Number(o.seed, 0, 1e15)}}));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", e.mark.line + 1, ": ", e.msg));
  }
  // Paths in the file are relative to it.
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!c.csv.empty()) c.csv = (folder / c.csv).lexically_normal().string();
  if (c.profile.ends_with(".json")) c.profile = (folder / c.profile).lexically_normal().string();
  return absl::OkStatus();
}

// "default:1:1000,paying:1:3000": name, share of the requests, weight in thousandths.
absl::StatusOr<std::vector<TenantMix>> ParseTenants(const std::string& text) {
  std::vector<TenantMix> tenants;
  for (const auto part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> fields = absl::StrSplit(part, ':');
    TenantMix& tenant = tenants.emplace_back();
    tenant.name = fields[0];
    if (fields[0].empty() || fields.size() > 3 ||
        (fields.size() > 1 &&
         (!absl::SimpleAtod(fields[1], &tenant.share) || !(tenant.share >= 0))) ||
        (fields.size() > 2 &&
         (!absl::SimpleAtoi(fields[2], &tenant.weight) || tenant.weight < 1))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tenants: '", part, "' is no name:share:weight"));
    }
  }
  return tenants;
}

}  // namespace

absl::StatusOr<BenchSetup> MakeBenchSetup(const BenchFlags& f) {
  BenchSetup setup;
  Workload& w = setup.workload;
  SimulationOptions& o = setup.options;
  Choices c;
  if (!f.config.empty()) RETURN_IF_ERROR(ReadFile(f.config, w, o, c));
  w.rate = f.rate.value_or(w.rate);
  w.duration_s = f.duration_s.value_or(w.duration_s);
  if (f.mix) {
    ASSIGN_OR_RETURN(w.mix, ParseMix(*f.mix));
  } else if (w.mix.empty()) {
    ASSIGN_OR_RETURN(w.mix, ParseMix(kDefaultBenchMix));
  }
  if (f.tenants) {
    ASSIGN_OR_RETURN(w.tenants, ParseTenants(*f.tenants));
  }
  o.warmup_s = f.warmup_s.value_or(o.warmup_s);
  o.noise = f.noise.value_or(o.noise);
  o.seed = f.seed.value_or(o.seed);
  o.max_batch_seqs = f.max_batch_seqs.value_or(o.max_batch_seqs);
  o.max_batch_tokens = f.max_batch_tokens.value_or(o.max_batch_tokens);
  o.max_waiting = f.max_waiting.value_or(o.max_waiting);
  o.optimistic = o.optimistic || f.optimistic;

  const std::string policy = f.policy.value_or(c.policy);
  if (policy != "budget" && policy != "first-come") {
    return absl::InvalidArgumentError(
        absl::StrCat("the policy is '", policy, "'; there are budget and first-come"));
  }
  if (policy == "first-come" && f.target_step_us) {
    return absl::InvalidArgumentError("--target-step-us has no meaning with --policy first-come");
  }
  o.target_step_us = policy == "budget" ? f.target_step_us.value_or(c.target_step_us) : 0;

  const std::string csv = f.csv.value_or(c.csv);
  if (!csv.empty()) RETURN_IF_ERROR(ReadArrivalsCsv(csv, w));
  ASSIGN_OR_RETURN(setup.profile, LoadDeviceProfile(f.profile.value_or(c.profile)));
  return setup;
}

}  // namespace sensorium
