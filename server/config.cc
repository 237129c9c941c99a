#include "server/config.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status_macros.h"
#include "server/address.h"
#include "yaml-cpp/yaml.h"

namespace sensorium {

namespace {

// "config/demo.yaml:12: listen ..."
absl::Status At(const std::string& file, const YAML::Node& node, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ":", node.Mark().line + 1, ": ", what));
}

// One section's keys: each reads its node, the rest is an error.
class Section {
 public:
  Section(std::string file, std::string name) : file_(std::move(file)), name_(std::move(name)) {}

  void String(const std::string& key, std::string* out) {
    readers_[key] = [this, key, out](const YAML::Node& node) {
      if (!node.IsScalar()) return At(file_, node, Path(key) + " must be a text");
      *out = node.Scalar();
      return absl::OkStatus();
    };
  }
  void Bool(const std::string& key, bool* out) {
    readers_[key] = [this, key, out](const YAML::Node& node) {
      if (!node.IsScalar() || !YAML::convert<bool>::decode(node, *out)) {
        return At(file_, node, Path(key) + " must be true or false");
      }
      return absl::OkStatus();
    };
  }
  // A number in [low, high], in the file multiplied by `unit`.
  template <typename T>
  void Number(const std::string& key, T* out, double low, double high, double unit = 1) {
    readers_[key] = [this, key, out, low, high, unit](const YAML::Node& node) {
      double value = 0;
      if (!node.IsScalar() || !YAML::convert<double>::decode(node, value)) {
        return At(file_, node, Path(key) + " must be a number");
      }
      if (!(value >= low && value <= high)) {
        return At(
            file_, node,
            absl::StrCat(Path(key), " is ", node.Scalar(), "; allowed are ", low, " to ", high));
      }
      if (std::numeric_limits<T>::is_integer && unit == 1 && value != static_cast<int64_t>(value)) {
        return At(file_, node,
                  absl::StrCat(Path(key), " is ", node.Scalar(), "; it must be whole"));
      }
      *out = static_cast<T>(value * unit);
      return absl::OkStatus();
    };
  }
  void Other(const std::string& key, std::function<absl::Status(const YAML::Node&)> reader) {
    readers_[key] = std::move(reader);
  }

  absl::Status Read(const YAML::Node& node) const {
    if (node.IsNull()) {  // nothing is nowhere: its line would be the next thing's
      return absl::InvalidArgumentError(
          absl::StrCat(file_, ": ", name_.empty() ? "the file" : name_, " is empty"));
    }
    if (!node.IsMap()) {
      return At(file_, node,
                absl::StrCat(name_.empty() ? "the file" : name_, " must be keys with values"));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      const std::string key = entry.first.Scalar();
      const auto reader = readers_.find(key);
      if (reader == readers_.end()) {
        return At(file_, entry.first,
                  absl::StrCat("'", Path(key), "' is no key; there are ",
                               absl::StrJoin(readers_, ", ", [](std::string* out, const auto& r) {
                                 out->append(r.first);
                               })));
      }
      if (!seen.insert(key).second) {
        return At(file_, entry.first, absl::StrCat(Path(key), " is given twice"));
      }
      RETURN_IF_ERROR(reader->second(entry.second));
    }
    return absl::OkStatus();
  }

 private:
  std::string Path(const std::string& key) const { return name_.empty() ? key : name_ + "." + key; }
  const std::string file_, name_;
  std::map<std::string, std::function<absl::Status(const YAML::Node&)>> readers_;
};

constexpr double kMiB = 1 << 20;

absl::Status ReadModel(const std::string& file, const YAML::Node& node, EngineConfig& engine) {
  ModelConfig model;
  Section section(file, "models");
  section.String("name", &model.name);
  section.String("path", &model.path);
  RETURN_IF_ERROR(section.Read(node));
  if (model.path.empty()) return At(file, node, "a model has no path");
  const std::filesystem::path path(model.path);
  if (path.is_relative()) {
    model.path = (std::filesystem::path(file).parent_path() / path).lexically_normal().string();
  }
  if (model.name.empty()) model.name = std::filesystem::path(model.path).filename().string();
  for (const ModelConfig& other : engine.models) {
    if (other.name == model.name) {
      return At(file, node, absl::StrCat("two models have the name '", model.name, "'"));
    }
  }
  engine.models.push_back(std::move(model));
  return absl::OkStatus();
}

absl::Status ReadTenant(const std::string& file, const YAML::Node& node, EngineConfig& engine) {
  TenantConfig tenant;
  Section section(file, "tenants");
  section.String("name", &tenant.name);
  section.Number("weight", &tenant.weight, 0.001, 1000);
  section.Number("max_waiting", &tenant.max_waiting, 0, 1 << 20);
  section.Number("max_running", &tenant.max_running, 0, 1 << 16);
  section.Number("max_blocks", &tenant.max_blocks, 0, INT32_MAX);
  RETURN_IF_ERROR(section.Read(node));
  if (tenant.name.empty()) return At(file, node, "a tenant has no name");
  for (const TenantConfig& other : engine.tenants) {
    if (other.name == tenant.name) {
      return At(file, node, absl::StrCat("two tenants have the name '", tenant.name, "'"));
    }
  }
  engine.tenants.push_back(std::move(tenant));
  return absl::OkStatus();
}

absl::Status ReadAll(const std::string& file, const YAML::Node& root, Config& config) {
  Section server(file, "server"), device(file, "device"), engine(file, "engine"),
      limits(file, "limits"), top(file, "");

  server.Other("listen", [&](const YAML::Node& node) {
    config.server.listen = node.IsScalar() ? node.Scalar() : "";
    const absl::Status status = CheckAddress(config.server.listen, /*min_port=*/0);
    return status.ok() ? status : At(file, node, absl::StrCat("server.listen: ", status.message()));
  });
  server.Number("max_message_mib", &config.server.max_message_bytes, 1, 1024, kMiB);
  server.Number("max_concurrent_calls", &config.server.max_concurrent_calls, 1, 100000);
  server.Number("drain_delay_seconds", &config.server.drain_delay_seconds, 0, 3600);
  server.Number("drain_seconds", &config.server.drain_seconds, 0, 3600);

  device.String("kind", &config.backend.device);
  device.String("dtype", &config.backend.dtype);
  device.String("cpu_level", &config.backend.cpu_level);
  device.String("determinism", &config.backend.determinism);
  device.Number("memory_share", &config.backend.memory_share, 0.01, 1);
  device.Bool("cuda_graphs", &config.backend.cuda_graphs);
  device.Number("threads", &config.backend.threads, 0, 4096);
  device.Bool("pin_threads", &config.backend.pin_threads);
  device.Other("media", [&](const YAML::Node& node) {
    const std::string place = node.IsScalar() ? node.Scalar() : "";
    static const std::map<std::string, MediaPlace> kPlaces = {
        {"auto", MediaPlace::kAuto}, {"host", MediaPlace::kHost}, {"device", MediaPlace::kDevice}};
    const auto it = kPlaces.find(place);
    if (it != kPlaces.end()) config.engine.media = it->second;
    if (it != kPlaces.end()) return absl::OkStatus();
    return At(file, node,
              absl::StrCat("device.media is '", place, "'; there are auto, host and device"));
  });

  EngineConfig& e = config.engine;
  engine.Number("kv_cache_mib", &e.kv_cache_bytes, 1, 4096.0 * 1024, kMiB);
  engine.Number("block_tokens", &e.block_tokens, 16, 1024);
  engine.Number("max_batch_tokens", &e.max_batch_tokens, 1, 1 << 20);
  engine.Number("max_batch_seqs", &e.max_batch_seqs, 1, 1 << 16);
  engine.Number("max_encode_units", &e.max_encode_units, 1, 1 << 16);
  engine.Number("max_waiting", &e.max_waiting, 0, 1 << 20);
  double target_step_ms = static_cast<double>(e.target_step_us) / 1000,
         starvation_seconds = static_cast<double>(e.starvation_us) / 1e6,
         reader_seconds = static_cast<double>(e.reader_timeout.count()) / 1e3;
  engine.Number("target_step_ms", &target_step_ms, 0, 60000);
  engine.Number("starvation_seconds", &starvation_seconds, 0.001, 86400);
  engine.Number("reader_seconds", &reader_seconds, 0, 86400);
  engine.Other("admission", [&](const YAML::Node& node) {
    const std::string kind = node.IsScalar() ? node.Scalar() : "";
    e.optimistic_admission = kind == "optimistic";
    if (kind == "reserve" || kind == "optimistic") return absl::OkStatus();
    return At(file, node, absl::StrCat("engine.admission is '", kind,
                                       "'; there are reserve and optimistic"));
  });
  engine.Number("encoder_slots", &e.encoder_slots, 1, 1024);
  engine.Bool("prefix_cache", &e.prefix_cache);
  engine.Number("encoder_cache_mib", &e.encoder_cache_bytes, 0, 4096.0 * 1024, kMiB);
  engine.Number("image_cache_mib", &e.image_cache_bytes, 0.001, 4096.0 * 1024, kMiB);
  engine.Number("max_tenants", &e.max_tenants, 2, 4096);
  engine.Number("preparation_threads", &e.preparation_threads, 1, 1024);
  engine.String("speech_model", &e.speech_model);

  limits.Number("default_max_tokens", &e.default_max_tokens, 1, 1 << 20);
  limits.Number("max_tokens", &e.max_tokens_limit, 1, 1 << 20);
  limits.Number("decoded_media_mib", &e.max_media_bytes, 1, 1024.0 * 1024, kMiB);
  limits.Number("decode_seconds", &e.decode_seconds, 0.001, 86400);
  limits.Number("image_mib", &e.image_limits.max_bytes, 0.001, 1024, kMiB);
  limits.Number("image_megapixels", &e.image_limits.max_pixels, 0.001, 1000, 1e6);
  limits.Number("audio_mib", &e.audio_limits.max_bytes, 0.001, 1024, kMiB);
  limits.Number("audio_seconds", &e.audio_limits.max_seconds, 1, 86400);

  top.String("log_level", &config.log_level);
  top.Other("server", [&](const YAML::Node& node) { return server.Read(node); });
  top.Other("device", [&](const YAML::Node& node) { return device.Read(node); });
  top.Other("engine", [&](const YAML::Node& node) { return engine.Read(node); });
  top.Other("limits", [&](const YAML::Node& node) { return limits.Read(node); });
  top.Other("tenants", [&](const YAML::Node& node) {
    if (!node.IsSequence()) return At(file, node, "tenants must be a list");
    for (const YAML::Node& tenant : node) RETURN_IF_ERROR(ReadTenant(file, tenant, e));
    return absl::OkStatus();
  });
  top.Other("models", [&](const YAML::Node& node) {
    if (!node.IsSequence()) return At(file, node, "models must be a list");
    for (const YAML::Node& model : node) RETURN_IF_ERROR(ReadModel(file, model, e));
    return absl::OkStatus();
  });
  RETURN_IF_ERROR(top.Read(root));
  e.target_step_us = std::llround(target_step_ms * 1000);
  e.starvation_us = std::llround(starvation_seconds * 1e6);
  e.reader_timeout = std::chrono::milliseconds(std::llround(reader_seconds * 1e3));
  if (static_cast<int32_t>(e.tenants.size()) >= e.max_tenants) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": tenants lists ", e.tenants.size(),
                                                   "; engine.max_tenants is ", e.max_tenants,
                                                   " and must be larger"));
  }

  static const std::set<std::string> kLevels = {"debug", "info", "warn", "error"};
  if (!kLevels.contains(config.log_level)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": log_level is '", config.log_level,
                                                   "'; there are debug, info, warn, error"));
  }
  if (e.block_tokens % 16) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": engine.block_tokens is ", e.block_tokens, "; it must be a multiple of 16"));
  }
  if (e.default_max_tokens > e.max_tokens_limit) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": limits.default_max_tokens is ",
                                                   e.default_max_tokens, "; limits.max_tokens is ",
                                                   e.max_tokens_limit));
  }
  if (e.models.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": lists no models"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Config> LoadConfig(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory, not a file"));
  }
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": there is no such file"));
  }
  Config config;
  try {
    RETURN_IF_ERROR(ReadAll(path, YAML::LoadFile(path), config));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", e.mark.line + 1, ": ", e.msg));
  }
  return config;
}

}  // namespace sensorium
