// A Whisper vocabulary that can be read: a text token is a byte and its id is the byte's value, so
// that {'h', 'i'} says "hi". Behind the bytes come the special ids, eleven timestamps of a window
// of 0.2 s, and three rows of logits that only pad.
#pragma once

#include <memory>
#include <string>

#include "nlohmann/json.hpp"
#include "runtime/base/check.h"
#include "runtime/models/whisper_vocabulary.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"

namespace sensorium {

enum ByteVocabularyId : int32_t {
  kEot = 256,
  kSot,
  kEnglish,
  kGerman,
  kTranslate,
  kTranscribe,
  kSotLm,
  kSotPrev,
  kNoSpeech,
  kNoTimestamps,
  kTime,  // <|0.00|>; kTime + 10 is the window's end
  kPadding = kTime + 11,
  kVocabSize = kPadding + 3,
};

inline nlohmann::json ByteTokenizerJson() {
  nlohmann::json vocab, added = nlohmann::json::array();
  for (int b = 0; b < 256; ++b) {
    std::string character;
    AppendUtf8(character, ByteLevelAlphabet()[b]);
    vocab[character] = b;
  }
  int32_t id = kEot;
  for (const char* literal :
       {"<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
        "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"}) {
    added.push_back({{"id", id++}, {"content", literal}, {"special", true}});
  }
  return {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}},
          {"added_tokens", added}};
}

inline nlohmann::json ByteConfigJson() {
  return {{"vocab_size", kVocabSize}, {"max_source_positions", 10}};
}

struct ByteVocabulary {
  explicit ByteVocabulary(bool multilingual = true) {
    auto read = Tokenizer::FromJson(ByteTokenizerJson().dump(), "byte tokenizer");
    CHECK(read.ok()) << read.status();
    tokenizer = std::move(*read);
    auto ids =
        WhisperVocabulary::From(ByteConfigJson(), {{"is_multilingual", multilingual}}, *tokenizer);
    CHECK(ids.ok()) << ids.status();
    vocabulary = std::move(*ids);
  }
  std::unique_ptr<Tokenizer> tokenizer;
  WhisperVocabulary vocabulary;
};

}  // namespace sensorium
