#include "runtime/tokenizer/byte_level.h"

#include <cstdint>

#include "runtime/tokenizer/utf8.h"

namespace sensorium {

namespace {

constexpr bool PrintsAsItself(int b) {
  return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

constexpr std::array<char32_t, 256> MakeAlphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 256;  // the others follow in order
  for (int b = 0; b < 256; ++b) alphabet[b] = PrintsAsItself(b) ? b : next++;
  return alphabet;
}

constexpr std::array<char32_t, 256> kAlphabet = MakeAlphabet();
constexpr int kCharacters = 324;  // 256 + the 68 bytes that do not print

constexpr std::array<int16_t, kCharacters> MakeBytes() {
  std::array<int16_t, kCharacters> bytes{};
  for (auto& b : bytes) b = -1;
  for (int b = 0; b < 256; ++b) bytes[kAlphabet[b]] = static_cast<int16_t>(b);
  return bytes;
}
constexpr std::array<int16_t, kCharacters> kBytes = MakeBytes();

}  // namespace

const std::array<char32_t, 256>& ByteLevelAlphabet() { return kAlphabet; }

std::optional<std::string> ByteLevelToBytes(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const int n = Utf8SequenceLength(text);
    if (n <= 0) return std::nullopt;
    const char32_t c = DecodeUtf8(text.substr(0, n));
    if (c >= kCharacters || kBytes[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kBytes[c]));
    text.remove_prefix(n);
  }
  return bytes;
}

}  // namespace sensorium
