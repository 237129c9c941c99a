#include "runtime/engine/transcribe_job.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {

TranscribeJob::TranscribeJob(LoadedModel& model, PreparedTranscribe prepared,
                             std::shared_ptr<TranscribeQueue> queue, std::string_view tenant_salt,
                             std::function<void()> wake, std::function<bool()> also_cancelled)
    : Job(model, prepared.request.deadline, prepared.submitted),
      p_(std::move(prepared)),
      queue_(std::move(queue)),
      also_cancelled_(std::move(also_cancelled)),
      detection_prompt_{model.vocabulary->sot} {
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
  const int64_t windows = std::max<int64_t>(1, WindowsFrom(0));
  spec_.encode_units = windows * model.UnitsPerWindow() + UnitsToListen();
  spec_.prefill_tokens = 4 * windows;  // start, language, task; what was said before comes on top
  spec_.decode_tokens = windows * c.text_positions / 8;
  // Samples and what follows from them never meet under one name.
  const std::span<const float> content =
      p_.recording ? p_.recording->samples() : std::span<const float>(p_.mel.data);
  const ContentHash audio_hash =
      ContentHasher()
          .Update(p_.recording ? "recording's window" : "audio window")
          .Update(std::span<const uint8_t>(model.cache_root.bytes))
          .Update(tenant_salt)
          .Update(std::span(reinterpret_cast<const uint8_t*>(content.data()), content.size_bytes()))
          .Finish();
  transcript_ =
      std::make_shared<Transcript>(model,
                                   Transcript::Options{.request = o,
                                                       .request_id = p_.request_id,
                                                       .content_frames = p_.content_frames,
                                                       .audio_ms = p_.audio_ms,
                                                       .language_id = p_.language_id,
                                                       .audio_hash = audio_hash},
                                   queue_, std::move(wake));
  cross_slots_.resize(c.audio_positions);
  matched_.reserve(cross_blocks);
  heir_.resize(spec_.rows);
}

TranscribeJob::~TranscribeJob() { CHECK(!writing_); }

void TranscribeJob::Attach(const JobServices& services) {
  services_ = services;
  const int32_t cross_size = model_.cross_kv.layout.block_size;
  const int32_t self_size = model_.self_kv.layout.block_size;
  cross_.emplace(*services.blocks, cross_size, spec_.fixed_blocks);
  for (auto* rows : {&rows_, &next_rows_}) {
    rows->reserve(spec_.rows);
    for (int32_t r = 0; r < spec_.rows; ++r) {
      rows->emplace_back(*services.blocks, self_size,
                         BlockTable::BlocksFor(spec_.max_context, self_size));
    }
  }
}

void TranscribeJob::Start() {
  admitted_ = true;
  clock_.Started();
  switch (phase_) {
    case Phase::kNew:
      if (transcript_->detects_language()) {
        BeginDetection();
      } else {
        phase_ = Phase::kAsking;
        transcript_->AskFirst({}, Spent());
        Post();
      }
      break;
    case Phase::kAsking:  // preempted while the transcript thought: what it says is good still
      break;
    case Phase::kDetectLanguage:
      BeginDetection();
      break;
    case Phase::kPrompt:
    case Phase::kDecode:  // the window from its beginning
      phase_ = Phase::kAsking;
      transcript_->AskAgain();
      Post();
      break;
  }
}

void TranscribeJob::Preempt() {
  admitted_ = false;
  StopWriting();
  for (size_t r = 0; r < num_rows_; ++r) rows_[r].Clear();
  num_rows_ = 0;
  cross_->Clear();
  cross_begin_ = cross_size_ = -1;
  wanted_ = nullptr;
  stages_left_ = 0;
  prefilling_ = 0;
}

bool TranscribeJob::Poll() {
  if (ended_) return false;
  if (phase_ == Phase::kAsking && transcript_->ready()) {
    if (transcript_->finished()) {
      Release();
      return true;
    }
    if (admitted_) BeginSearch();
  }
  if (wanted_ && TakeWindow(*wanted_)) wanted_ = nullptr;
  return false;
}

void TranscribeJob::BeginDetection() {
  phase_ = Phase::kDetectLanguage;
  prompt_ = detection_prompt_;
  computed_ = 0;
  num_rows_ = 1;
  wanted_ = &transcript_->detection_window();
  heard_until_ = wanted_->begin + wanted_->size;
}

void TranscribeJob::BeginSearch() {
  phase_ = Phase::kPrompt;
  for (size_t r = 0; r < num_rows_; ++r) rows_[r].Clear();
  num_rows_ = 1;
  prompt_ = transcript_->decoder().prompt();
  computed_ = 0;
  wanted_ = &transcript_->window();
  heard_until_ = wanted_->begin + wanted_->size;
}

bool TranscribeJob::TakeWindow(const AudioWindow& window) {
  if (window.begin == cross_begin_ && window.size == cross_size_) return true;
  // A window's segments are sent at its end: room for them is asked for at its beginning, before
  // anybody could be made to wait for what this request encodes.
  parked_ = !queue_->HasRoom();
  if (parked_) return false;
  const ContentHash& name = window.chain.back();
  for (const auto& [other, writer] : model_.windows_in_encoder) {
    if (other == name) return false;
  }
  const int32_t positions = model_.whisper->config().audio_positions;
  // A cached block is never written again: each window has blocks of its own.
  cross_->Clear();
  cross_begin_ = window.begin;
  cross_size_ = window.size;
  matched_.clear();
  services_.cache->Match(CacheClass::kEncoder, window.chain, matched_);
  stages_left_ = matched_.size() == window.chain.size() ? 0 : model_.UnitsPerWindow();
  if (stages_left_ == 0) {
    cross_->Adopt(matched_);
  } else {  // a part of a window is of no use
    while (!matched_.empty()) {
      services_.blocks->Release(matched_.back());
      matched_.pop_back();
    }
    cross_->Grow(positions);
    writing_ = &window;
    model_.windows_in_encoder.push_back({name, this});
  }
  for (int32_t i = 0; i < positions; ++i) cross_slots_[i] = cross_->Slot(i);
  return true;
}

// Its window is in the cache, or will not be: who waits for it need not any more.
void TranscribeJob::StopWriting() {
  if (!std::exchange(writing_, nullptr)) return;
  std::erase_if(model_.windows_in_encoder, [this](const auto& w) { return w.second == this; });
}

int64_t TranscribeJob::WindowsFrom(int64_t frame) const {
  const int64_t size = model_.whisper->config().window_frames();
  return (std::max<int64_t>(p_.content_frames - frame, 0) + size - 1) / size;
}

JobWork TranscribeJob::Pending() const {
  JobWork work = Next();
  if (ended_) return work;
  work.later_units = static_cast<int32_t>(WindowsFrom(heard_until_)) * model_.UnitsPerWindow() +
                     (work.kind == WorkKind::kEncode ? 0 : UnitsToListen());
  return work;
}

JobWork TranscribeJob::Next() const {
  if (ended_) return {};
  const int32_t tables = static_cast<int32_t>(num_rows_);
  if (phase_ == Phase::kNew || phase_ == Phase::kAsking || wanted_) {
    const WorkKind kind = wanted_ && parked_ ? WorkKind::kParked : WorkKind::kNone;
    return {.kind = kind, .context = computed_, .tables = std::max(1, tables)};
  }
  if (stages_left_ > 0) {
    return {WorkKind::kEncode, UnitsToListen() + stages_left_, computed_, tables};
  }
  if (phase_ == Phase::kDecode) return {WorkKind::kDecode, tables, computed_, tables};
  return {WorkKind::kPrefill, static_cast<int32_t>(prompt_.size()) - computed_, computed_};
}

// The window's frames, zeros behind them: y act [window_frames, mels].
void TranscribeJob::FillMel(TensorView y, std::byte* state) const {
  const int64_t all = p_.content_frames + y.rows();  // with the silence behind the recording
  const int64_t frames = std::min({cross_size_, all - cross_begin_, y.rows()});
  if (p_.recording) {
    p_.recording->LogMel(*model_.media, y, cross_begin_, frames, model_.RecordingState(state));
    return;
  }
  std::vector<float>& window = model_.window_mel;
  const int64_t mels = y.dim(1);
  const auto end =
      std::copy_n(p_.mel.data.begin() + cross_begin_ * mels, frames * mels, window.begin());
  std::fill(end, window.end(), 0.0f);
  FromHost{model_.whisper->backend(), window}(y);
}

void TranscribeJob::RunEncode(int32_t units, TensorView state, Workspace& workspace) {
  const WhisperConfig& c = model_.whisper->config();
  if (const int32_t listen = std::min(units, UnitsToListen()); listen > 0) {
    p_.recording->Listen(*model_.media, listen, model_.RecordingState(state.bytes()));
    units -= listen;
    if (units == 0) return;
  }
  const int32_t begin = model_.UnitsPerWindow() - stages_left_;
  const auto mel = [&](TensorView y) { FillMel(y, state.bytes()); };
  const TensorView x(state.bytes(), DType::kFloat32, {c.audio_positions, c.hidden});
  model_.whisper->EncodeStages(begin, begin + units, x, mel, model_.cross_kv, cross_slots_,
                               workspace);
  stages_left_ -= units;
  if (stages_left_ > 0) return;
  services_.cache->Insert(CacheClass::kEncoder, writing_->chain, cross_->blocks());
  StopWriting();
}

void TranscribeJob::AddPrefill(int32_t tokens, StepBatch& batch) {
  const int32_t end = computed_ + tokens;
  const int32_t last = static_cast<int32_t>(prompt_.size()) - 1;
  rows_[0].Grow(end);
  std::array<int32_t, 2> wanted{};
  size_t num_wanted = 0;
  const int32_t sot = phase_ == Phase::kPrompt ? transcript_->decoder().sot_index() : last;
  sot_in_chunk_ = computed_ <= sot && sot < end;
  last_in_chunk_ = end == last + 1;
  if (sot_in_chunk_) wanted[num_wanted++] = sot - computed_;
  if (last_in_chunk_ && sot != last) wanted[num_wanted++] = last - computed_;
  const int32_t row = batch.Add({.tokens = prompt_.subspan(computed_, tokens),
                                 .first_position = computed_,
                                 .self = &rows_[0],
                                 .cross = &*cross_,
                                 .cross_len = model_.whisper->config().audio_positions,
                                 .wanted = std::span(wanted).first(num_wanted),
                                 .features = {},
                                 .feature_rows = {},
                                 .feature_offsets = {}});
  prefilling_ = tokens;
  if (phase_ == Phase::kDetectLanguage) {
    if (last_in_chunk_) batch.Choose(row, transcript_->LanguageChoice());
    return;
  }
  if (sot_in_chunk_) batch.Choose(row, transcript_->decoder().StartChoice());
  if (!last_in_chunk_) return;
  const int32_t last_row = row + static_cast<int32_t>(num_wanted) - 1;
  for (const TokenChoice& choice : transcript_->decoder().Choices()) batch.Choose(last_row, choice);
}

void TranscribeJob::AddDecode(StepBatch& batch) {
  const int32_t wanted = 0;
  const auto next = transcript_->decoder().next();
  CHECK_EQ(next.size(), num_rows_);
  const int32_t first_row = batch.logit_rows();
  for (size_t r = 0; r < num_rows_; ++r) {
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
  for (const TokenChoice& choice : transcript_->decoder().Choices()) {
    batch.Choose(first_row, choice);
  }
}

// Gives every live hypothesis the cache of the one it continues: the first child takes its parent's
// table, its siblings fork it.
void TranscribeJob::FollowRows(std::vector<BlockCopy>& copies) {
  const auto next = transcript_->decoder().next();
  std::fill(heir_.begin(), heir_.end(), -1);  // by parent: the new row that has its table
  for (size_t r = 0; r < next.size(); ++r) {
    if (heir_[next[r].parent] < 0) heir_[next[r].parent] = static_cast<int32_t>(r);
  }
  for (size_t p = 0; p < num_rows_; ++p) {
    if (heir_[p] < 0) rows_[p].Clear();  // before the forks need its blocks
  }
  for (size_t r = 0; r < next.size(); ++r) {
    const int32_t parent = next[r].parent, heir = heir_[parent];
    if (heir == static_cast<int32_t>(r)) {
      next_rows_[r] = std::move(rows_[parent]);
    } else {
      next_rows_[heir].ForkInto(next_rows_[r], computed_, copies);
    }
  }
  rows_.swap(next_rows_);
  num_rows_ = next.size();
}

int32_t TranscribeJob::BlocksHeld() const {
  if (!cross_) return 0;
  size_t blocks = cross_->blocks().size();
  for (const auto* rows : {&rows_, &next_rows_}) {
    for (const BlockTable& row : *rows) blocks += row.blocks().size();
  }
  return static_cast<int32_t>(blocks);
}

void TranscribeJob::OnForward(std::span<const ChosenToken> chosen, std::vector<BlockCopy>& copies) {
  blocks_peak_ = std::max(blocks_peak_, BlocksHeld());

  if (phase_ == Phase::kDecode) {
    ++computed_;
    transcript_->decoder().Advance(chosen);
  } else {
    computed_ += std::exchange(prefilling_, 0);
    if (phase_ == Phase::kDetectLanguage) {
      if (!last_in_chunk_) return;
      phase_ = Phase::kAsking;
      transcript_->AskFirst(chosen[0].asked, Spent());
      return Post();
    }
    WhisperWindowDecoder& decoder = transcript_->decoder();
    if (sot_in_chunk_) decoder.ReadStart(chosen[0]);
    if (!last_in_chunk_) return;
    clock_.FirstToken();
    decoder.Advance(chosen.subspan(sot_in_chunk_ ? 1 : 0));
    phase_ = Phase::kDecode;
  }
  if (transcript_->decoder().done()) {
    phase_ = Phase::kAsking;
    transcript_->AskNext(Spent());
    Post();
  } else {
    FollowRows(copies);
  }
}

Transcript::Spent TranscribeJob::Spent() const {
  Transcript::Spent spent{.usage = {}, .timing = clock_.timing()};
  spent.usage.kv_blocks_peak = blocks_peak_;
  AddCost(clock_.cost(), spent.usage);
  return spent;
}

void TranscribeJob::Release() {
  ended_ = true;
  if (services_.blocks) Preempt();
  p_.mel = {};
  p_.recording.reset();
  p_.media.Reset();
}

void TranscribeJob::End(absl::Status status) {
  if (ended_) return;
  Release();
  transcript_->End(std::move(status), Spent().usage);
  Post();
}

}  // namespace sensorium
