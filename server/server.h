// The gRPC server around an engine: listening, health, reflection, limits, an orderly end.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"
#include "server/config.h"

namespace sensorium {

class Server {
 public:
  // Listens and serves at once. UNAVAILABLE when the address cannot be had: the port is in use, or
  // the host is not this machine's. The engine must outlive it.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config, Engine& engine);
  virtual ~Server() = default;  // cancels what still runs

  virtual int port() const = 0;
  // grpc.health.v1, of "" and of "sensorium.v1.Inference".
  virtual void SetServing(bool serving) = 0;
  // NOT_SERVING at once; new requests are refused after drain_delay_seconds; running ones have
  // drain_seconds before they are cancelled. Blocks until all is over. Call once.
  virtual void Drain() = 0;
};

}  // namespace sensorium
