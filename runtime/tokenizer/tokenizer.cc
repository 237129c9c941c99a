#include "runtime/tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {

namespace {

using Json = nlohmann::json;
constexpr int64_t kMaxId = 1 << 24;

std::string Text(const Json& json, const char* key) {
  return json.is_object() && json.contains(key) && json[key].is_string()
             ? json[key].get<std::string>()
             : "";
}
bool Flag(const Json& json, const char* key, bool fallback) {
  return json.is_object() && json.contains(key) && json[key].is_boolean() ? json[key].get<bool>()
                                                                          : fallback;
}

bool IsAscii(std::string_view s) {
  for (const char c : s) {
    if (c & 0x80) return false;
  }
  return true;
}

// Unicode NFC. REQUIRES: valid UTF-8.
std::string Nfc(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t n = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &out,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string normal = n < 0 ? std::string(text) : std::string(reinterpret_cast<char*>(out), n);
  std::free(out);
  return normal;
}

// What the file's normalizer, pre_tokenizer and model say.
struct Settings {
  bool nfc = false;
  bool add_prefix_space = false;
  std::vector<SplitPattern> patterns;
};

absl::Status ReadNormalizer(const Json& json, Settings& s) {
  if (json.is_null()) return absl::OkStatus();
  const std::string type = Text(json, "type");
  if (type == "NFC") {
    s.nfc = true;
    return absl::OkStatus();
  }
  if (type == "Sequence" && json.contains("normalizers") && json["normalizers"].is_array()) {
    for (const Json& part : json["normalizers"]) RETURN_IF_ERROR(ReadNormalizer(part, s));
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("normalizer '", type, "' is unknown; known are NFC and Sequence"));
}

absl::Status ReadPreTokenizer(const Json& json, Settings& s) {
  if (json.is_null()) return absl::OkStatus();
  const std::string type = Text(json, "type");
  if (type == "Sequence" && json.contains("pretokenizers") && json["pretokenizers"].is_array()) {
    for (const Json& part : json["pretokenizers"]) RETURN_IF_ERROR(ReadPreTokenizer(part, s));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    s.add_prefix_space = s.add_prefix_space || Flag(json, "add_prefix_space", true);
    if (!Flag(json, "use_regex", true)) return absl::OkStatus();
    ASSIGN_OR_RETURN(SplitPattern pattern, SplitPattern::Compile(kGpt2Pattern));
    s.patterns.push_back(std::move(pattern));
    return absl::OkStatus();
  }
  if (type == "Split") {
    const std::string behavior = Text(json, "behavior");
    const Json pattern = json.contains("pattern") ? json["pattern"] : Json();
    const std::string regex = Text(pattern, "Regex");
    if (behavior != "Isolated" || Flag(json, "invert", false) || regex.empty()) {
      return absl::UnimplementedError(absl::StrCat(
          "pre_tokenizer Split with behavior '", behavior, "' and pattern ", pattern.dump(),
          " is unknown; known is a Regex with behavior Isolated, not inverted"));
    }
    ASSIGN_OR_RETURN(SplitPattern compiled, SplitPattern::Compile(regex));
    s.patterns.push_back(std::move(compiled));
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(
      "pre_tokenizer '", type, "' is unknown; known are ByteLevel, Split and Sequence"));
}

// A merge in either dialect: "a b" or ["a", "b"].
std::optional<std::pair<std::string, std::string>> ReadMerge(const Json& json) {
  if (json.is_string()) {
    const std::string& text = json.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return std::nullopt;
    }
    return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
    return std::pair(json[0].get<std::string>(), json[1].get<std::string>());
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::ostringstream text;
  text << file.rdbuf();
  return FromJson(text.str(), path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view text,
                                                               std::string_view origin_view) {
  const std::string origin(origin_view);
  const auto error = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", parts...));
  };
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) {
    return error("not a tokenizer.json: no JSON object with a model");
  }
  const Json& model = json["model"];
  const std::string type = Text(model, "type");
  if (type != "BPE" && !(type.empty() && model.contains("merges"))) {
    return absl::UnimplementedError(
        absl::StrCat(origin, ": model type '", type, "' is unknown; known is BPE"));
  }
  if (Flag(model, "byte_fallback", false) || !Text(model, "continuing_subword_prefix").empty() ||
      !Text(model, "end_of_word_suffix").empty()) {
    return absl::UnimplementedError(absl::StrCat(
        origin, ": byte_fallback and subword affixes are unknown; known is byte-level BPE"));
  }
  Settings settings;
  const Json null;
  absl::Status read =
      ReadNormalizer(json.contains("normalizer") ? json["normalizer"] : null, settings);
  if (read.ok()) {
    read = ReadPreTokenizer(json.contains("pre_tokenizer") ? json["pre_tokenizer"] : null, settings);
  }
  if (!read.ok()) {
    return absl::Status(read.code(), absl::StrCat(origin, ": ", read.message()));
  }

  if (!model.contains("vocab") || !model["vocab"].is_object() || !model.contains("merges") ||
      !model["merges"].is_array()) {
    return error("the model lacks vocab or merges");
  }
  std::unordered_map<std::string, int32_t> id_of;
  id_of.reserve(model["vocab"].size());
  int64_t highest = -1;
  for (const auto& [token, id] : model["vocab"].items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxId) {
      return error("token '", token, "' has id ", id.dump(), ", expected 0 to ", kMaxId - 1);
    }
    id_of[token] = id.get<int32_t>();
    highest = std::max(highest, id.get<int64_t>());
  }
  std::array<int32_t, 256> byte_ids;
  for (int b = 0; b < 256; ++b) {
    std::string character;
    AppendUtf8(character, ByteLevelAlphabet()[b]);
    const auto it = id_of.find(character);
    if (it == id_of.end()) return error("the vocabulary has no token for byte ", b);
    byte_ids[b] = it->second;
  }
  auto tokenizer = std::unique_ptr<Tokenizer>(new Tokenizer(byte_ids));
  Tokenizer& t = *tokenizer;
  t.nfc_ = settings.nfc;
  t.add_prefix_space_ = settings.add_prefix_space;
  t.patterns_ = std::move(settings.patterns);
  t.ignore_merges_ = Flag(model, "ignore_merges", false);

  for (size_t i = 0; i < model["merges"].size(); ++i) {
    const auto merge = ReadMerge(model["merges"][i]);
    if (!merge) return error("merge ", i, " is not a pair");
    const auto left = id_of.find(merge->first), right = id_of.find(merge->second);
    const auto merged = id_of.find(merge->first + merge->second);
    if (left == id_of.end() || right == id_of.end() || merged == id_of.end()) {
      return error("merge ", i, " ('", merge->first, "', '", merge->second,
                   "') names a token that the vocabulary lacks");
    }
    t.bpe_.AddMerge(left->second, right->second, merged->second);
  }
  t.bpe_.Finish();

  std::vector<AddedToken> added;
  if (json.contains("added_tokens") && json["added_tokens"].is_array()) {
    for (const Json& entry : json["added_tokens"]) {
      if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_unsigned() ||
          entry["id"].get<uint64_t>() >= kMaxId || !entry.contains("content") ||
          !entry["content"].is_string()) {
        return error("an added token lacks its id or content");
      }
      added.push_back({.id = entry["id"].get<int32_t>(),
                       .content = entry["content"].get<std::string>(),
                       .special = Flag(entry, "special", false),
                       .normalized = Flag(entry, "normalized", !Flag(entry, "special", false)),
                       .single_word = Flag(entry, "single_word", false),
                       .lstrip = Flag(entry, "lstrip", false),
                       .rstrip = Flag(entry, "rstrip", false)});
      highest = std::max(highest, int64_t{added.back().id});
    }
  }
  t.bytes_.resize(highest + 1);
  t.special_.resize(highest + 1);
  for (const auto& [token, id] : id_of) {
    t.bytes_[id] = ByteLevelToBytes(token).value_or(token);
  }
  if (t.ignore_merges_) {
    for (const auto& [token, id] : id_of) t.id_of_bytes_.emplace(t.bytes_[id], id);
  }
  for (const AddedToken& token : added) {
    t.bytes_[token.id] = ByteLevelToBytes(token.content).value_or(token.content);
    t.special_[token.id] = token.special;
    id_of[token.content] = token.id;
    if (token.normalized) {
      t.normalized_added_.Add(token, t.nfc_ ? Nfc(token.content) : token.content);
    } else {
      t.raw_added_.Add(token, token.content);
    }
  for (const std::string& bytes : t.bytes_) {
    t.longest_token_bytes_ = std::max(t.longest_token_bytes_, bytes.size());
  }
  }
  t.id_of_literal_ = std::move(id_of);
  return tokenizer;
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view literal) const {
  const auto it = id_of_literal_.find(std::string(literal));
  if (it == id_of_literal_.end()) return std::nullopt;
  return it->second;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = ReplaceInvalidUtf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  const auto stretch = [&](std::string_view s) { EncodeStretch(s, parse_special, ids); };
  if (raw_added_.empty()) {
    if (!text.empty()) stretch(text);
  } else {
    raw_added_.Split(text, parse_special, stretch, [&](int32_t id) { ids.push_back(id); });
  }
  return ids;
}

void Tokenizer::EncodeStretch(std::string_view text, bool parse_special,
                              std::vector<int32_t>& ids) const {
  std::string normal;
  if (nfc_ && !IsAscii(text)) {
    normal = Nfc(text);
    text = normal;
  }
  const auto plain = [&](std::string_view s) {
    if (add_prefix_space_ && s.front() != ' ') {
      EncodePieces(absl::StrCat(" ", std::string(s)), 0, ids);
    } else {
      EncodePieces(s, 0, ids);
    }
  };
  if (normalized_added_.empty()) {
    if (!text.empty()) plain(text);
  } else {
    normalized_added_.Split(text, parse_special, plain, [&](int32_t id) { ids.push_back(id); });
  }
}

void Tokenizer::EncodePieces(std::string_view text, size_t pattern,
                             std::vector<int32_t>& ids) const {
  if (pattern < patterns_.size()) {
    patterns_[pattern].Split(
        text, [&](std::string_view piece) { EncodePieces(piece, pattern + 1, ids); });
    return;
  }
  if (ignore_merges_) {
    if (const auto it = id_of_bytes_.find(text); it != id_of_bytes_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  bpe_.Encode(text, ids);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!(skip_special && IsSpecial(id))) bytes += TokenBytes(id);
  }
  return ReplaceInvalidUtf8(bytes);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {
  pending_.reserve(tokenizer.longest_token_bytes() + 3);
}

void StreamDecoder::Push(int32_t id, std::string& out) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return;
  pending_ += tokenizer_->TokenBytes(id);
  // Everything but a cut sequence at the very end is settled.
  size_t settled = pending_.size();
  for (size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
    const std::string_view tail = std::string_view(pending_).substr(pending_.size() - back);
    if ((tail[0] & 0xc0) == 0x80) continue;  // its lead byte is further back
    if (Utf8SequenceLength(tail) == -1) settled = pending_.size() - back;
    break;
  }
  AppendValidUtf8(out, std::string_view(pending_).substr(0, settled));
  pending_.erase(0, settled);
}

void StreamDecoder::Flush(std::string& out) {
  AppendValidUtf8(out, pending_);
  pending_.clear();
}

}  // namespace sensorium
