#include "runtime/tokenizer/added_tokens.h"

#include <algorithm>

namespace sensorium {

namespace {
bool IsSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool IsWord(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         (c & 0x80);
}
}  // namespace

void AddedTokenMatcher::Add(const AddedToken& token, std::string content) {
  if (content.empty()) return;
  std::vector<uint32_t>& lengths = lengths_[static_cast<uint8_t>(content[0])];
  const uint32_t length = static_cast<uint32_t>(content.size());
  if (std::find(lengths.begin(), lengths.end(), length) == lengths.end()) {
    lengths.push_back(length);
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
  }
  by_content_.insert_or_assign(std::move(content), token);
}

void AddedTokenMatcher::Split(std::string_view text, bool match_special,
                              const std::function<void(std::string_view)>& gap,
                              const std::function<void(int32_t id)>& token) const {
  size_t gap_begin = 0, i = 0;
  while (i < text.size()) {
    const AddedToken* found = nullptr;
    size_t end = i;
    for (const uint32_t length : lengths_[static_cast<uint8_t>(text[i])]) {
      if (length > text.size() - i) continue;
      const auto it = by_content_.find(text.substr(i, length));
      if (it == by_content_.end() || (it->second.special && !match_special)) continue;
      if (it->second.single_word && ((i > 0 && IsWord(text[i - 1])) ||
                                     (i + length < text.size() && IsWord(text[i + length])))) {
        continue;
      }
      found = &it->second;
      end = i + length;
      break;
    }
    if (!found) {
      ++i;
      continue;
    }
    size_t begin = i;
    while (found->lstrip && begin > gap_begin && IsSpace(text[begin - 1])) --begin;
    while (found->rstrip && end < text.size() && IsSpace(text[end])) ++end;
    if (begin > gap_begin) gap(text.substr(gap_begin, begin - gap_begin));
    token(found->id);
    gap_begin = i = end;
  }
  if (gap_begin < text.size()) gap(text.substr(gap_begin));
}

}  // namespace sensorium
