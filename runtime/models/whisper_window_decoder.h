// Decodes one audio window: the search over a Whisper decoder's logits, which somebody else
// computes and chooses from (Backend::ChooseTokens). What it does, step for step, is
// openai/whisper's DecodingTask (decoding.py): its logit filters, its greedy and beam decoders, its
// ranking.
//
//   decoder.ReadStart(what StartChoice() chose from the logits of <|startoftranscript|>);
//   decoder.Advance(what Choices() chose from the logits of the prompt's last token, row 0);
//   while (!decoder.done()) {
//     feed next(): row r takes the cache of row next()[r].parent and the token next()[r].token;
//     decoder.Advance(what Choices() chose from one row of logits each);
//   }
//
// All that the search needs is taken by the constructor: nothing takes memory behind it but
// Result.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/backend/token_choice.h"
#include "runtime/models/whisper_vocabulary.h"
#include "runtime/tokenizer/tokenizer.h"

namespace sensorium {

// As transcribe.py does, beam_size and patience count at temperature 0 alone and best_of above it.
struct WhisperWindowOptions {
  int32_t beam_size = 0;                // 0: greedy
  int32_t best_of = 0;                  // independent samples; 0: one
  float patience = 0;                   // finished beams to wait for, in beam sizes; 0: 1
  std::optional<float> length_penalty;  // in [0, 1]; unset: score = sum_logprob / length
  float temperature = 0;
  uint64_t seed = 0;
  int32_t sample_len = 0;  // tokens at most, EOT included; 0: half the text context
  bool without_timestamps = false;
  // Never produced. A list that is not empty has the prompt's special ids added, as in
  // DecodingTask.
  std::vector<int32_t> suppress;
  bool suppress_blank = true;
  std::optional<int32_t> max_initial_timestamp_index;
  uint64_t stream_base = 0;  // sample i of best_of draws from stream stream_base + i
};

struct WhisperWindowResult {
  std::vector<int32_t> tokens;  // no prompt, no EOT
  double sum_logprob = 0;       // natural log, of the filtered distribution before temperature
  float avg_logprob = 0;        // sum_logprob / (tokens + 1)
  float no_speech_prob = 0;
  float temperature = 0;
  float compression_ratio = 0;
  std::string text;  // UTF-8, stripped, without timestamps
};

class WhisperWindowDecoder {
 public:
  // `prompt` is [sot_prev, previous...] sot, language, task, [no_timestamps], [prefix...];
  // `sot_index` is where sot stands in it. The vocabulary and the tokenizer must outlive this.
  WhisperWindowDecoder(const WhisperVocabulary& vocabulary, const Tokenizer& tokenizer,
                       const WhisperWindowOptions& options, std::vector<int32_t> prompt,
                       int32_t sot_index, int32_t text_context);

  const std::vector<int32_t>& prompt() const { return prompt_; }
  int32_t sot_index() const { return sot_index_; }
  int32_t max_rows() const;  // hypotheses alive at most: beam_size, best_of or 1

  struct Next {
    int32_t parent;  // index into the rows that were fed last; 0 after the prompt
    int32_t token;
  };
  // What is asked of the logits at sot_index(), and what came of it.
  TokenChoice StartChoice() const;
  void ReadStart(const ChosenToken& chosen);
  // What is to be chosen from the rows that were fed last, row 0 the first of them; before the
  // first Advance that is the end of the prompt alone. Valid until the next Advance.
  // REQUIRES: !done()
  std::span<const TokenChoice> Choices();
  // What came of Choices(), in its order.
  void Advance(std::span<const ChosenToken> chosen);
  // The rows to feed now; empty before the first Advance and when done. Valid until the next.
  std::span<const Next> next() const { return next_; }
  bool done() const { return done_; }
  WhisperWindowResult Result() const;  // REQUIRES: done()

 private:
  struct Hypothesis {
    std::vector<int32_t> tokens;  // without the prompt and without EOT
    float sum_logprob = 0;        // float32, as torch accumulates it
  };
  struct Candidate {
    float sum_logprob;
    int32_t order;  // in which they were found: equal sums keep it
    int32_t parent, token;
  };
  bool beam() const;
  size_t wanted_finished() const;  // beams that end the search by having ended
  std::vector<Hypothesis> MakeHypotheses(size_t count) const;  // with room for all their tokens
  // What a hypothesis that has produced `tokens` may not produce next.
  void Ban(TokenChoice& choice, std::span<const int32_t> tokens) const;
  void AddTimestampRules(TokenChoice& choice, std::span<const int32_t> tokens) const;
  void StepSampled(std::span<const ChosenToken> chosen);
  void StepBeam(std::span<const ChosenToken> chosen);
  std::vector<Hypothesis> Finalists() const;

  const WhisperVocabulary& vocabulary_;
  const Tokenizer& tokenizer_;
  WhisperWindowOptions options_;  // suppress sorted and unique, defaults filled in
  const std::vector<int32_t> prompt_;
  const int32_t sot_index_;
  const int32_t text_context_;

  float no_speech_prob_ = 0;
  int32_t steps_ = 0;  // tokens every live hypothesis has produced
  bool done_ = false;
  std::vector<Next> next_;
  // Beam: the live beams, best first. Otherwise all samples; live_ are those without EOT.
  std::vector<Hypothesis> rows_;
  size_t num_rows_ = 0;               // of rows_; those behind wait with their memory
  std::vector<int32_t> live_;         // rows_ that are in next_, in its order
  std::vector<Hypothesis> finished_;  // beam: ended with EOT, in the order they ended
  size_t num_finished_ = 0;           // of finished_
  std::vector<TokenChoice> choices_;  // scratch, as all below
  std::vector<Hypothesis> next_rows_;
  std::vector<Candidate> candidates_;
};

// What is spoken, from the logits of the language tokens, in the order of vocabulary.languages, of
// a decoder that has seen <|startoftranscript|> alone: a softmax over them (decoding.py,
// detect_language). NaN counts as -inf.
struct WhisperLanguage {
  int32_t id = 0;
  std::string code;
  float probability = 0;
  std::vector<std::pair<std::string, float>> probabilities;  // (code, probability), by id
};
// REQUIRES: vocabulary.multilingual
WhisperLanguage DetectLanguage(std::span<const float> logits, const WhisperVocabulary& vocabulary);

}  // namespace sensorium
