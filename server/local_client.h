// Asks an engine in this process, through the same checks and messages as the server.
#pragma once

#include <functional>
#include <memory>

#include "runtime/engine/engine.h"
#include "server/inference_client.h"

namespace sensorium {

class LocalClient final : public InferenceClient {
 public:
  explicit LocalClient(std::unique_ptr<Engine> engine);

  absl::Status Generate(v1::GenerateRequest request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_event) override;
  absl::Status Transcribe(
      v1::TranscribeRequest request,
      const std::function<bool(const v1::TranscribeResponse&)>& on_event) override;
  absl::StatusOr<v1::TokenizeResponse> Tokenize(v1::TokenizeRequest request) override;
  absl::StatusOr<v1::ListModelsResponse> ListModels() override;

 private:
  const std::unique_ptr<Engine> engine_;
};

}  // namespace sensorium
