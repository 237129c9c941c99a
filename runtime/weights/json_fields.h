// Fields of a config.json with messages that name file, key, value and bounds. An absent or null
// optional field gives its fallback; a field of the wrong type is an error in both.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace sensorium {

// INVALID_ARGUMENT: absent, not an integer, or outside [min, max].
absl::StatusOr<int64_t> RequiredInt(const nlohmann::json& json, std::string_view key,
                                    std::string_view origin, int64_t min, int64_t max);
absl::StatusOr<int64_t> OptionalInt(const nlohmann::json& json, std::string_view key,
                                    std::string_view origin, int64_t fallback, int64_t min,
                                    int64_t max);
absl::StatusOr<double> OptionalFloat(const nlohmann::json& json, std::string_view key,
                                     std::string_view origin, double fallback);
absl::StatusOr<bool> OptionalBool(const nlohmann::json& json, std::string_view key,
                                  std::string_view origin, bool fallback);
absl::StatusOr<std::string> OptionalString(const nlohmann::json& json, std::string_view key,
                                           std::string_view origin, std::string_view fallback);

}  // namespace sensorium
