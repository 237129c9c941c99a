// Text <-> token ids: byte-level BPE as huggingface/tokenizers computes it, from a tokenizer.json.
// Normaliser NFC or none; pre-tokenisers ByteLevel and Split; added tokens of every kind. Adds no
// BOS or EOS: what frames a text is the models' business.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/split_pattern.h"

namespace sensorium {

class Tokenizer {
 public:
  // Errors name the file and what is wrong or unsupported in it.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromFile(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json,
                                                             std::string_view origin);

  // Thread-safe. Invalid UTF-8 is read as U+FFFD. Without `parse_special`, literals of special tokens
  // in the text are plain text.
  std::vector<int32_t> Encode(std::string_view text, bool parse_special = true) const;
  // Bytes of all tokens together, invalid UTF-8 as U+FFFD. Ids outside the vocabulary give nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // Raw bytes of one token; empty for an id outside the vocabulary.
  std::string_view TokenBytes(int32_t id) const {
    return InRange(id) ? std::string_view(bytes_[id]) : std::string_view();
  }
  // By its text in the file: the byte-level form, or an added token's content.
  std::optional<int32_t> TokenToId(std::string_view literal) const;
  bool IsSpecial(int32_t id) const { return InRange(id) && special_[id]; }
  int32_t vocab_size() const { return static_cast<int32_t>(bytes_.size()); }  // highest id + 1
  size_t longest_token_bytes() const { return longest_token_bytes_; }

 private:
  explicit Tokenizer(const std::array<int32_t, 256>& byte_ids) : bpe_(byte_ids) {}
  bool InRange(int32_t id) const { return id >= 0 && id < vocab_size(); }
  // A stretch without non-normalised added tokens: normalise, split, merge.
  void EncodeStretch(std::string_view text, bool parse_special, std::vector<int32_t>& ids) const;
  void EncodePieces(std::string_view text, size_t pattern, std::vector<int32_t>& ids) const;

  Bpe bpe_;
  bool nfc_ = false;
  bool add_prefix_space_ = false;
  bool ignore_merges_ = false;
  std::vector<SplitPattern> patterns_;  // each cuts what the one before left
  AddedTokenMatcher raw_added_, normalized_added_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
  size_t longest_token_bytes_ = 0;
  std::unordered_map<std::string, int32_t> id_of_literal_;
  std::unordered_map<std::string_view, int32_t> id_of_bytes_;  // of the vocabulary; ignore_merges
};

// Turns ids into text one by one and never emits half a code point. All pieces together are Decode
// of all ids. Takes memory in its constructor only; each call appends at most
// MaxGrowth bytes.
class StreamDecoder {
 public:
  // Bytes that one Push or Flush appends at most: a pending byte or two and the token, each byte of
  // which may be replaced by the three of U+FFFD.
  static constexpr size_t MaxGrowth(size_t longest_token_bytes) {
    return 3 * (longest_token_bytes + 3);
  }
  // `tokenizer` outlives it.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false);
  // Both append to `out`.
  void Push(int32_t id, std::string& out);
  void Flush(std::string& out);  // what an incomplete code point at the end becomes: U+FFFD

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // a proper prefix of a well-formed sequence
};

}  // namespace sensorium
