// What the command line talks to: an engine in this process or a server far away, through the same
// messages, so that both answer alike.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sensorium/v1/sensorium.pb.h"

namespace sensorium {

// Thread-compatible: one call at a time. Every call blocks until its answer is complete; `on_event`
// is called on the calling thread, in order. Returning false from it cancels the call (CANCELLED).
class InferenceClient {
 public:
  virtual ~InferenceClient() = default;
  virtual absl::Status Generate(
      v1::GenerateRequest request,
      const std::function<bool(const v1::GenerateResponse&)>& on_event) = 0;
  virtual absl::Status Transcribe(
      v1::TranscribeRequest request,
      const std::function<bool(const v1::TranscribeResponse&)>& on_event) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(v1::TokenizeRequest request) = 0;
  virtual absl::StatusOr<v1::ListModelsResponse> ListModels() = 0;
};

}  // namespace sensorium
