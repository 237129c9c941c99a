#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "runtime/base/status_macros.h"
#include "server/address.h"
#include "server/service.h"

namespace sensorium {

namespace {

constexpr char kServiceName[] = "sensorium.v1.Inference";
constexpr int kMinPingIntervalMs = 10'000;
// What gRPC's own buffers may take before it pushes back: a dozen requests of the largest size.
constexpr size_t kBufferedRequests = 12;

int Ms(double seconds) { return static_cast<int>(seconds * 1000); }

class ServerImpl final : public Server {
 public:
  ServerImpl(const ServerConfig& config, Engine& engine)
      : config_(config), engine_(engine), service_(engine) {}
  ~ServerImpl() override {
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Listen() {
    RETURN_IF_ERROR(ProbeListen(config_.listen));
    // Process-wide switches of gRPC; both must be on before a server is built.
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.AddListeningPort(config_.listen, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(config_.max_message_bytes));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config_.max_concurrent_calls);
    // Else a second server on the same port silently takes half of the connections.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kMinPingIntervalMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Ms(config_.keepalive_seconds));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                               Ms(config_.keepalive_timeout_seconds));
    // A stream may be silent for long: a parked one, or one that waits in the queue.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    grpc::ResourceQuota quota("sensorium");
    quota.Resize(
        std::max<size_t>(size_t{256} << 20, kBufferedRequests * config_.max_message_bytes));
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    if (!server_ || port_ == 0) {
      // Somebody was faster since the probe, or gRPC knows more.
      return absl::UnavailableError(absl::StrCat("cannot listen on ", config_.listen));
    }
    SetServing(true);
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void SetServing(bool serving) override {
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    health->SetServingStatus(kServiceName, serving);
    health->SetServingStatus(serving);
  }

  void Drain() override {
    using Seconds = std::chrono::duration<double>;
    SetServing(false);
    std::this_thread::sleep_for(Seconds(config_.drain_delay_seconds));
    const auto left = std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        Seconds(config_.drain_seconds));
    engine_.Drain(std::chrono::steady_clock::now() + left);
    // Every stream has its end in its queue; a reader gets a moment to fetch it.
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
    server_->Wait();
  }

 private:
  const ServerConfig config_;
  Engine& engine_;
  InferenceService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;  // goes before the service
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& config, Engine& engine) {
  auto server = std::make_unique<ServerImpl>(config, engine);
  if (const absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

}  // namespace sensorium
