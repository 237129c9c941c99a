// What the subcommands share: where a question goes (an engine in this process or a server), which
// directory a model's name means, files from the command line, and how an error is told.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "sensorium/v1/sensorium.pb.h"
#include "server/inference_client.h"

namespace sensorium {

struct ClientOptions {
  std::string server;  // host:port; "" opens an engine in this process
  // In process only.
  std::vector<std::string> models;  // checkpoint directories or names of bundled models
  std::string speech_model;         // as well, for spoken questions; "": none
  std::string dtype = "float32", cpu_level = "auto";
  int threads = 0;
  int kv_cache_mib = 1024;
};

// --server, --dtype, --cpu-level, --threads, --kv-cache-mib. `options` must outlive `command`'s
// parsing.
void AddClientOptions(CLI::App& command, ClientOptions& options);

// Makes anything but HOST:PORT (or unix:PATH) of a server in `option` wrong usage.
void CheckTarget(CLI::Option& option);

struct OpenedClient {
  std::unique_ptr<InferenceClient> client;
  std::vector<std::string> names;  // what to call options.models in a request, in their order
};

// In process: loads the models, with a progress bar on a terminal; a model is called by its
// directory's name. With a server: connects when first asked, and models are called as given.
absl::StatusOr<OpenedClient> OpenClient(const ClientOptions& options);

// The checkpoint directory that `model` means: itself when it is a directory with a config.json or
// a path, otherwise the bundled model of that name, looked for in config/models of the current
// directory and of where the program lies. NOT_FOUND lists what was tried.
absl::StatusOr<std::string> FindModelDirectory(const std::string& model);

// All of a file. NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for a directory, an empty file
// or more than max_bytes (the message has both numbers); each names the file.
absl::StatusOr<std::string> ReadInputFile(const std::string& path, size_t max_bytes);

// What travels as a protobuf string must be UTF-8; `flag` is named in the error.
absl::Status CheckUtf8(const std::string& flag, const std::string& text);

// Writes to stdout at once. False: nobody reads it any more, or the disk is full.
bool WriteOut(const std::string& text);

// "sensorium: what" on one line of stderr.
void PrintError(const std::string& what);
int Failed(const absl::Status& status);   // prints it and returns exit code 1
int WrongUsage(const std::string& what);  // and 2

// ---- Pieces of the JSON output
using Json = nlohmann::ordered_json;
double Shortest(float value);  // the double whose shortest text is that of the float
Json UsageJson(const v1::Usage& usage);
Json TimingJson(const v1::Timing& timing);
std::string Dump(const Json& json);  // one line; what is not UTF-8 becomes U+FFFD

}  // namespace sensorium
