#include "runtime/engine/transcribe_job.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {

TranscribeJob::TranscribeJob(LoadedModel& model, PreparedTranscribe prepared,
                             std::shared_ptr<TranscribeQueue> queue, std::string_view tenant_salt,
                             std::function<bool()> also_cancelled)
    : Job(model, prepared.request.deadline, prepared.submitted),
      p_(std::move(prepared)),
      queue_(std::move(queue)),
      also_cancelled_(std::move(also_cancelled)) {
  const TranscribeOptions& o = p_.request.options;
  const WhisperConfig& c = model.whisper->config();
  const int32_t cross_blocks =
      BlockTable::BlocksFor(c.audio_positions, model.cross_kv.layout.block_size);
  spec_.model = model.index;
  spec_.priority = p_.request.priority;
  spec_.rows = std::max({1, o.beam_size, o.best_of});
  spec_.max_context = c.text_positions;
  spec_.fixed_blocks = cross_blocks;
  spec_.cross_len = c.audio_positions;
  const int64_t windows = std::max<int64_t>(
      1, (p_.content_frames + c.window_frames() - 1) / c.window_frames());
  spec_.encode_units = windows * model.UnitsPerWindow();
  spec_.prefill_tokens = 4 * windows;  // start, language, task; what was said before comes on top
  spec_.decode_tokens = windows * c.text_positions / 8;
  usage_.audio_ms = p_.audio_ms;
  audio_hash_ = ContentHasher()
                    .Update("audio window")
                    .Update(std::span<const uint8_t>(model.cache_root.bytes))
                    .Update(tenant_salt)
                    .Update(std::span(reinterpret_cast<const uint8_t*>(p_.mel.data.data()),
                                      p_.mel.data.size() * sizeof(float)))
                    .Finish();
  cross_slots_.resize(c.audio_positions);
  matched_.reserve(cross_blocks);
}

void TranscribeJob::Start(BlockAllocator& blocks, BlockCache& cache) {
  blocks_ = &blocks;
  cache_ = &cache;
  clock_.Started();
  if (announced_) {  // after a preemption: the window from its beginning
    BeginSearch();
  } else if (model_.vocabulary->multilingual && !p_.language_id) {
    // The recording's first window, real silence behind a short one: transcribe.py pads in samples
    // for this and in mel for the windows themselves.
    phase_ = Phase::kDetectLanguage;
    prompt_ = {model_.vocabulary->sot};
    computed_ = 0;
    rows_.clear();
    rows_.emplace_back(blocks, model_.self_kv.layout.block_size);
    TakeWindow(0, model_.whisper->config().window_frames());
  } else {
    SetLanguage(p_.language_id, 1.0f);
    NextWindow();
  }
}

void TranscribeJob::Preempt() {
  rows_.clear();
  cross_.reset();
  cross_begin_ = cross_size_ = -1;
  prefilling_ = 0;
}

void TranscribeJob::SetLanguage(std::optional<int32_t> id, float probability) {
  const WhisperVocabulary& vocabulary = *model_.vocabulary;
  language_ = "en";  // what an English-only model speaks
  for (const auto& [code, language_id] : vocabulary.languages) {
    if (id == language_id) language_ = code;
  }
  const TranscribeOptions& o = p_.request.options;
  const WhisperConfig& c = model_.whisper->config();
  const double frames_per_ms =
      static_cast<double>(c.window_frames()) / static_cast<double>(model_.info.window_ms);
  WhisperTranscriptionOptions options;
  options.language_id = id;
  options.translate = o.task == Task::kTranslate;
  options.timestamps = o.timestamps != Timestamps::kNone;
  options.prompt = o.prompt;
  options.prefix = o.prefix;
  options.condition_on_previous_text = o.condition_on_previous_text;
  options.no_speech_threshold = o.no_speech_threshold.value_or(0.6f);
  options.logprob_threshold = o.logprob_threshold.value_or(-1.0f);
  options.content_frames = p_.content_frames;
  options.clip_start_frame = std::llround(static_cast<double>(o.clip_start_ms) * frames_per_ms);
  if (o.clip_end_ms > 0) {
    options.clip_end_frame = std::llround(static_cast<double>(o.clip_end_ms) * frames_per_ms);
  }
  options.window_frames = c.window_frames();
  options.window_seconds = static_cast<double>(model_.info.window_ms) / 1000.0;
  options.text_context = c.text_positions;
  options.sample_len = o.max_tokens_per_window ? o.max_tokens_per_window : c.text_positions / 2;
  transcription_.emplace(vocabulary, *model_.tokenizer, options);
  announced_ = true;
  queue_->Push(TranscribeStarted{.request_id = p_.request_id,
                                 .model = model_.name,
                                 .duration_ms = p_.audio_ms,
                                 .language = language_,
                                 .language_probability = probability});
}

void TranscribeJob::NextWindow() {
  window_ = transcription_->NextWindow();
  if (!window_) {
    AddCost(clock_.cost(), usage_);
    queue_->Push(TranscribeFinished{.text = transcription_->Text(),
                                    .language = language_,
                                    .usage = usage_,
                                    .timing = clock_.timing()});
    End(absl::OkStatus());
    return;
  }
  BeginSearch();
}

// A new search over window_, from its prompt.
void TranscribeJob::BeginSearch() {
  const TranscribeOptions& o = p_.request.options;
  WhisperWindowOptions options;
  options.beam_size = o.beam_size;
  options.best_of = o.best_of;
  options.patience = o.patience;
  options.length_penalty = o.length_penalty;
  options.temperature = o.temperatures.empty() ? 0.0f : o.temperatures.front();
  options.seed = o.seed;
  const WhisperConfig& c = model_.whisper->config();
  options.sample_len = o.max_tokens_per_window ? o.max_tokens_per_window : c.text_positions / 2;
  options.without_timestamps = o.timestamps == Timestamps::kNone;
  options.suppress = o.suppress_tokens;
  if (o.suppress_default) {
    const std::vector<int32_t>& own = model_.vocabulary->suppress_tokens;
    options.suppress.insert(options.suppress.end(), own.begin(), own.end());
  }
  if (o.max_initial_timestamp) {
    if (*o.max_initial_timestamp > 0) {
      const double precision = static_cast<double>(model_.info.window_ms) / 1000.0 /
                               static_cast<double>(c.audio_positions);
      options.max_initial_timestamp_index =
          static_cast<int32_t>(std::lround(*o.max_initial_timestamp / precision));
    }
  } else {
    options.max_initial_timestamp_index = model_.vocabulary->max_initial_timestamp_index;
  }
  // Windows draw from streams of their own; a seek never repeats.
  options.stream_base = static_cast<uint64_t>(window_->seek) << 16;
  decoder_.emplace(*model_.vocabulary, *model_.tokenizer, options, window_->prompt,
                   window_->sot_index, c.text_positions);
  rows_.clear();
  rows_.emplace_back(*blocks_, model_.self_kv.layout.block_size);
  prompt_ = decoder_->prompt();
  computed_ = 0;
  phase_ = Phase::kPrompt;
  TakeWindow(window_->seek, window_->size);
}

void TranscribeJob::TakeWindow(int64_t begin, int64_t size) {
  if (begin == cross_begin_ && size == cross_size_) return;  // detection read the same frames
  const int32_t positions = model_.whisper->config().audio_positions;
  const int32_t block_size = model_.cross_kv.layout.block_size;
  // A cached block is never written again: each window has blocks of its own.
  cross_.emplace(*blocks_, block_size);
  cross_begin_ = begin;
  cross_size_ = size;
  const ContentHash root = ContentHasher()
                               .Update(std::span<const uint8_t>(audio_hash_.bytes))
                               .Update(begin)
                               .Update(size)
                               .Finish();
  window_chain_ = BlockChain(root, BlockTable::BlocksFor(positions, block_size));
  matched_.clear();
  cache_->Match(CacheClass::kEncoder, window_chain_, matched_);
  stages_left_ = matched_.size() == window_chain_.size() ? 0 : model_.UnitsPerWindow();
  if (stages_left_ == 0) {
    cross_->Adopt(matched_);
  } else {  // a part of a window is of no use
    while (!matched_.empty()) {
      blocks_->Release(matched_.back());
      matched_.pop_back();
    }
    cross_->Grow(positions);
  }
  for (int32_t i = 0; i < positions; ++i) cross_slots_[i] = cross_->Slot(i);
}

JobWork TranscribeJob::Pending() const {
  if (ended_) return {};
  const int32_t tables = static_cast<int32_t>(rows_.size());
  if (stages_left_ > 0) {
    // A window's segments are sent at its end: room for them is asked for at its beginning.
    if (stages_left_ == model_.UnitsPerWindow() && !queue_->HasRoom()) return {};
    return {WorkKind::kEncode, stages_left_, computed_, tables};
  }
  switch (phase_) {
    case Phase::kDetectLanguage:
    case Phase::kPrompt:
      return {WorkKind::kPrefill, static_cast<int32_t>(prompt_.size()) - computed_, computed_};
    case Phase::kDecode:
      return {WorkKind::kDecode, tables, computed_, tables};
  }
  return {};
}

void TranscribeJob::RunEncode(int32_t units, TensorView state, Workspace& workspace) {
  const WhisperConfig& c = model_.whisper->config();
  const int32_t begin = model_.UnitsPerWindow() - stages_left_;
  if (begin == 0) {
    window_mel_.assign(static_cast<size_t>(c.window_frames()) * c.mels, 0.0f);
    const int64_t frames =
        std::min({cross_size_, p_.mel.frames - cross_begin_, int64_t{c.window_frames()}});
    std::copy_n(p_.mel.data.begin() + cross_begin_ * c.mels, frames * c.mels, window_mel_.begin());
  }
  const TensorView x(state.bytes(), DType::kFloat32, {c.audio_positions, c.hidden});
  model_.whisper->EncodeStages(begin, begin + units, x, window_mel_, model_.cross_kv, cross_slots_,
                               workspace);
  stages_left_ -= units;
  if (stages_left_ == 0) {
    cache_->Insert(CacheClass::kEncoder, window_chain_, cross_->blocks());
  }
}

void TranscribeJob::AddPrefill(int32_t tokens, StepBatch& batch) {
  const int32_t end = computed_ + tokens;
  const int32_t last = static_cast<int32_t>(prompt_.size()) - 1;
  rows_[0].Grow(end);
  std::vector<int32_t> wanted;
  const int32_t sot = phase_ == Phase::kPrompt ? decoder_->sot_index() : last;
  sot_in_chunk_ = computed_ <= sot && sot < end;
  last_in_chunk_ = end == last + 1;
  if (sot_in_chunk_) wanted.push_back(sot - computed_);
  if (last_in_chunk_ && sot != last) wanted.push_back(last - computed_);
  batch.Add({.tokens = std::span(prompt_).subspan(computed_, tokens),
             .first_position = computed_,
             .self = &rows_[0],
             .cross = &*cross_,
             .cross_len = model_.whisper->config().audio_positions,
             .wanted = wanted,
             .features = {},
             .feature_rows = {},
             .feature_offsets = {}});
  prefilling_ = tokens;
}

void TranscribeJob::AddDecode(StepBatch& batch) {
  const int32_t wanted = 0;
  const auto next = decoder_->next();
  CHECK_EQ(next.size(), rows_.size());
  for (size_t r = 0; r < rows_.size(); ++r) {
    rows_[r].Grow(computed_ + 1);
    batch.Add({.tokens = std::span(&next[r].token, 1),
               .first_position = computed_,
               .self = &rows_[r],
               .cross = &*cross_,
               .cross_len = model_.whisper->config().audio_positions,
               .wanted = std::span(&wanted, 1),
               .features = {},
               .feature_rows = {},
               .feature_offsets = {}});
  }
}

// Gives every live hypothesis the cache of the one it continues: the first child takes its parent's
// table, its siblings fork it.
void TranscribeJob::FollowRows(std::vector<BlockCopy>& copies) {
  const auto next = decoder_->next();
  std::vector<int32_t> heir(rows_.size(), -1);  // by parent: the new row that has its table
  for (size_t r = 0; r < next.size(); ++r) {
    if (heir[next[r].parent] < 0) heir[next[r].parent] = static_cast<int32_t>(r);
  }
  for (size_t p = 0; p < rows_.size(); ++p) {
    if (heir[p] < 0) rows_[p].Clear();  // before the forks need its blocks
  }
  std::vector<BlockTable> rows;
  rows.reserve(next.size());
  for (size_t r = 0; r < next.size(); ++r) {
    const int32_t parent = next[r].parent;
    if (heir[parent] == static_cast<int32_t>(r)) {
      rows.push_back(std::move(rows_[parent]));
    } else {
      rows.push_back(rows[heir[parent]].Fork(computed_, copies));
    }
  }
  rows_ = std::move(rows);
}

void TranscribeJob::OnForward(std::span<const float> logits, std::vector<BlockCopy>& copies) {
  const size_t vocab = static_cast<size_t>(model_.vocab_size());
  int32_t blocks = static_cast<int32_t>(cross_->blocks().size());
  for (const BlockTable& row : rows_) blocks += static_cast<int32_t>(row.blocks().size());
  usage_.kv_blocks_peak = std::max(usage_.kv_blocks_peak, blocks);

  if (phase_ == Phase::kDecode) {
    ++computed_;
    std::vector<std::span<const float>> by_row;
    for (size_t r = 0; r < rows_.size(); ++r) by_row.push_back(logits.subspan(r * vocab, vocab));
    decoder_->Advance(by_row);
  } else {
    computed_ += std::exchange(prefilling_, 0);
    if (sot_in_chunk_) sot_logits_.assign(logits.begin(), logits.begin() + vocab);
    if (!last_in_chunk_) return;
    const std::span<const float> last = logits.last(vocab);
    if (phase_ == Phase::kDetectLanguage) {
      const auto detected = DetectLanguage(last, *model_.vocabulary);
      SetLanguage(detected.id, detected.probability);
      NextWindow();
      return;
    }
    clock_.FirstToken();
    decoder_->Start(sot_logits_, last);
    phase_ = Phase::kDecode;
  }
  if (decoder_->done()) {
    FinishWindow();
  } else {
    FollowRows(copies);
  }
}

void TranscribeJob::FinishWindow() {
  const WhisperWindowResult result = decoder_->Result();
  usage_.prompt_tokens += static_cast<int32_t>(prompt_.size());
  usage_.completion_tokens += static_cast<int32_t>(result.tokens.size());
  const auto to_ms = [](double seconds) { return std::llround(seconds * 1000.0); };
  for (const WhisperSegment& s : transcription_->FinishWindow(result)) {
    queue_->Push(TranscribeSegment{.id = s.id,
                                   .start_ms = to_ms(s.start),
                                   .end_ms = to_ms(s.end),
                                   .text = s.text,
                                   .tokens = s.tokens,
                                   .avg_logprob = s.avg_logprob,
                                   .compression_ratio = s.compression_ratio,
                                   .no_speech_probability = s.no_speech_prob,
                                   .temperature = s.temperature});
  }
  const int64_t done = std::min(transcription_->seek(), p_.content_frames);
  queue_->Push(TranscribeProgress{
      .done_ms = p_.content_frames ? p_.audio_ms * done / p_.content_frames : p_.audio_ms,
      .total_ms = p_.audio_ms});
  NextWindow();
}

void TranscribeJob::End(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  rows_.clear();
  cross_.reset();
  p_.mel = {};
  p_.media.Reset();
  queue_->Push(StreamEnd{status});
}

}  // namespace sensorium
