// Reads the fields of JSON objects that anybody may have written. Types and ranges are checked; the
// first thing that is wrong is kept, and after it nothing is read any more.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace sensorium {

class FieldReader {
 public:
  using Json = nlohmann::json;

  // `json` and `wrong`, which the readers of nested objects share, outlive it. `path` goes before
  // the names in messages: "vision.".
  FieldReader(const Json& json, std::string* wrong, std::string path = "")
      : json_(json), wrong_(*wrong), path_(std::move(path)) {
    if (!json.is_object()) Fail("an object is expected");
  }

  bool ok() const { return wrong_.empty(); }
  void Fail(std::string what) {
    if (wrong_.empty()) wrong_ = std::move(what);
  }

  bool Has(const char* name) { return ok() && json_.contains(name); }
  template <typename T>
  void Int(const char* name, T& out, int64_t low, int64_t high) {
    if (const Json* field = Find(name)) Number(name, *field, out, low, high);
  }
  void Bool(const char* name, bool& out) {
    const Json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_boolean()) return Fail(absl::StrCat(Quoted(name), " must be true or false"));
    out = field->get<bool>();
  }
  void Text(const char* name, std::string& out) {
    const Json* field = Find(name);
    if (field == nullptr) return;
    if (!field->is_string()) return Fail(absl::StrCat(Quoted(name), " must be a text"));
    out = field->get_ref<const std::string&>();
  }
  const Json& List(const char* name) {  // empty if there is none
    static const Json kNone = Json::array();
    const Json* field = Find(name);
    if (field == nullptr) return kNone;
    if (field->is_array()) return *field;
    Fail(absl::StrCat(Quoted(name), " must be a list"));
    return kNone;
  }
  const Json& Value(const char* name) {  // an empty object if there is none
    static const Json kNone = Json::object();
    const Json* field = Find(name);
    return field == nullptr ? kNone : *field;
  }
  FieldReader Object(const char* name) {
    return FieldReader(Value(name), &wrong_, absl::StrCat(path_, name, "."));
  }

  // A number that is no field: of a list.
  template <typename T>
  void Number(const char* name, const Json& value, T& out, int64_t low, int64_t high) {
    if (!ok()) return;
    constexpr double kExact = 9007199254740992;  // 2^53; people write 2.6e9
    const bool huge = value.is_number_unsigned() &&
                      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
    const bool whole = value.is_number_float() && std::abs(value.get<double>()) <= kExact &&
                       std::floor(value.get<double>()) == value.get<double>();
    if (!value.is_number_integer() && !whole) {
      return Fail(absl::StrCat(Quoted(name), " must be an integer"));
    }
    const int64_t n = huge ? 0 : value.get<int64_t>();
    if (huge || n < low || n > high) {
      return Fail(
          absl::StrCat(Quoted(name), " is ", value.dump(), "; allowed are ", low, " to ", high));
    }
    out = static_cast<T>(n);
  }

  // For the lists of a struct's fields, f(name, field, low, high): each must be there, or keeps
  // what it has.
  auto Required() {
    return [this](const char* name, auto& field, int64_t low, int64_t high) {
      Int(name, field, low, high);
    };
  }
  auto Optional() {
    return [this](const char* name, auto& field, int64_t low, int64_t high) {
      asked_.push_back(name);
      if (Has(name)) Int(name, field, low, high);
    };
  }
  // What was not asked for is an error.
  void NoOthers() {
    if (!ok()) return;
    for (const auto& [name, value] : json_.items()) {
      if (std::find(asked_.begin(), asked_.end(), name) == asked_.end()) {
        return Fail(absl::StrCat("there is no field ", path_, name));
      }
    }
  }
  // Asks, for NoOthers, and says whether it is there.
  bool Asked(const char* name) {
    asked_.push_back(name);
    return Has(name);
  }

 private:
  std::string Quoted(const char* name) const { return absl::StrCat("'", path_, name, "'"); }
  const Json* Find(const char* name) {
    if (!ok()) return nullptr;
    const auto field = json_.find(name);
    if (field != json_.end()) return &*field;
    Fail(absl::StrCat(Quoted(name), " is missing"));
    return nullptr;
  }

  const Json& json_;
  std::string& wrong_;
  const std::string path_;
  std::vector<std::string_view> asked_;
};

}  // namespace sensorium
