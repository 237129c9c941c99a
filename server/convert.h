// The wire contract <-> the engine's structs. Every check on untrusted numbers that needs no model
// is here, once, for the server and for the command line in process; what needs the model
// (vocabulary, context, media) is the engine's. Pure functions: thread-safe.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/status_payload.h"
#include "runtime/engine/engine.h"
#include "sensorium/v1/sensorium.pb.h"

namespace sensorium {

struct CallContext {
  std::string tenant;  // of the metadata key x-tenant
  std::optional<Deadline> deadline;
};

// Each takes the media bytes out of `request`. INVALID_ARGUMENT names the field with both numbers
// (and carries google.rpc.BadRequest); UNIMPLEMENTED a known option that this version cannot do.
absl::StatusOr<GenerateRequest> FromProto(v1::GenerateRequest&& request, const CallContext& call);
absl::StatusOr<TranscribeRequest> FromProto(v1::TranscribeRequest&& request,
                                            const CallContext& call);
TokenizeRequest FromProto(v1::TokenizeRequest&& request);

// nullopt for the stream's end, which is the call's status.
std::optional<v1::GenerateResponse> ToProto(const GenerateEvent& event);
std::optional<v1::TranscribeResponse> ToProto(const TranscribeEvent& event);
v1::TokenizeResponse ToProto(const TokenizeResult& result);
v1::ListModelsResponse ToProto(const std::vector<ModelInfo>& models);

// The google.rpc.Status that travels in grpc-status-details-bin: ErrorInfo always; BadRequest when
// the status names a field; RetryInfo for RESOURCE_EXHAUSTED and UNAVAILABLE, unless the status
// says that coming back is no use (runtime/base/status_payload.h). REQUIRES: !status.ok().
std::string StatusDetails(const absl::Status& status);

}  // namespace sensorium
