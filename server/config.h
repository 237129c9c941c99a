// The server's configuration: one YAML file, parsed once into plain structs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"
#include "server/backend_factory.h"

namespace sensorium {

struct ServerConfig {
  std::string listen = "0.0.0.0:50051";         // host:port or unix:path; port 0 takes a free one
  size_t max_message_bytes = size_t{80} << 20;  // of one request: an hour of FLAC, any photo
  int max_concurrent_calls = 1000;              // streams of one connection
  // A client that is gone without a word is noticed, and frees its blocks, after their sum.
  double keepalive_seconds = 60;          // of silence before it is asked
  double keepalive_timeout_seconds = 20;  // for its answer
  double drain_delay_seconds = 0;  // between NOT_SERVING and refusing, for balancers to notice
  double drain_seconds = 20;       // what running requests get before they are cancelled
};

struct Config {
  ServerConfig server;
  BackendOptions backend;
  EngineConfig engine;
  std::string log_level = "info";
};

// Reads and checks the file. Paths of models are relative to the file's folder. Unknown keys, wrong
// types and values out of range are INVALID_ARGUMENT with the file, the line and the key; NOT_FOUND
// when there is no such file.
absl::StatusOr<Config> LoadConfig(const std::string& path);

}  // namespace sensorium
