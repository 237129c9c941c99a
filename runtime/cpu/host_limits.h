// What this process may use of the machine it runs on.
#pragma once

#include <cstddef>

namespace sensorium {

// The smaller of the affinity mask and the cgroup's CPU quota (rounded up), at least 1.
int UsableCores();

// What the kernel would hand out without swapping, within the cgroup's memory limit. SIZE_MAX where
// neither can be told.
size_t AvailableMemoryBytes();

}  // namespace sensorium
