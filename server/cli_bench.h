// `sensorium bench replay` and `sensorium bench simulate`: the scheduler over a trace of a server,
// and under a workload on a device that is a list of prices. No model, no server.
#pragma once

namespace CLI {
class App;
}

namespace sensorium {

// As the functions in cli.h.
void AddBenchCommand(CLI::App& app, int& exit_code);

}  // namespace sensorium
