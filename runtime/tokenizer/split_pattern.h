// A pre-tokenizer's regular expression, cutting text into pieces that BPE treats alone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace sensorium {

// GPT-2's pattern, which the ByteLevel pre-tokenizer uses by itself. openai/gpt-2, encoder.py.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class SplitPattern {
 public:
  // Compiles with Unicode classes; \s and \S mean White_Space, as in the reference's engine.
  // INVALID_ARGUMENT with the offset of what is wrong.
  static absl::StatusOr<SplitPattern> Compile(std::string_view pattern);

  // Calls `piece` for each match and for each stretch between matches, in order: the "Isolated"
  // behaviour. Thread-safe. REQUIRES: valid UTF-8. Where the engine gives up on a hostile text (its
  // limits), what is left becomes one piece.
  void Split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace sensorium
