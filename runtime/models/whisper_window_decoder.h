// Decodes one audio window: the search over a Whisper decoder's logits, which somebody else
// computes. What it does, step for step, is openai/whisper's DecodingTask (decoding.py): its logit
// filters, its greedy and beam decoders, its ranking.
//
//   decoder.ReadStart(logits of <|startoftranscript|>);
//   decoder.Start(logits of the prompt's last token, scratch);
//   while (!decoder.done()) {
//     feed next(): row r takes the cache of row next()[r].parent and the token next()[r].token;
//     decoder.Advance(one row of logits each, scratch);
//   }
//
// All that the search needs is taken by the constructor: Start and Advance take no memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/models/whisper_vocabulary.h"
#include "runtime/sampling/sampler.h"
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
  // Raw logits [vocab_size] at sot_index(), then at the end of the prompt, which may be the same
  // row. Call each once. The scratch is one for vocab_size, of whoever calls.
  void ReadStart(std::span<const float> sot_logits);
  void Start(std::span<const float> last_logits, SamplerScratch& scratch);
  // The rows to feed now; empty when done. Valid until the next Advance.
  std::span<const Next> next() const { return next_; }
  // Raw logits [next().size(), vocab_size] of every row of next(), in its order.
  void Advance(std::span<const float> logits, SamplerScratch& scratch);
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
  // Filters `logits` into filtered_ for a hypothesis that has produced `tokens`.
  void Filter(std::span<const float> logits, std::span<const int32_t> tokens);
  void ApplyTimestampRules(std::span<const int32_t> tokens);
  // One step of every live hypothesis; row i of the logits, `stride` behind row i - 1, is
  // live_[i]'s.
  void Step(std::span<const float> logits, size_t stride, SamplerScratch& scratch);
  void StepSampled(std::span<const float> logits, size_t stride, SamplerScratch& scratch);
  void StepBeam(std::span<const float> logits, size_t stride);
  std::vector<Hypothesis> Finalists() const;

  const WhisperVocabulary& vocabulary_;
  const Tokenizer& tokenizer_;
  WhisperWindowOptions options_;  // suppress sorted and unique, defaults filled in
  const std::vector<int32_t> prompt_;
  const int32_t sot_index_;
  const int32_t text_context_;

  float no_speech_prob_ = 0;
  int32_t steps_ = 0;  // tokens every live hypothesis has produced
  bool started_ = false, done_ = false;
  std::vector<Next> next_;
  // Beam: the live beams, best first. Otherwise all samples; live_ are those without EOT.
  std::vector<Hypothesis> rows_;
  size_t num_rows_ = 0;               // of rows_; those behind wait with their memory
  std::vector<int32_t> live_;         // rows_ that are in next_, in its order
  std::vector<Hypothesis> finished_;  // beam: ended with EOT, in the order they ended
  size_t num_finished_ = 0;           // of finished_
  std::vector<float> filtered_;       // [vocab] scratch, as all below
  std::vector<Hypothesis> next_rows_;
  std::vector<Candidate> candidates_;
  std::vector<std::pair<int32_t, float>> best_;
  Sampler sampler_;  // greedy and temperature; beams do not draw
};

// What is spoken, from the logits [vocab_size] of a decoder that has seen <|startoftranscript|>
// alone: a softmax over the language tokens only (decoding.py, detect_language).
struct WhisperLanguage {
  int32_t id = 0;
  std::string code;
  float probability = 0;
  std::vector<std::pair<std::string, float>> probabilities;  // (code, probability), by id
};
// REQUIRES: vocabulary.multilingual
WhisperLanguage DetectLanguage(std::span<const float> logits, const WhisperVocabulary& vocabulary);

}  // namespace sensorium
