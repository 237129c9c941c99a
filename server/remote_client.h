// Asks a server over gRPC (without TLS: meant for a trusted network or a proxy in front).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "grpcpp/grpcpp.h"
#include "sensorium/v1/sensorium.grpc.pb.h"
#include "server/inference_client.h"

namespace sensorium {

// A channel of its own to host:port, whatever other channels the process has. Web proxies of the
// environment (http_proxy) are not asked; messages may have up to 256 MiB.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& target);

// Same code, same message.
absl::Status FromGrpc(const grpc::Status& status);

class RemoteClient final : public InferenceClient {
 public:
  // Connects at the first call. A server that is still starting is waited for; UNAVAILABLE when
  // none answers within connect_timeout.
  explicit RemoteClient(std::string target,
                        std::chrono::milliseconds connect_timeout = std::chrono::seconds(5));

  absl::Status Generate(v1::GenerateRequest request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_event) override;
  absl::Status Transcribe(
      v1::TranscribeRequest request,
      const std::function<bool(const v1::TranscribeResponse&)>& on_event) override;
  absl::StatusOr<v1::TokenizeResponse> Tokenize(v1::TokenizeRequest request) override;
  absl::StatusOr<v1::ListModelsResponse> ListModels() override;

 private:
  absl::Status Connect();

  const std::string target_;
  const std::chrono::milliseconds connect_timeout_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace sensorium
