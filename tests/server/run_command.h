// Runs the command line inside a test, and tells what it printed.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "gtest/gtest.h"
#include "server/cli.h"
#include "server/cli_bench.h"

namespace sensorium {

struct Outcome {
  int exit_code = 0;
  std::string out, err;
};

// `sensorium arguments...`, without `serve`.
inline Outcome RunCommand(std::vector<std::string> arguments) {
  CLI::App app;
  Outcome outcome;
  AddGenerateCommand(app, outcome.exit_code);
  AddTranscribeCommand(app, outcome.exit_code);
  AddModelsCommand(app, outcome.exit_code);
  AddProbeCommand(app, outcome.exit_code);
  AddBenchCommand(app, outcome.exit_code);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes a vector
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    outcome.exit_code = app.exit(e) == 0 ? 0 : 2;
  }
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

}  // namespace sensorium
