// What a Whisper checkpoint's ids mean. Every id and every count comes from the checkpoint's own
// files, so that small vocabularies, windows other than 30 s and new languages need no code.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/tokenizer.h"

namespace sensorium {

struct WhisperVocabulary {
  int32_t vocab_size = 0;  // rows of logits
  int32_t eot = 0;         // <|endoftext|>; text ids are below it, special ids above
  int32_t sot = 0;         // <|startoftranscript|>
  int32_t translate = 0, transcribe = 0;
  int32_t sot_lm = 0, sot_prev = 0;
  int32_t no_speech = 0;  // <|nospeech|>, called <|nocaptions|> in older files
  int32_t no_timestamps = 0;
  int32_t timestamp_begin = 0;  // <|0.00|>; every id from here on is a time
  int32_t num_timestamps = 0;   // 1501 for windows of 30 s: the window's end has one too
  bool multilingual = false;    // else the prompt is <|startoftranscript|> alone
  std::vector<std::pair<std::string, int32_t>> languages;  // (code, id), by id
  std::vector<int32_t> suppress_tokens;        // never produced unless the client says so; sorted
  std::vector<int32_t> begin_suppress_tokens;  // not as the first token: " " and eot
  int32_t max_initial_timestamp_index = 50;    // cap of the first timestamp, in steps of one

  // Ids of generation_config.json where it has them, of the tokenizer's vocabulary where not; the
  // two must agree. Lists of suppressed ids that the file leaves out are computed as
  // openai/whisper's tokenizer does (non_speech_tokens). INVALID_ARGUMENT names what is missing or
  // contradicts itself, with both values. config.json's own special ids are often stale and are not
  // looked at.
  static absl::StatusOr<WhisperVocabulary> From(const nlohmann::json& config,
                                                const nlohmann::json& generation_config,
                                                const Tokenizer& tokenizer);

  // By code ("de"), English name ("german") or its usual alias ("flemish"), upper or lower case;
  // nullopt for a language that this checkpoint has no token of.
  std::optional<int32_t> LanguageId(std::string_view language) const;
  // The code of a language token; "" when it is none.
  std::string_view LanguageCode(int32_t language_id) const;

  // [sot, language, task], or [sot] alone when the model is not multilingual.
  // REQUIRES: a language exactly when multilingual.
  std::vector<int32_t> SotSequence(std::optional<int32_t> language_id, bool translate) const;
};

// openai/whisper's option "-1" and the special ids that always go with it: symbols, brackets, music
// and whatever else stands for something other than speech. Sorted.
std::vector<int32_t> NonSpeechTokens(const WhisperVocabulary& vocabulary,
                                     const Tokenizer& tokenizer);

// Text of those ids that are below `limit`: eot leaves the text tokens, timestamp_begin the other
// special tokens too (tokenizer.py, Tokenizer.decode).
std::string DecodeBelow(const Tokenizer& tokenizer, std::span<const int32_t> ids, int32_t limit);

}  // namespace sensorium
