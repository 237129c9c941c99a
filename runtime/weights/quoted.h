// A name that came out of somebody's file, fit to stand in a message.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace sensorium {

// In quotes, control characters and bytes beyond ASCII escaped, cut where it is longer than any
// tensor's name.
inline std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 200;
  const std::string_view shown = name.substr(0, kShown);
  return absl::StrCat("'", absl::CEscape(absl::string_view(shown.data(), shown.size())),
                      name.size() > kShown ? "...'" : "'");
}

}  // namespace sensorium
