// Parses JSON that somebody else wrote, within bounds: depth (copying, printing and destroying a
// value recurse), number of values (memory) and no key twice in one object (a DOM would hide it).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace sensorium {

struct JsonLimits {
  int depth = 64;              // a model config nests five deep
  int64_t values = 4'000'000;  // about 40 bytes each; ten per tensor in a safetensors header
};

// A JSON object. INVALID_ARGUMENT naming `origin` and the place.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view origin,
                                               const JsonLimits& limits = {});

}  // namespace sensorium
