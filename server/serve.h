// `sensorium serve`: config -> backend -> engine -> gRPC, until SIGTERM or SIGINT.
#pragma once

#include "CLI/CLI.hpp"

namespace sensorium {

// Registers the subcommand; `exit_code` is what the process returns when it was the one called.
void AddServeCommand(CLI::App& app, int& exit_code);

}  // namespace sensorium
