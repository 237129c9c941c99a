// Where a server listens and where a client finds it: host:port, or unix:path.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sensorium {

// INVALID_ARGUMENT unless `address` is unix:path, or a host and a port in [min_port, 65535]; a host
// of IPv6 stands in brackets. gRPC itself takes 99999 and listens on port 34463.
absl::Status CheckAddress(const std::string& address, int min_port);

// Binds `address` for a moment, so that a server says at once, before minutes of loading, that it
// will not get it. UNAVAILABLE: the port is in use, the host is not this machine's, or this user
// may not have it; INVALID_ARGUMENT as CheckAddress from port 0.
absl::Status ProbeListen(const std::string& address);

}  // namespace sensorium
