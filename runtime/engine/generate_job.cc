#include "runtime/engine/generate_job.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace sensorium {

GenerateJob::GenerateJob(LoadedModel& model, Backend& backend, PreparedGenerate prepared,
                         std::shared_ptr<GenerateQueue> queue)
    : Job(model, prepared.request.deadline, prepared.submitted),
      be_(backend),
      p_(std::move(prepared)),
      queue_(std::move(queue)),
      sampler_(p_.request.sampling, model.vocab_size()) {
  const int64_t longest = static_cast<int64_t>(p_.prompt.size()) + p_.max_tokens;
  spec_.rows = p_.request.n;
  spec_.blocks =
      p_.request.n * BlockTable::BlocksFor(longest, model.self_kv.layout.block_size);
  if (p_.image) {
    const MolmoImageLayout& layout = p_.image->layout;
    const int32_t tokens = model.molmo->vision->config().tokens_per_crop();
    kept_before_.push_back(0);
    for (int32_t c = 0; c < layout.crops; ++c) {
      int32_t kept = kept_before_.back();
      for (int32_t t = 0; t < tokens; ++t) {
        const int32_t position = layout.token_index[c * tokens + t];
        if (position >= 0) feature_at_.push_back({position, kept++});
      }
      kept_before_.push_back(kept);
    }
    std::sort(feature_at_.begin(), feature_at_.end());
  }
}

void GenerateJob::Start(BlockAllocator& blocks) {
  blocks_ = &blocks;
  clock_.Started();
  answers_.emplace_back(*model_.tokenizer, BlockTable(blocks, model_.self_kv.layout.block_size));
  GenerateStarted started{.request_id = p_.request_id,
                          .model = model_.name,
                          .prompt_tokens = static_cast<int32_t>(p_.prompt.size()),
                          .image_tokens = 0,
                          .cached_tokens = 0,
                          .heard = p_.heard,
                          .prompt_token_ids = {}};
  if (p_.image) {
    started.image_tokens = static_cast<int32_t>(p_.image->layout.tokens.size());
    const int64_t hidden = model_.molmo->config.llm.hidden;
    const int64_t kept = kept_before_.back();
    auto buffer = be_.Allocate(static_cast<size_t>(kept * hidden) * sizeof(float));
    if (!buffer.ok()) {
      End(buffer.status());
      return;
    }
    feature_buffer_ = *std::move(buffer);
    features_ = TensorView(feature_buffer_->data(), DType::kFloat32, {kept, hidden});
  }
  if (p_.request.echo_token_ids) started.prompt_token_ids = p_.prompt;
  queue_->Push(std::move(started));
}

Job::Work GenerateJob::Pending() const {
  if (ended_) return {};
  if (p_.image && crops_done_ < p_.image->layout.crops) {
    return {WorkKind::kEncode, p_.image->layout.crops - crops_done_};
  }
  const int32_t left = static_cast<int32_t>(p_.prompt.size()) - computed_;
  if (left > 0) return {WorkKind::kPrefill, left};
  if (!queue_->HasRoom()) return {};
  int32_t live = 0;
  for (const Answer& answer : answers_) live += !answer.done;
  return {live ? WorkKind::kDecode : WorkKind::kNone, live};
}

void GenerateJob::RunEncode(int32_t units, Workspace& workspace) {
  MolmoImageInputs& image = *p_.image;
  const VisionConfig& vision = model_.molmo->vision->config();
  const int64_t begin = crops_done_, end = crops_done_ + units;
  const int64_t patches = vision.patches(), tokens = vision.tokens_per_crop();
  const int64_t crop_pixels = patches * vision.patch_dim;
  model_.molmo->vision->Encode(
      features_.Rows(kept_before_[begin], kept_before_[end]),
      std::span(image.pixels).subspan(begin * crop_pixels, units * crop_pixels),
      std::span(image.masks).subspan(begin * patches, units * patches),
      std::span(image.layout.token_index).subspan(begin * tokens, units * tokens), workspace);
  crops_done_ += units;
  if (crops_done_ == image.layout.crops) {
    image.pixels = {};  // the features are what is needed from here on
    image.masks = {};
    p_.media.Reset();
  }
}

void GenerateJob::AddPrefill(int32_t tokens, StepBatch& batch) {
  Answer& first = answers_.front();
  const int32_t end = computed_ + tokens;
  first.table.Grow(end);
  feature_rows_.clear();
  feature_offsets_.clear();
  for (auto it = std::lower_bound(feature_at_.begin(), feature_at_.end(),
                                  std::pair<int32_t, int32_t>(computed_, 0));
       it != feature_at_.end() && it->first < end; ++it) {
    feature_rows_.push_back(it->second);
    feature_offsets_.push_back(it->first - computed_);
  }
  const int32_t last = tokens - 1;
  const bool whole = end == static_cast<int32_t>(p_.prompt.size());
  batch.Add({.tokens = std::span(p_.prompt).subspan(computed_, tokens),
             .first_position = computed_,
             .self = &first.table,
             .cross = nullptr,
             .cross_len = 0,
             .wanted = whole ? std::span(&last, 1) : std::span<const int32_t>(),
             .features = features_,
             .feature_rows = feature_rows_,
             .feature_offsets = feature_offsets_});
  prefilling_ = tokens;
}

void GenerateJob::AddDecode(StepBatch& batch) {
  const int32_t wanted = 0;
  for (Answer& answer : answers_) {
    if (answer.done) continue;
    // The newest token has been sampled but not computed.
    const int64_t position =
        static_cast<int64_t>(p_.prompt.size() + answer.tokens.size()) - 1;
    answer.table.Grow(position + 1);
    batch.Add({.tokens = std::span(&answer.tokens.back(), 1),
               .first_position = position,
               .self = &answer.table,
               .cross = nullptr,
               .cross_len = 0,
               .wanted = std::span(&wanted, 1),
               .features = {},
               .feature_rows = {},
               .feature_offsets = {}});
  }
}

void GenerateJob::OnForward(std::span<const float> logits, std::vector<BlockCopy>& copies) {
  const size_t vocab = static_cast<size_t>(model_.vocab_size());
  if (prefilling_ > 0) {
    computed_ += prefilling_;
    prefilling_ = 0;
    blocks_peak_ = std::max(blocks_peak_, CountBlocks());
    if (computed_ < static_cast<int32_t>(p_.prompt.size())) return;
    feature_buffer_.reset();
    // Every answer starts from the same prompt: its full blocks are shared.
    answers_.reserve(p_.request.n);
    for (int32_t i = 1; i < p_.request.n; ++i) {
      answers_.emplace_back(*model_.tokenizer, answers_[0].table.Fork(computed_, copies));
      answers_.back().index = i;
    }
    clock_.FirstToken();
    for (Answer& answer : answers_) {
      if (p_.image_width > 0) answer.points.emplace(p_.image_width, p_.image_height);
      Sample(answer, logits.first(vocab));
    }
  } else {
    blocks_peak_ = std::max(blocks_peak_, CountBlocks());
    size_t row = 0;
    for (Answer& answer : answers_) {
      if (!answer.done) Sample(answer, logits.subspan(row++ * vocab, vocab));
    }
  }
  if (std::all_of(answers_.begin(), answers_.end(), [](const Answer& a) { return a.done; })) {
    End(absl::OkStatus());
  }
}

void GenerateJob::Sample(Answer& answer, std::span<const float> logits) {
  Sampler::Choice choice = sampler_.Sample(logits, p_.prompt, answer.tokens, p_.request.logprobs,
                                           static_cast<uint64_t>(answer.index));
  answer.tokens.push_back(choice.token);
  const std::vector<int32_t>& stops = model_.prompt->stop_ids();
  const bool stopped = std::find(stops.begin(), stops.end(), choice.token) != stops.end();
  const bool full = static_cast<int32_t>(answer.tokens.size()) == p_.max_tokens;

  GenerateDelta delta{.index = answer.index, .text = {}, .token_ids = {}, .logprobs = {}};
  std::string piece = stopped ? "" : answer.decoder.Push(choice.token);
  if (stopped || full) piece += answer.decoder.Flush();
  const bool stop_string = TakeText(answer, std::move(piece), stopped || full, delta.text);
  if (p_.request.echo_token_ids) delta.token_ids.push_back(choice.token);
  delta.logprobs.push_back({.token_id = choice.token,
                            .logprob = choice.logprob,
                            .alternatives = std::move(choice.alternatives)});
  std::vector<MolmoPoint> points;
  if (answer.points) points = answer.points->Push(delta.text);
  queue_->Push(std::move(delta));
  SendPoints(answer, points);
  if (stop_string) {
    Finish(answer, FinishReason::kStopString);
  } else if (stopped) {
    Finish(answer, FinishReason::kStop);
  } else if (full) {
    Finish(answer, FinishReason::kLength);
  }
}

bool GenerateJob::TakeText(Answer& answer, std::string piece, bool last, std::string& delta) {
  // The model answers with a leading space, which is not part of what it says.
  if (!answer.started && !piece.empty()) {
    answer.started = true;
    if (piece.front() == ' ') piece.erase(0, 1);
  }
  answer.text += piece;
  size_t stop_at = std::string::npos;
  for (const std::string& stop : p_.request.stop) {
    stop_at = std::min(stop_at, answer.text.find(stop, answer.emitted));
  }
  if (stop_at != std::string::npos) answer.text.resize(stop_at);
  size_t send_to = answer.text.size();
  if (stop_at == std::string::npos && !last) {
    // Hold back the longest tail that a stop string could begin with.
    for (const std::string& stop : p_.request.stop) {
      const size_t longest = std::min(stop.size() - 1, answer.text.size() - answer.emitted);
      for (size_t n = longest; n > 0; --n) {
        if (answer.text.compare(answer.text.size() - n, n, stop, 0, n) == 0) {
          send_to = std::min(send_to, answer.text.size() - n);
          break;
        }
      }
    }
  }
  delta = answer.text.substr(answer.emitted, send_to - answer.emitted);
  answer.emitted = send_to;
  return stop_at != std::string::npos;
}

void GenerateJob::SendPoints(Answer& answer, const std::vector<MolmoPoint>& points) {
  for (const MolmoPoint& point : points) {
    queue_->Push(GeneratePoint{.index = answer.index,
                               .x = point.x,
                               .y = point.y,
                               .label = point.label,
                               .ordinal = point.ordinal});
  }
}

Usage GenerateJob::MakeUsage(const Answer& answer) const {
  return {.prompt_tokens = static_cast<int32_t>(p_.prompt.size()),
          .cached_tokens = 0,
          .image_tokens = p_.image ? static_cast<int32_t>(p_.image->layout.tokens.size()) : 0,
          .completion_tokens = static_cast<int32_t>(answer.tokens.size()),
          .audio_ms = p_.audio_ms,
          .kv_blocks_peak = blocks_peak_};
}

void GenerateJob::Finish(Answer& answer, FinishReason reason) {
  answer.done = true;
  answer.table.Clear();
  if (answer.points) SendPoints(answer, answer.points->Finish());
  queue_->Push(GenerateFinished{.index = answer.index,
                                .reason = reason,
                                .text = answer.text,
                                .usage = MakeUsage(answer),
                                .timing = clock_.timing()});
}

int32_t GenerateJob::CountBlocks() const {
  int32_t n = 0;
  for (const Answer& answer : answers_) n += static_cast<int32_t>(answer.table.blocks().size());
  return n;
}

void GenerateJob::End(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  if (absl::IsDeadlineExceeded(status) || absl::IsCancelled(status)) {
    const FinishReason reason = absl::IsCancelled(status) ? FinishReason::kCancelled
                                                          : FinishReason::kDeadline;
    for (Answer& answer : answers_) {
      if (!answer.done) Finish(answer, reason);
    }
  }
  answers_.clear();
  feature_buffer_.reset();
  p_.image.reset();
  p_.media.Reset();
  queue_->Push(StreamEnd{status});
}

}  // namespace sensorium
