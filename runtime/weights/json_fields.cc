#include "runtime/weights/json_fields.h"

#include "absl/strings/str_cat.h"

namespace sensorium {

namespace {

// The field, or nullptr when it is absent or null.
const nlohmann::json* Find(const nlohmann::json& json, std::string_view key) {
  if (!json.is_object()) return nullptr;
  const auto it = json.find(std::string(key));
  return it == json.end() || it->is_null() ? nullptr : &*it;
}

absl::Status Wrong(std::string_view origin, std::string_view key, const nlohmann::json& value,
                   std::string_view expected) {
  // Containers by their size alone: printing one walks all of it.
  std::string shown =
      value.is_structured()
          ? absl::StrCat(value.is_array() ? "an array" : "an object", " of ", value.size())
          : value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (shown.size() > 60) shown = shown.substr(0, 60) + "...";
  return absl::InvalidArgumentError(absl::StrCat(std::string(origin), ": ", std::string(key),
                                                 " is ", shown, ", expected ",
                                                 std::string(expected)));
}

}  // namespace

absl::StatusOr<int64_t> OptionalInt(const nlohmann::json& json, std::string_view key,
                                    std::string_view origin, int64_t fallback, int64_t min,
                                    int64_t max) {
  const nlohmann::json* value = Find(json, key);
  if (!value) return fallback;
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return Wrong(origin, key, *value, absl::StrCat("an integer from ", min, " to ", max));
  }
  return value->get<int64_t>();
}

absl::StatusOr<int64_t> RequiredInt(const nlohmann::json& json, std::string_view key,
                                    std::string_view origin, int64_t min, int64_t max) {
  if (!Find(json, key)) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(origin), ": ", std::string(key),
                                                   " is missing, expected an integer from ", min,
                                                   " to ", max));
  }
  return OptionalInt(json, key, origin, 0, min, max);
}

absl::StatusOr<double> OptionalFloat(const nlohmann::json& json, std::string_view key,
                                     std::string_view origin, double fallback) {
  const nlohmann::json* value = Find(json, key);
  if (!value) return fallback;
  if (!value->is_number()) return Wrong(origin, key, *value, "a number");
  return value->get<double>();
}

absl::StatusOr<bool> OptionalBool(const nlohmann::json& json, std::string_view key,
                                  std::string_view origin, bool fallback) {
  const nlohmann::json* value = Find(json, key);
  if (!value) return fallback;
  if (!value->is_boolean()) return Wrong(origin, key, *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> OptionalString(const nlohmann::json& json, std::string_view key,
                                           std::string_view origin, std::string_view fallback) {
  const nlohmann::json* value = Find(json, key);
  if (!value) return std::string(fallback);
  if (!value->is_string()) return Wrong(origin, key, *value, "a string");
  return value->get<std::string>();
}

}  // namespace sensorium
