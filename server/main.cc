// sensorium: one binary, one subcommand a job.
#include <csignal>
#include <cstdio>

#include "CLI/CLI.hpp"
#include "server/cli.h"
#include "server/cli_bench.h"
#include "server/serve.h"

int main(int argc, char** argv) {
  // A client that leaves in the middle of a write is an error of that write, not of the process.
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app{"Sensorium: a server that sees and hears (Molmo and Whisper over gRPC)"};
  app.set_version_flag("--version", SENSORIUM_VERSION);
  app.require_subcommand(1);
  int exit_code = 0;
  sensorium::AddServeCommand(app, exit_code);
  sensorium::AddGenerateCommand(app, exit_code);
  sensorium::AddTranscribeCommand(app, exit_code);
  sensorium::AddModelsCommand(app, exit_code);
  sensorium::AddProbeCommand(app, exit_code);
  sensorium::AddBenchCommand(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : 2;
  }
  return exit_code;
}
