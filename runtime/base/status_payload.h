// What a status says beyond its code and message, for whoever turns it into an answer on the wire.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace sensorium {

// INVALID_ARGUMENT about one field of the request, by its path ("sampling.top_p"), which travels as
// the payload "sensorium/field".
inline absl::Status FieldError(std::string_view field, std::string_view what) {
  const std::string path(field);
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(path, " ", std::string(what)));
  status.SetPayload("sensorium/field", absl::Cord(path));
  return status;
}

// RESOURCE_EXHAUSTED that no waiting will change: the payload "sensorium/no_retry" takes the hint to
// try again off the answer.
inline absl::Status NeverFits(std::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(std::string(message));
  status.SetPayload("sensorium/no_retry", absl::Cord("1"));
  return status;
}

}  // namespace sensorium
