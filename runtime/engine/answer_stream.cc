#include "runtime/engine/answer_stream.h"

#include "runtime/base/check.h"

namespace sensorium {

// HasRoom is asked before a step, which then brings a token and perhaps an end for each answer.
void AnswerStream::News::Reserve(const Options& o) {
  const size_t tokens = o.max_unsaid + o.answers;
  records.reserve(tokens + o.answers);
  alternatives.reserve(tokens * o.alternatives);
  text.reserve(tokens * o.token_bytes + o.answers * o.held_bytes);
}

void AnswerStream::News::Clear() {
  records.clear();
  alternatives.clear();
  text.clear();
}

AnswerStream::AnswerStream(const Options& options, std::shared_ptr<GenerateQueue> queue,
                           std::function<void()> wake)
    : options_(options), queue_(std::move(queue)), wake_(std::move(wake)) {
  unsaid_.Reserve(options_);
  saying_.Reserve(options_);
  answers_.resize(options_.answers);
  if (options_.image_width == 0) return;
  for (Answer& a : answers_) a.points.emplace(options_.image_width, options_.image_height);
}

bool AnswerStream::HasRoom() {
  if (!queue_->HasRoom()) return false;  // its reader wakes the engine
  std::lock_guard lock(mu_);
  parked_ = unsaid_.records.size() >= options_.max_unsaid;
  return !parked_;
}

void AnswerStream::Started(GenerateStarted started) {
  std::lock_guard lock(mu_);
  started_.emplace(std::move(started));
}

void AnswerStream::Token(int32_t answer, int32_t token, float logprob,
                         std::span<const TokenLogProb> alternatives, std::string_view text) {
  std::lock_guard lock(mu_);
  CHECK_LT(unsaid_.records.size(), unsaid_.records.capacity());
  unsaid_.records.push_back({.answer = answer,
                             .token = token,
                             .logprob = logprob,
                             .alternatives = static_cast<int32_t>(alternatives.size()),
                             .text_bytes = text.size(),
                             .usage = {},
                             .timing = {}});
  unsaid_.alternatives.insert(unsaid_.alternatives.end(), alternatives.begin(), alternatives.end());
  unsaid_.text += text;
}

void AnswerStream::Finished(int32_t answer, FinishReason reason, const Usage& usage,
                            const Timing& timing) {
  std::lock_guard lock(mu_);
  CHECK_LT(unsaid_.records.size(), unsaid_.records.capacity());
  unsaid_.records.push_back(
      {.answer = answer, .finished = true, .reason = reason, .usage = usage, .timing = timing});
}

void AnswerStream::Ended(StreamEnd end) {
  std::lock_guard lock(mu_);
  ended_.emplace(std::move(end));
}

void AnswerStream::Publish() {
  std::optional<GenerateStarted> started;
  std::optional<StreamEnd> ended;
  bool parked;
  {
    std::lock_guard lock(mu_);
    std::swap(unsaid_, saying_);
    started.swap(started_);
    ended.swap(ended_);
    parked = std::exchange(parked_, false);
  }
  if (started) queue_->Push(*std::move(started));
  Say(saying_);
  saying_.Clear();
  if (ended) queue_->Push(*std::move(ended));
  if (parked) wake_();
}

void AnswerStream::Say(const News& news) {
  std::string_view text = news.text;
  std::span<const TokenLogProb> alternatives = news.alternatives;
  for (const Record& r : news.records) {
    Answer& answer = answers_[r.answer];
    if (r.finished) {
      if (answer.points) SayPoints(r.answer, answer.points->Finish());
      queue_->Push(GenerateFinished{.index = r.answer,
                                    .reason = r.reason,
                                    .text = std::move(answer.text),
                                    .usage = r.usage,
                                    .timing = r.timing});
      continue;
    }
    const std::string_view piece = text.substr(0, r.text_bytes);
    text.remove_prefix(r.text_bytes);
    const auto others = alternatives.first(r.alternatives);
    alternatives = alternatives.subspan(r.alternatives);
    answer.text += piece;
    GenerateDelta delta{
        .index = r.answer, .text = std::string(piece), .token_ids = {}, .logprobs = {}};
    if (options_.echo_token_ids) delta.token_ids.push_back(r.token);
    delta.logprobs.push_back({.token_id = r.token,
                              .logprob = r.logprob,
                              .alternatives = {others.begin(), others.end()}});
    queue_->Push(std::move(delta));
    if (answer.points) SayPoints(r.answer, answer.points->Push(piece));
  }
}

void AnswerStream::SayPoints(int32_t answer, const std::vector<MolmoPoint>& points) {
  for (const MolmoPoint& point : points) {
    queue_->Push(GeneratePoint{.index = answer,
                               .x = point.x,
                               .y = point.y,
                               .label = point.label,
                               .ordinal = point.ordinal});
  }
}

}  // namespace sensorium
