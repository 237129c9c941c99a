// Tokens that stand for themselves in the text: split out before BPE sees it, the leftmost first,
// the longest of those. Source: huggingface/tokenizers, added_vocabulary.rs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sensorium {

struct AddedToken {
  int32_t id = 0;
  std::string content;  // UTF-8
  bool special = false;
  bool normalized = false;   // looked for in normalised text
  bool single_word = false;  // only between non-word characters
  bool lstrip = false, rstrip = false;  // takes white space beside it along
};

// Finds the literals of one pass (normalised or not).
class AddedTokenMatcher {
 public:
  // `content` as it is looked for.
  void Add(const AddedToken& token, std::string content);
  bool empty() const { return by_content_.empty(); }

  // Cuts `text`: calls `gap` for what lies between and `token` for each literal, in order.
  void Split(std::string_view text, bool match_special,
             const std::function<void(std::string_view)>& gap,
             const std::function<void(int32_t id)>& token) const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  std::unordered_map<std::string, AddedToken, Hash, std::equal_to<>> by_content_;
  std::array<std::vector<uint32_t>, 256> lengths_;  // by first byte, longest first
};

}  // namespace sensorium
