#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/tokenizer/split_pattern.h"

#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace sensorium {

namespace {

// The White_Space property. PCRE2's own \s counts U+180E too, which the reference does not.
constexpr std::string_view kSpaces =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

std::string SpellOutSpaces(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_class ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
      } else if (next == 'S' && !in_class) {
        out += "[^" + std::string(kSpaces) + "]";
      } else {
        out += {c, next};
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

struct FreeMatch {
  void operator()(pcre2_match_data* m) const { pcre2_match_data_free(m); }
};

}  // namespace

void SplitPattern::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<SplitPattern> SplitPattern::Compile(std::string_view pattern) {
  const std::string spelled = SpellOutSpaces(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    return absl::InvalidArgumentError(absl::StrCat("split pattern '", spelled, "', offset ", offset,
                                                   ": ", reinterpret_cast<char*>(message)));
  }
  SplitPattern split;
  split.code_.reset(code);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it, the interpreter serves
  return split;
}

void SplitPattern::Split(std::string_view text,
                         const std::function<void(std::string_view)>& piece) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create(1, nullptr));
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t at = 0;  // end of the last piece
  size_t from = 0;
  while (from < text.size()) {
    // Every byte was validated once by the caller.
    const int found = pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                  match.get(), nullptr);
    if (found < 0) break;  // no further match, or a limit was hit: one last piece
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (range[1] == range[0]) {  // an empty match: step over one character
      do {
        ++from;
      } while (from < text.size() && (text[from] & 0xc0) == 0x80);
      continue;
    }
    if (range[0] > at) piece(text.substr(at, range[0] - at));
    piece(text.substr(range[0], range[1] - range[0]));
    at = from = range[1];
  }
  if (at < text.size()) piece(text.substr(at));
}

}  // namespace sensorium
