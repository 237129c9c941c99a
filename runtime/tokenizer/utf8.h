// UTF-8 as it comes from outside: whole code points, and U+FFFD for what is none.
#pragma once

#include <string>
#include <string_view>

namespace sensorium {

// Length of the well-formed sequence at the head of `s`; 0: ill-formed there; -1: a proper prefix
// of a well-formed one, cut by the end of `s`. Unicode 15, table 3-7. REQUIRES: !s.empty().
int Utf8SequenceLength(std::string_view s);
// Bytes of the maximal subpart that one U+FFFD replaces, at an ill-formed or cut head (at least 1).
int Utf8MaximalSubpart(std::string_view s);

bool IsValidUtf8(std::string_view s);
// Replaces each maximal subpart of an ill-formed sequence by U+FFFD, as Rust's from_utf8_lossy.
std::string ReplaceInvalidUtf8(std::string_view s);
// The same behind what `out` has; s.size() * 3 bytes at most.
void AppendValidUtf8(std::string& out, std::string_view s);

// Appends `c` as UTF-8. REQUIRES: a scalar value.
void AppendUtf8(std::string& out, char32_t c);
// The code point of a well-formed sequence.
char32_t DecodeUtf8(std::string_view sequence);

// Without the white space at both ends, as Python's str.strip(): Unicode's, and the separators
// U+001C to U+001F.
std::string_view StripSpace(std::string_view s);

}  // namespace sensorium
