// The byte-level alphabet of GPT-2: every byte as one printable character, so that vocabulary files
// are text. Source: openai/gpt-2, encoder.py, bytes_to_unicode().
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace sensorium {

// The character of each byte.
const std::array<char32_t, 256>& ByteLevelAlphabet();
// The bytes that a token's text stands for; nullopt when a character is outside the alphabet.
std::optional<std::string> ByteLevelToBytes(std::string_view text);

}  // namespace sensorium
