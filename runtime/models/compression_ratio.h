// How repetitive a text is: Whisper's sign of a decoder caught in a loop.
#pragma once

#include <string_view>

namespace sensorium {

// Bytes of `text` over bytes of its zlib stream at the default level: openai/whisper's
// utils.compression_ratio. 0 for an empty text, since eight bytes hold nothing.
float CompressionRatio(std::string_view text);

}  // namespace sensorium
