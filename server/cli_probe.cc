// `sensorium probe`: is that server there and serving? For health checks of containers and scripts.
#include <chrono>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "server/cli.h"
#include "server/cli_engine.h"
#include "server/remote_client.h"

namespace sensorium {

namespace {

struct ProbeOptions {
  std::string target, service;
  int timeout_ms = 2000;
};

// Prints the state in one word and, on stderr, why it is not SERVING.
int Probe(const ProbeOptions& o) {
  using grpc::health::v1::HealthCheckResponse;
  const auto stub = grpc::health::v1::Health::NewStub(OpenChannel(o.target));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(o.service);
  HealthCheckResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(o.timeout_ms));
  const grpc::Status status = stub->Check(&context, request, &response);

  if (status.ok() && response.status() == HealthCheckResponse::SERVING) {
    return WriteOut("SERVING\n") ? 0 : 1;
  }
  if (status.ok()) {
    WriteOut("NOT_SERVING\n");
  } else if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    WriteOut("NOT_SERVING\n");
    PrintError(absl::StrCat("the server at ", o.target, " knows no service '", o.service, "'"));
  } else {
    WriteOut("UNREACHABLE\n");
    const bool late = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    PrintError(absl::StrCat(
        o.target, ": ",
        late ? absl::StrCat("no answer within ", o.timeout_ms, " ms") : status.error_message()));
  }
  return 1;
}

}  // namespace

void AddProbeCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ProbeOptions>();
  ProbeOptions& o = *options;
  CLI::App& c = *app.add_subcommand(
      "probe", "Print SERVING, NOT_SERVING or UNREACHABLE; exit code 0 for SERVING alone");
  CheckTarget(*c.add_option("TARGET", o.target, "where the server listens")->required());
  c.add_option("--service", o.service,
               "which service of grpc.health.v1 to ask for; default: the server as a whole");
  c.add_option("--timeout-ms", o.timeout_ms, "for connecting and the answer, in ms; default 2000")
      ->check(CLI::Range(1, 3600000));
  c.callback([options, &exit_code] { exit_code = Probe(*options); });
}

}  // namespace sensorium
