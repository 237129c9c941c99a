#include "server/local_client.h"

#include <utility>
#include <variant>

#include "runtime/base/status_macros.h"
#include "server/convert.h"

namespace sensorium {

namespace {

// Hands every event on until the stream ends or nobody wants more.
template <typename Event, typename Response>
absl::Status ReadAll(EventQueue<Event>& queue,
                     const std::function<bool(const Response&)>& on_event) {
  while (true) {
    const Event event = queue.Pop();
    if (const auto* end = std::get_if<StreamEnd>(&event)) return end->status;
    const auto response = ToProto(event);
    if (response && !on_event(*response)) {
      queue.Cancel();
      return absl::CancelledError("cancelled by the caller");
    }
  }
}

}  // namespace

LocalClient::LocalClient(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

absl::Status LocalClient::Generate(
    v1::GenerateRequest request, const std::function<bool(const v1::GenerateResponse&)>& on_event) {
  ASSIGN_OR_RETURN(auto converted, FromProto(std::move(request), CallContext{}));
  return ReadAll(*engine_->Generate(std::move(converted)), on_event);
}

absl::Status LocalClient::Transcribe(
    v1::TranscribeRequest request,
    const std::function<bool(const v1::TranscribeResponse&)>& on_event) {
  ASSIGN_OR_RETURN(auto converted, FromProto(std::move(request), CallContext{}));
  return ReadAll(*engine_->Transcribe(std::move(converted)), on_event);
}

absl::StatusOr<v1::TokenizeResponse> LocalClient::Tokenize(v1::TokenizeRequest request) {
  ASSIGN_OR_RETURN(const TokenizeResult result, engine_->Tokenize(FromProto(std::move(request))));
  return ToProto(result);
}

absl::StatusOr<v1::ListModelsResponse> LocalClient::ListModels() {
  return ToProto(engine_->ListModels());
}

}  // namespace sensorium
