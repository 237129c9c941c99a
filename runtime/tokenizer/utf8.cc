#include "runtime/tokenizer/utf8.h"

#include <cstdint>

namespace sensorium {

namespace {

// How long the sequence of lead byte `b` is, and what its second byte may be. 0: no lead byte.
int Lead(uint8_t b, uint8_t& low, uint8_t& high) {
  low = 0x80, high = 0xbf;
  if (b < 0x80) return 1;
  if (b >= 0xc2 && b <= 0xdf) return 2;
  if (b >= 0xe0 && b <= 0xef) {
    if (b == 0xe0) low = 0xa0;
    if (b == 0xed) high = 0x9f;
    return 3;
  }
  if (b >= 0xf0 && b <= 0xf4) {
    if (b == 0xf0) low = 0x90;
    if (b == 0xf4) high = 0x8f;
    return 4;
  }
  return 0;
}

// Bytes at the head that a well-formed sequence could have, and its whole length.
int GoodBytes(std::string_view s, int& whole) {
  uint8_t low, high;
  whole = Lead(static_cast<uint8_t>(s[0]), low, high);
  if (whole == 0) return 0;
  int good = 1;
  while (good < whole && good < static_cast<int>(s.size())) {
    const uint8_t b = static_cast<uint8_t>(s[good]);
    if (b < low || b > high) break;
    low = 0x80, high = 0xbf;
    ++good;
  }
  return good;
}

}  // namespace

int Utf8SequenceLength(std::string_view s) {
  int whole;
  const int good = GoodBytes(s, whole);
  if (good == 0) return 0;
  if (good == whole) return whole;
  return good == static_cast<int>(s.size()) ? -1 : 0;
}

int Utf8MaximalSubpart(std::string_view s) {
  int whole;
  const int good = GoodBytes(s, whole);
  return good == 0 ? 1 : good;
}

bool IsValidUtf8(std::string_view s) {
  size_t i = 0;
  while (i < s.size()) {
    if (static_cast<uint8_t>(s[i]) < 0x80) {
      ++i;
      continue;
    }
    const int n = Utf8SequenceLength(s.substr(i));
    if (n <= 0) return false;
    i += static_cast<size_t>(n);
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view s) {
  std::string out;
  out.reserve(s.size());
  AppendValidUtf8(out, s);
  return out;
}

void AppendValidUtf8(std::string& out, std::string_view s) {
  while (!s.empty()) {
    const int n = Utf8SequenceLength(s);
    if (n > 0) {
      out.append(s.substr(0, n));
      s.remove_prefix(n);
    } else {
      out.append("\xEF\xBF\xBD");
      s.remove_prefix(Utf8MaximalSubpart(s));
    }
  }
}

void AppendUtf8(std::string& out, char32_t c) {
  const auto put = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 0x3f)), put(0x80 | (c >> 6 & 0x3f)),
        put(0x80 | (c & 0x3f));
  }
}

char32_t DecodeUtf8(std::string_view s) {
  const auto b = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  switch (s.size()) {
    case 1:
      return b(0);
    case 2:
      return (b(0) & 0x1fu) << 6 | (b(1) & 0x3fu);
    case 3:
      return (b(0) & 0x0fu) << 12 | (b(1) & 0x3fu) << 6 | (b(2) & 0x3fu);
    default:
      return (b(0) & 0x07u) << 18 | (b(1) & 0x3fu) << 12 | (b(2) & 0x3fu) << 6 | (b(3) & 0x3fu);
  }
}

namespace {
bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}
}  // namespace

std::string_view StripSpace(std::string_view s) {
  while (!s.empty()) {
    const int length = Utf8SequenceLength(s);
    if (length < 1 || !IsSpace(DecodeUtf8(s.substr(0, length)))) break;
    s.remove_prefix(length);
  }
  while (!s.empty()) {
    size_t at = s.size() - 1;  // of the last sequence's first byte
    while (at > 0 && s.size() - at < 4 && (static_cast<unsigned char>(s[at]) & 0xC0) == 0x80) --at;
    const std::string_view last = s.substr(at);
    if (Utf8SequenceLength(last) != static_cast<int>(last.size()) || !IsSpace(DecodeUtf8(last)))
      break;
    s.remove_suffix(last.size());
  }
  return s;
}

}  // namespace sensorium
