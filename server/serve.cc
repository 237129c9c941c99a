#include "server/serve.h"

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>
#include <string>

#include "grpc/support/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/engine/engine.h"
#include "server/address.h"
#include "server/backend_factory.h"
#include "server/config.h"
#include "server/server.h"
#include "spdlog/spdlog.h"

namespace sensorium {

namespace {

struct ServeOptions {
  std::string config;
  std::optional<std::string> listen, device, dtype, cpu_level;
  std::optional<int> threads;
  std::string trace;
};

// gRPC 1.51's listener never accepts again once the process ran out of descriptors.
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// Of the ways out of loading, an hour of disk on a big model, this is the quick one: no thread but
// the backend's runs yet, nothing is half written, and Engine::Create's progress cannot say no.
void EndIfAsked(const sigset_t& signals) {
  const timespec at_once{};
  const int signal = sigtimedwait(&signals, nullptr, &at_once);
  if (signal <= 0) return;
  spdlog::info("{} while loading: stopped", signal == SIGTERM ? "SIGTERM" : "SIGINT");
  spdlog::default_logger()->flush();
  std::_Exit(128 + signal);  // as a shell tells of it: 130, 143
}

// Says how far loading is, at most once a second and at the end.
class LoadLog {
 public:
  explicit LoadLog(const sigset_t& signals) : signals_(signals) {}
  void operator()(const std::string& model, size_t done, size_t total) {
    EndIfAsked(signals_);
    const auto now = std::chrono::steady_clock::now();
    if (done < total && now - last_ < std::chrono::seconds(1)) return;
    last_ = now;
    spdlog::info("loading {}: {:.1f} of {:.1f} MB", model, done / 1e6, total / 1e6);
  }

 private:
  const sigset_t signals_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Blocks until one of `signals` comes or the engine breaks; false: it broke.
bool WaitForSignal(const sigset_t& signals, const Engine& engine) {
  const timespec poll{.tv_sec = 0, .tv_nsec = 200'000'000};
  while (!engine.Stats().broken) {
    const int signal = sigtimedwait(&signals, nullptr, &poll);
    if (signal > 0) {
      spdlog::info("{}: draining", signal == SIGTERM ? "SIGTERM" : "SIGINT");
      return true;
    }
  }
  return false;
}

absl::Status Serve(const ServeOptions& options) {
  // Before any thread starts, so that all of them leave the signals to this one.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  RaiseFileLimit();
  // What gRPC has to say about itself: we tell the same in one line, or it is for who debugs.
  gpr_set_log_function([](gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); });

  absl::StatusOr<Config> config = LoadConfig(options.config);
  if (!config.ok()) return config.status();
  if (options.listen) config->server.listen = *options.listen;
  if (options.device) config->backend.device = *options.device;
  if (options.dtype) config->backend.dtype = *options.dtype;
  if (options.cpu_level) config->backend.cpu_level = *options.cpu_level;
  if (options.threads) config->backend.threads = *options.threads;
  config->engine.trace_path = options.trace;
  spdlog::set_level(spdlog::level::from_str(config->log_level));

  RETURN_IF_ERROR(ProbeListen(config->server.listen));  // before minutes of loading
  auto engine = OpenEngine(config->backend, config->engine, LoadLog(signals));
  if (!engine.ok()) return engine.status();
  auto server = Server::Start(config->server, **engine);
  if (!server.ok()) return server.status();
  std::string models;
  for (const ModelInfo& model : (*engine)->ListModels()) models += " " + model.name;
  spdlog::info("device: {}", (*engine)->device());
  spdlog::info("serving{} on {} (port {})", models, config->server.listen, (*server)->port());

  const bool asked = WaitForSignal(signals, **engine);
  if (!asked) (*server)->SetServing(false);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second signal ends the process at once
  (*server)->Drain();
  if (!asked) return absl::UnavailableError("the device failed; see the log above");
  spdlog::info("stopped");
  return absl::OkStatus();
}

}  // namespace

void AddServeCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "Serve models over gRPC until SIGTERM or Ctrl-C");
  command->add_option("--config", options->config, "YAML file; config/demo.yaml explains every key")
      ->required();
  command
      ->add_option("--listen", options->listen,
                   "HOST:PORT or unix:PATH instead of the file's server.listen")
      ->check([](const std::string& address) {
        return std::string(CheckAddress(address, /*min_port=*/0).message());
      });
  command->add_option("--device", options->device,
                      "cuda, cpu or auto, instead of the file's device.kind");
  command->add_option("--dtype", options->dtype,
                      "float32 (exact) or bfloat16, instead of the file's device.dtype");
  command->add_option("--cpu-level", options->cpu_level,
                      "auto, portable, avx2, avx512 or avx512_bf16, instead of the file's "
                      "device.cpu_level");
  command->add_option("--trace", options->trace,
                      "writes every arrival and every plan to this file, for `bench replay`");
  command->add_option("--threads", options->threads,
                      "threads of the CPU backend; 0: the cores this process may use");
  command->callback([options, &exit_code] {
    const absl::Status status = Serve(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "sensorium: %s\n", std::string(status.message()).c_str());
    exit_code = 1;
  });
}

}  // namespace sensorium
