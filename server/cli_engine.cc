#include "server/cli_engine.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/engine/engine.h"
#include "server/address.h"
#include "server/backend_factory.h"
#include "server/cli.h"
#include "server/local_client.h"
#include "server/progress_bar.h"
#include "server/remote_client.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace fs = std::filesystem;

namespace {

// Where bundled models may lie, best first: a checkout one stands in; beside bin/; an installed
// share/; the checkout around build/<preset>/server.
std::vector<fs::path> ModelFolders() {
  std::vector<fs::path> folders = {fs::path("config/models")};
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return folders;
  for (const char* way : {"..", "../share/sensorium", "../../.."}) {
    folders.push_back((program.parent_path() / way / "config/models").lexically_normal());
  }
  return folders;
}

bool IsCheckpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / "config.json", error);
}

// What clients call the model of a directory: its last component.
std::string NameOf(const std::string& directory) {
  std::error_code error;
  fs::path path = fs::weakly_canonical(directory, error);
  if (error) path = directory;
  return path.filename().empty() ? "model" : path.filename().string();
}

std::string UniqueName(std::string name, const std::vector<ModelConfig>& others) {
  const auto taken = [&](const std::string& n) {
    return std::any_of(others.begin(), others.end(),
                       [&](const ModelConfig& other) { return other.name == n; });
  };
  if (!taken(name)) return name;
  int number = 2;
  while (taken(absl::StrCat(name, "-", number))) ++number;
  return absl::StrCat(name, "-", number);
}

OpenedClient OpenServer(const ClientOptions& options) {
  // A server's engine was set up by who started it.
  const ClientOptions defaults;
  std::vector<const char*> unused;
  if (options.speech_model != defaults.speech_model) unused.push_back("--speech-model");
  if (options.dtype != defaults.dtype) unused.push_back("--dtype");
  if (options.cpu_level != defaults.cpu_level) unused.push_back("--cpu-level");
  if (options.threads != defaults.threads) unused.push_back("--threads");
  if (options.kv_cache_mib != defaults.kv_cache_mib) unused.push_back("--kv-cache-mib");
  if (!unused.empty()) {
    PrintError(absl::StrCat("with --server, ", absl::StrJoin(unused, " and "),
                            unused.size() == 1 ? " is the server's own and changes nothing"
                                               : " are the server's own and change nothing"));
  }
  OpenedClient opened;
  opened.client = std::make_unique<RemoteClient>(options.server);
  opened.names = options.models;
  return opened;
}

}  // namespace

void CheckTarget(CLI::Option& option) {
  const auto wrong = [](const std::string& target) {
    return std::string(CheckAddress(target, /*min_port=*/1).message());
  };
  option.check(wrong)->type_name("HOST:PORT");
}

void AddClientOptions(CLI::App& command, ClientOptions& options) {
  CheckTarget(
      *command.add_option("--server", options.server,
                          "of a running server; default none, the model runs in this process"));
  command
      .add_option("--dtype", options.dtype,
                  "in process: storage and arithmetic, float32 (exact) or bfloat16; default "
                  "float32")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  command
      .add_option("--cpu-level", options.cpu_level,
                  "in process: instructions of the CPU backend, portable, avx2, avx512 or "
                  "avx512_bf16; default auto, the best this machine has")
      ->check(CLI::IsMember({"auto", "portable", "avx2", "avx512", "avx512_bf16"}));
  command
      .add_option("--threads", options.threads,
                  "in process: threads; default 0, the cores this process may use")
      ->check(CLI::Range(0, 4096));
  command
      .add_option("--kv-cache-mib", options.kv_cache_mib,
                  "in process: memory for keys and values in MiB, taken as it is needed; "
                  "default 1024")
      ->check(CLI::Range(1, 1 << 20));
}

absl::StatusOr<std::string> FindModelDirectory(const std::string& model) {
  if (IsCheckpoint(model)) return model;
  std::error_code error;
  const bool is_path = model.find('/') != std::string::npos || fs::is_directory(model, error);
  std::string tried = absl::StrCat("'", model, "'");
  if (!is_path && !model.empty()) {
    for (const fs::path& folder : ModelFolders()) {
      const std::string candidate = (folder / model).string();
      if (IsCheckpoint(candidate)) return candidate;
      absl::StrAppend(&tried, ", '", candidate, "'");
    }
  }
  return absl::NotFoundError(
      absl::StrCat("no model '", model, "': there is no config.json in ", tried));
}

absl::StatusOr<OpenedClient> OpenClient(const ClientOptions& options) {
  if (!options.server.empty()) return OpenServer(options);
  // The engine's log belongs beside the answer, not into it.
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("sensorium", std::move(sink)));
  spdlog::set_level(spdlog::level::warn);

  EngineConfig config;
  config.kv_cache_bytes = static_cast<size_t>(options.kv_cache_mib) << 20;
  OpenedClient opened;
  for (const std::string& model : options.models) {
    ASSIGN_OR_RETURN(const std::string path, FindModelDirectory(model));
    config.models.push_back({.name = UniqueName(NameOf(path), config.models), .path = path});
    opened.names.push_back(config.models.back().name);
  }
  if (!options.speech_model.empty()) {
    ASSIGN_OR_RETURN(const std::string path, FindModelDirectory(options.speech_model));
    config.speech_model = UniqueName(NameOf(path), config.models);
    config.models.push_back({.name = config.speech_model, .path = path});
  }
  ProgressBar bar;
  const auto show = [&](const std::string& model, size_t done, size_t total) {
    bar.Update("loading " + model, static_cast<double>(done), static_cast<double>(total));
  };
  ASSIGN_OR_RETURN(auto engine, OpenEngine({.dtype = options.dtype,
                                            .cpu_level = options.cpu_level,
                                            .threads = options.threads},
                                           config, show));
  opened.client = std::make_unique<LocalClient>(std::move(engine));
  return opened;
}

absl::StatusOr<std::string> ReadInputFile(const std::string& path, size_t max_bytes) {
  const auto cannot = [&](int error) {
    const std::string what = absl::StrCat("cannot read '", path, "': ", std::strerror(error));
    return error == EACCES   ? absl::PermissionDeniedError(what)
           : error == ENOENT ? absl::NotFoundError(what)
                             : absl::InvalidArgumentError(what);
  };
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) return cannot(errno);
  struct stat info {};
  if (fstat(fileno(file.get()), &info) != 0) return cannot(errno);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is a directory, not a file"));
  }
  const auto too_big = [&](const std::string& size) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' has ", size, " bytes; the limit is ", max_bytes));
  };
  if (S_ISREG(info.st_mode) && static_cast<uint64_t>(info.st_size) > max_bytes) {
    return too_big(absl::StrCat(info.st_size));
  }
  // A pipe has no size to ask for, and a file may grow while it is read.
  std::string bytes;
  char chunk[1 << 16];
  while (const size_t got = std::fread(chunk, 1, sizeof chunk, file.get())) {
    bytes.append(chunk, got);
    if (bytes.size() > max_bytes) return too_big(absl::StrCat("more than ", max_bytes));
  }
  if (std::ferror(file.get())) return cannot(errno);
  if (bytes.empty()) return absl::InvalidArgumentError(absl::StrCat("'", path, "' is empty"));
  return bytes;
}

absl::Status CheckUtf8(const std::string& flag, const std::string& text) {
  try {
    Json(text).dump();  // strict: throws on anything else
  } catch (const Json::exception&) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " is not valid UTF-8"));
  }
  return absl::OkStatus();
}

bool WriteOut(const std::string& text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
         std::fflush(stdout) == 0;
}

void PrintError(const std::string& what) {
  std::string line = what;
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "sensorium: %s\n", line.c_str());
}

int Failed(const absl::Status& status) {
  PrintError(std::string(status.message()));
  return 1;
}

int WrongUsage(const std::string& what) {
  PrintError(what);
  return 2;
}

double Shortest(float value) {
  if (!std::isfinite(value)) return value;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double wide = 0;
  std::from_chars(text, end, wide);
  return wide;
}

Json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"image_tokens", usage.image_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"audio_ms", usage.audio_ms()},
          {"kv_blocks_peak", usage.kv_blocks_peak()},
          {"encode_device_us", usage.encode_device_us()},
          {"prefill_device_us", usage.prefill_device_us()},
          {"decode_device_us", usage.decode_device_us()},
          {"kv_block_ms", usage.kv_block_ms()}};
}

Json TimingJson(const v1::Timing& timing) {
  return {{"queued_us", timing.queued_us()},
          {"encode_us", timing.encode_us()},
          {"prefill_us", timing.prefill_us()},
          {"decode_us", timing.decode_us()},
          {"time_to_first_token_us", timing.time_to_first_token_us()},
          {"predicted_us", timing.predicted_us()}};
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string TimingLine(const v1::Timing& timing, const v1::Usage& usage) {
  const auto ms = [](int64_t us) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f ms", static_cast<double>(us) / 1e3);
    return std::string(text);
  };
  const int32_t tokens = usage.completion_tokens();
  std::string line = absl::StrCat(
      "timing: queued ", ms(timing.queued_us()), ", encode ", ms(timing.encode_us()), ", prefill ",
      ms(timing.prefill_us()), ", first token after ", ms(timing.time_to_first_token_us()),
      ", decode ", ms(timing.decode_us()), "; ", tokens, tokens == 1 ? " token" : " tokens");
  if (usage.prompt_tokens() > 0) absl::StrAppend(&line, ", prompt of ", usage.prompt_tokens());
  if (usage.image_tokens() > 0) absl::StrAppend(&line, " (", usage.image_tokens(), " of image)");
  if (usage.audio_ms() > 0) absl::StrAppend(&line, ", audio of ", ms(usage.audio_ms() * 1000));
  return line;
}

}  // namespace sensorium
