#include "runtime/models/whisper_vocabulary.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace sensorium {

namespace {

using Json = nlohmann::json;

struct LanguageName {
  std::string_view code, name;
};

// openai/whisper, tokenizer.py: LANGUAGES and TO_LANGUAGE_CODE. Which of them a checkpoint has, and
// at which id, its own files say.
constexpr LanguageName kLanguages[] = {
    {"en", "english"},        {"zh", "chinese"},     {"de", "german"},        {"es", "spanish"},
    {"ru", "russian"},        {"ko", "korean"},      {"fr", "french"},        {"ja", "japanese"},
    {"pt", "portuguese"},     {"tr", "turkish"},     {"pl", "polish"},        {"ca", "catalan"},
    {"nl", "dutch"},          {"ar", "arabic"},      {"sv", "swedish"},       {"it", "italian"},
    {"id", "indonesian"},     {"hi", "hindi"},       {"fi", "finnish"},       {"vi", "vietnamese"},
    {"he", "hebrew"},         {"uk", "ukrainian"},   {"el", "greek"},         {"ms", "malay"},
    {"cs", "czech"},          {"ro", "romanian"},    {"da", "danish"},        {"hu", "hungarian"},
    {"ta", "tamil"},          {"no", "norwegian"},   {"th", "thai"},          {"ur", "urdu"},
    {"hr", "croatian"},       {"bg", "bulgarian"},   {"lt", "lithuanian"},    {"la", "latin"},
    {"mi", "maori"},          {"ml", "malayalam"},   {"cy", "welsh"},         {"sk", "slovak"},
    {"te", "telugu"},         {"fa", "persian"},     {"lv", "latvian"},       {"bn", "bengali"},
    {"sr", "serbian"},        {"az", "azerbaijani"}, {"sl", "slovenian"},     {"kn", "kannada"},
    {"et", "estonian"},       {"mk", "macedonian"},  {"br", "breton"},        {"eu", "basque"},
    {"is", "icelandic"},      {"hy", "armenian"},    {"ne", "nepali"},        {"mn", "mongolian"},
    {"bs", "bosnian"},        {"kk", "kazakh"},      {"sq", "albanian"},      {"sw", "swahili"},
    {"gl", "galician"},       {"mr", "marathi"},     {"pa", "punjabi"},       {"si", "sinhala"},
    {"km", "khmer"},          {"sn", "shona"},       {"yo", "yoruba"},        {"so", "somali"},
    {"af", "afrikaans"},      {"oc", "occitan"},     {"ka", "georgian"},      {"be", "belarusian"},
    {"tg", "tajik"},          {"sd", "sindhi"},      {"gu", "gujarati"},      {"am", "amharic"},
    {"yi", "yiddish"},        {"lo", "lao"},         {"uz", "uzbek"},         {"fo", "faroese"},
    {"ht", "haitian creole"}, {"ps", "pashto"},      {"tk", "turkmen"},       {"nn", "nynorsk"},
    {"mt", "maltese"},        {"sa", "sanskrit"},    {"lb", "luxembourgish"}, {"my", "myanmar"},
    {"bo", "tibetan"},        {"tl", "tagalog"},     {"mg", "malagasy"},      {"as", "assamese"},
    {"tt", "tatar"},          {"haw", "hawaiian"},   {"ln", "lingala"},       {"ha", "hausa"},
    {"ba", "bashkir"},        {"jw", "javanese"},    {"su", "sundanese"},     {"yue", "cantonese"},
};
constexpr LanguageName kAliases[] = {
    {"my", "burmese"},       {"ca", "valencian"}, {"nl", "flemish"},   {"ht", "haitian"},
    {"lb", "letzeburgesch"}, {"ps", "pushto"},    {"pa", "panjabi"},   {"ro", "moldavian"},
    {"ro", "moldovan"},      {"si", "sinhalese"}, {"es", "castilian"}, {"zh", "mandarin"},
};

// The n_vocab from which openai/whisper takes a model for multilingual (model.py).
constexpr int32_t kSmallestMultilingualVocab = 51865;

const Json* Find(const Json& json, const char* key) {
  if (!json.is_object()) return nullptr;
  const auto it = json.find(key);
  return it == json.end() || it->is_null() ? nullptr : &*it;
}

// Of an integer in [min, max]; nullopt for anything else, numbers beyond 64 bits included.
std::optional<int32_t> IntOf(const Json& json, int32_t min, int32_t max) {
  if (!json.is_number_integer()) return std::nullopt;
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(max)) {
    return std::nullopt;
  }
  const int64_t value = json.get<int64_t>();
  if (value < min || value > max) return std::nullopt;
  return static_cast<int32_t>(value);
}

// Reads ids and holds the two files against each other.
class IdReader {
 public:
  IdReader(const Tokenizer& tokenizer, int32_t vocab_size)
      : tokenizer_(tokenizer), vocab_size_(vocab_size) {}

  // `where` names the value's place in generation_config.json.
  absl::StatusOr<int32_t> Id(const Json& json, std::string_view where) const {
    if (const auto id = IntOf(json, 0, vocab_size_ - 1)) return *id;
    return absl::InvalidArgumentError(
        absl::StrCat("generation_config.json: ", std::string(where), " is ", json.dump(),
                     ", expected a token id; config.json has vocab_size ", vocab_size_));
  }

  // A special token by its value in generation_config.json (null: not there) and by its spellings.
  absl::StatusOr<int32_t> Special(const Json* value, std::string_view where,
                                  std::initializer_list<const char*> literals) const {
    std::optional<int32_t> own;
    std::string literal = *literals.begin();
    for (const char* spelling : literals) {
      if (own) break;
      own = tokenizer_.TokenToId(spelling);
      if (own) literal = spelling;
    }
    if (own && *own >= vocab_size_) {
      return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", literal, " at ", *own,
                                                     "; config.json has vocab_size ", vocab_size_));
    }
    // Newer files write a list of one where older ones have a number.
    if (value && value->is_array() && value->size() == 1) value = &value->front();
    if (!value) {
      if (own) return *own;
      return absl::InvalidArgumentError(absl::StrCat("the tokenizer has no ", literal,
                                                     " and generation_config.json has no ",
                                                     std::string(where)));
    }
    ASSIGN_OR_RETURN(const int32_t id, Id(*value, where));
    if (own && *own != id) {
      return absl::InvalidArgumentError(
          absl::StrCat("generation_config.json has ", std::string(where), " ", id,
                       "; the tokenizer has ", literal, " at ", *own));
    }
    return id;
  }

  // Sorted, each id once.
  absl::StatusOr<std::vector<int32_t>> List(const Json& json, std::string_view where) const {
    if (!json.is_array()) {
      return absl::InvalidArgumentError(absl::StrCat("generation_config.json: ", std::string(where),
                                                     " is ", json.dump(), ", expected a list"));
    }
    std::vector<int32_t> ids;
    for (const Json& item : json) {
      ASSIGN_OR_RETURN(const int32_t id, Id(item, where));
      ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }

 private:
  const Tokenizer& tokenizer_;
  const int32_t vocab_size_;
};

// "<|de|>" -> "de"; "" for anything else.
std::string_view InnerOf(std::string_view literal) {
  if (literal.size() < 5 || !literal.starts_with("<|") || !literal.ends_with("|>")) return "";
  return literal.substr(2, literal.size() - 4);
}

absl::StatusOr<int32_t> RequiredInt(const Json& config, const char* key, int32_t max) {
  const Json* value = Find(config, key);
  if (value) {
    if (const auto number = IntOf(*value, 1, max)) return *number;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "config.json: ", key, " is ", value ? value->dump() : "absent", ", expected 1 to ", max));
}

absl::Status ReadLanguages(WhisperVocabulary& v, const Json* lang_to_id, const IdReader& reader,
                           const Tokenizer& tokenizer) {
  if (lang_to_id) {
    if (!lang_to_id->is_object()) {
      return absl::InvalidArgumentError("generation_config.json: lang_to_id is not an object");
    }
    for (const auto& [literal, value] : lang_to_id->items()) {
      const std::string_view code = InnerOf(literal);
      if (code.empty()) {
        return absl::InvalidArgumentError(absl::StrCat("generation_config.json: lang_to_id has '",
                                                       literal, "', expected the form <|en|>"));
      }
      ASSIGN_OR_RETURN(
          const int32_t id,
          reader.Special(&value, absl::StrCat("lang_to_id ", literal), {literal.c_str()}));
      v.languages.emplace_back(code, id);
    }
  } else {
    // Between sot and the tasks stand the languages and nothing else (tokenizer.py, get_encoding).
    for (int32_t id = v.sot + 1; id < std::min(v.translate, v.transcribe); ++id) {
      const std::string_view code = InnerOf(tokenizer.TokenBytes(id));
      if (!code.empty()) v.languages.emplace_back(code, id);
    }
  }
  std::sort(v.languages.begin(), v.languages.end(),
            [](const auto& a, const auto& b) { return a.second < b.second; });
  if (v.multilingual && v.languages.empty()) {
    return absl::InvalidArgumentError("a multilingual model without a language token");
  }
  return absl::OkStatus();
}

absl::Status CheckOrder(const WhisperVocabulary& v) {
  const auto special = [&](const char* name, int32_t id) -> absl::Status {
    if (id > v.eot && id < v.timestamp_begin) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is token ", id, ", expected between <|endoftext|>, which is ", v.eot,
                     ", and <|0.00|>, which is ", v.timestamp_begin));
  };
  RETURN_IF_ERROR(special("<|startoftranscript|>", v.sot));
  RETURN_IF_ERROR(special("<|translate|>", v.translate));
  RETURN_IF_ERROR(special("<|transcribe|>", v.transcribe));
  RETURN_IF_ERROR(special("<|startoflm|>", v.sot_lm));
  RETURN_IF_ERROR(special("<|startofprev|>", v.sot_prev));
  RETURN_IF_ERROR(special("<|nospeech|>", v.no_speech));
  for (const auto& [code, id] : v.languages) {
    RETURN_IF_ERROR(special(absl::StrCat("<|", code, "|>").c_str(), id));
  }
  if (v.timestamp_begin + v.num_timestamps > v.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json has vocab_size ", v.vocab_size, "; ", v.num_timestamps,
                     " timestamps from <|0.00|>, which is ", v.timestamp_begin, ", need ",
                     v.timestamp_begin + v.num_timestamps));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WhisperVocabulary> WhisperVocabulary::From(const Json& config,
                                                          const Json& generation_config,
                                                          const Tokenizer& tokenizer) {
  WhisperVocabulary v;
  ASSIGN_OR_RETURN(v.vocab_size, RequiredInt(config, "vocab_size", 1 << 24));
  // One timestamp per encoder position, and one for the window's end.
  ASSIGN_OR_RETURN(v.num_timestamps, RequiredInt(config, "max_source_positions", 1 << 16));
  ++v.num_timestamps;

  const IdReader reader(tokenizer, v.vocab_size);
  const auto special = [&](int32_t& field, const char* key,
                           std::initializer_list<const char*> literals) -> absl::Status {
    ASSIGN_OR_RETURN(field, reader.Special(key ? Find(generation_config, key) : nullptr,
                                           key ? key : "key for it", literals));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(special(v.eot, "eos_token_id", {"<|endoftext|>"}));
  RETURN_IF_ERROR(special(v.sot, "decoder_start_token_id", {"<|startoftranscript|>"}));
  RETURN_IF_ERROR(special(v.sot_prev, "prev_sot_token_id", {"<|startofprev|>"}));
  RETURN_IF_ERROR(special(v.no_timestamps, "no_timestamps_token_id", {"<|notimestamps|>"}));
  RETURN_IF_ERROR(special(v.sot_lm, nullptr, {"<|startoflm|>"}));
  RETURN_IF_ERROR(special(v.no_speech, nullptr, {"<|nospeech|>", "<|nocaptions|>"}));
  const Json* tasks = Find(generation_config, "task_to_id");
  const auto task = [&](int32_t& field, const char* key, const char* literal) -> absl::Status {
    ASSIGN_OR_RETURN(field, reader.Special(tasks ? Find(*tasks, key) : nullptr,
                                           absl::StrCat("task_to_id ", key), {literal}));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(task(v.translate, "translate", "<|translate|>"));
  RETURN_IF_ERROR(task(v.transcribe, "transcribe", "<|transcribe|>"));

  // Tokenizers of v1 and v2 do not list the timestamps, which start right behind <|notimestamps|>.
  v.timestamp_begin = v.no_timestamps + 1;
  if (const auto zero = tokenizer.TokenToId("<|0.00|>"); zero && *zero != v.timestamp_begin) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has <|0.00|> at ", *zero,
                                                   ", expected ", v.timestamp_begin,
                                                   ", right behind <|notimestamps|>"));
  }

  const Json* lang_to_id = Find(generation_config, "lang_to_id");
  v.multilingual = lang_to_id != nullptr || v.vocab_size >= kSmallestMultilingualVocab;
  if (const Json* flag = Find(generation_config, "is_multilingual")) {
    if (!flag->is_boolean()) {
      return absl::InvalidArgumentError(absl::StrCat("generation_config.json: is_multilingual is ",
                                                     flag->dump(), ", expected true or false"));
    }
    v.multilingual = flag->get<bool>();
  }
  RETURN_IF_ERROR(ReadLanguages(v, lang_to_id, reader, tokenizer));
  RETURN_IF_ERROR(CheckOrder(v));

  if (const Json* list = Find(generation_config, "suppress_tokens")) {
    ASSIGN_OR_RETURN(v.suppress_tokens, reader.List(*list, "suppress_tokens"));
  } else {
    v.suppress_tokens = NonSpeechTokens(v, tokenizer);
  }
  if (const Json* list = Find(generation_config, "begin_suppress_tokens")) {
    ASSIGN_OR_RETURN(v.begin_suppress_tokens, reader.List(*list, "begin_suppress_tokens"));
  } else {
    v.begin_suppress_tokens = tokenizer.Encode(" ", /*parse_special=*/false);  // SuppressBlank
    v.begin_suppress_tokens.push_back(v.eot);
  }
  if (const Json* index = Find(generation_config, "max_initial_timestamp_index")) {
    const auto steps = IntOf(*index, 0, INT32_MAX);
    if (!steps) {
      return absl::InvalidArgumentError(
          absl::StrCat("generation_config.json: max_initial_timestamp_index is ", index->dump(),
                       ", expected a number of time steps"));
    }
    v.max_initial_timestamp_index = *steps;
  }
  return v;
}

std::optional<int32_t> WhisperVocabulary::LanguageId(std::string_view language) const {
  std::string wanted(language);
  absl::AsciiStrToLower(&wanted);
  std::string_view code = wanted;
  for (const auto& [c, name] : kLanguages) {
    if (name == wanted) code = c;
  }
  for (const auto& [c, name] : kAliases) {
    if (name == wanted) code = c;
  }
  for (const auto& [c, id] : languages) {
    if (c == code) return id;
  }
  return std::nullopt;
}

std::string_view WhisperVocabulary::LanguageCode(int32_t language_id) const {
  for (const auto& [code, id] : languages) {
    if (id == language_id) return code;
  }
  return "";
}

std::vector<int32_t> WhisperVocabulary::SotSequence(std::optional<int32_t> language_id,
                                                    bool translate) const {
  CHECK_EQ(language_id.has_value(), multilingual);
  if (!language_id) return {sot};
  return {sot, *language_id, translate ? this->translate : transcribe};
}

std::vector<int32_t> NonSpeechTokens(const WhisperVocabulary& vocabulary,
                                     const Tokenizer& tokenizer) {
  // tokenizer.py, non_speech_tokens. Hyphens and single quotes stay allowed between words, not at
  // the beginning of one: of " -" and " '" the first token.
  const auto encode = [&](std::string_view text) {
    return tokenizer.Encode(text, /*parse_special=*/false);
  };
  std::vector<int32_t> ids = {encode(" -").at(0), encode(" '").at(0)};
  const auto add = [&](const std::string& symbol, bool first_of_many) {
    for (const std::string& text : {symbol, " " + symbol}) {
      const std::vector<int32_t> tokens = encode(text);
      if (tokens.size() == 1 || first_of_many) ids.push_back(tokens.at(0));
    }
  };
  for (const char c : std::string_view("\"#()*+/:;<=>@[\\]^_`{|}~")) add(std::string(1, c), false);
  for (const char* symbol :
       {"「", "」",  "『", "』", "<<",  ">>",  "<<<", ">>>", "--", "---", "-(", "-[",
        "('", "(\"", "((", "))", "(((", ")))", "[[",  "]]",  "{{", "}}",  "♪♪", "♪♪♪"}) {
    add(symbol, false);
  }
  // Several tokens in most vocabularies, the first of which (a prefix of U+2669 to U+266F) stands
  // for nothing but such signs.
  for (const char* sign : {"♩", "♪", "♫", "♬", "♭", "♮", "♯"}) add(sign, true);

  ids.insert(ids.end(), {vocabulary.transcribe, vocabulary.translate, vocabulary.sot,
                         vocabulary.sot_prev, vocabulary.sot_lm, vocabulary.no_speech});
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::string DecodeBelow(const Tokenizer& tokenizer, std::span<const int32_t> ids, int32_t limit) {
  std::vector<int32_t> kept;
  std::copy_if(ids.begin(), ids.end(), std::back_inserter(kept),
               [limit](int32_t id) { return id < limit; });
  return tokenizer.Decode(kept);
}

}  // namespace sensorium
