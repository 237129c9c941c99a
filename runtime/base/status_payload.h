// What a status says beside its code and message: payloads that server/ turns into the error
// details of the wire (google.rpc.ErrorInfo, BadRequest, RetryInfo), and the makers of such
// statuses.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace sensorium {

// The field of the request that an INVALID_ARGUMENT is about, by its path: "sampling.top_p".
inline constexpr char kFieldPayload[] = "sensorium/field";
// Present: asking again will not help. Without it a RESOURCE_EXHAUSTED says when to come back.
inline constexpr char kNoRetryPayload[] = "sensorium/no_retry";
// A reason finer than the code's name, in UPPER_SNAKE_CASE.
inline constexpr char kReasonPayload[] = "sensorium/reason";

inline absl::Status WithReason(absl::Status status, std::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(std::string(reason)));
  return status;
}

// INVALID_ARGUMENT "field what".
inline absl::Status FieldError(const std::string& field, const std::string& what) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, " ", what));
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

// RESOURCE_EXHAUSTED that waiting does not cure: the request is larger than all there is.
inline absl::Status NeverFits(const std::string& message) {
  absl::Status status = WithReason(absl::ResourceExhaustedError(message), "NEVER_FITS");
  status.SetPayload(kNoRetryPayload, absl::Cord("1"));
  return status;
}

}  // namespace sensorium
