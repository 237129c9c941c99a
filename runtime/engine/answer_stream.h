// What a Generate request's steps found, on its way to the reader: the engine writes tokens into
// memory that was taken with the request, the publisher's thread makes events of them: text whole,
// points in it found, one event a token.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/publisher.h"
#include "runtime/models/molmo_points.h"

namespace sensorium {

class AnswerStream : public Publishable {
 public:
  struct Options {
    int32_t answers = 1;
    size_t max_unsaid = 64;    // tokens that may wait for the publisher before HasRoom says no
    size_t token_bytes = 0;    // of text that one token brings at most
    size_t held_bytes = 0;     // of an answer's text that is held back at most, before a token
    int32_t alternatives = 0;  // a token has at most
    bool echo_token_ids = false;
    int32_t image_width = 0, image_height = 0;  // the picture that points are in; 0: no points
  };
  // `wake` rings the engine's bell. Takes all memory that the engine's side will need.
  AnswerStream(const Options& options, std::shared_ptr<GenerateQueue> queue,
               std::function<void()> wake);

  // ---- Engine's side: none of these takes memory or waits. Post it to a Publisher afterwards.
  bool cancelled() const { return queue_->cancelled(); }
  // Whether each answer may have another token. When not, the engine is woken once it may.
  bool HasRoom();
  void Started(GenerateStarted started);
  void Token(int32_t answer, int32_t token, float logprob,
             std::span<const TokenLogProb> alternatives, std::string_view text);
  void Finished(int32_t answer, FinishReason reason, const Usage& usage, const Timing& timing);
  void Ended(StreamEnd end);  // nothing may follow

  void Publish() override;

 private:
  struct Record {
    int32_t answer = 0;
    bool finished = false;
    // A token's
    int32_t token = 0;
    float logprob = 0;
    int32_t alternatives = 0;
    size_t text_bytes = 0;
    // An end's
    FinishReason reason = FinishReason::kStop;
    Usage usage;
    Timing timing;
  };
  struct News {
    std::vector<Record> records;
    std::vector<TokenLogProb> alternatives;  // of all records, one behind the other
    std::string text;                        // the same
    void Reserve(const Options& options);
    void Clear();
  };
  struct Answer {  // as far as it has been told
    std::string text;
    std::optional<MolmoPointParser> points;
  };
  void Say(const News& news);
  void SayPoints(int32_t answer, const std::vector<MolmoPoint>& points);

  const Options options_;
  const std::shared_ptr<GenerateQueue> queue_;
  const std::function<void()> wake_;

  std::mutex mu_;
  News unsaid_;  // guarded by mu_, as all up to the empty line
  std::optional<GenerateStarted> started_;
  std::optional<StreamEnd> ended_;
  bool parked_ = false;  // HasRoom said no for the publisher's sake

  News saying_;  // publisher's thread only, as all below
  std::vector<Answer> answers_;
};

}  // namespace sensorium
