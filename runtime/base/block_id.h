// The id of a KV block: what the allocator hands out, the block tables hold and the ops read.
#pragma once

#include <cstdint>

namespace sensorium {

using BlockId = int32_t;

}  // namespace sensorium
