// A long loop's way out: asked every few thousand samples or every row whether anybody still wants
// what it computes.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace sensorium {

// True: give up. Empty: never. Must be cheap and must not throw (it is called below C libraries).
using Stop = std::function<bool()>;

inline bool Stopped(const Stop& stop) { return stop && stop(); }
// What a stopped function returns; whoever made the Stop knows the reason.
inline absl::Status StoppedError() { return absl::CancelledError("stopped half way"); }

}  // namespace sensorium
