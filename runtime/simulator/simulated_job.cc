#include "runtime/simulator/simulated_job.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

constexpr int64_t kMaxContext = 1 << 28;  // beyond any pool: refused, and no overflow on the way
constexpr double kSpokenTokensPerSecond = 3;

// Token ids, for the hashes: a system prompt's count up from here, a picture's are all the same,
// and a request's own are its number.
constexpr int32_t kPictureToken = 1, kSystemToken = 2;

}  // namespace

SimulatedMemory::SimulatedMemory(const DeviceProfile& p, bool prefix_cache,
                                 double encoder_cache_share, int32_t max_jobs, bool preempts)
    : profile(p),
      preempts(preempts),
      blocks(p.kv_blocks),
      cache({.max_idle_prefix_blocks = prefix_cache ? p.kv_blocks : 0,
             .max_idle_encoder_blocks = static_cast<int32_t>(p.kv_blocks * encoder_cache_share)},
            blocks),
      features(p.vision.feature_slots, max_jobs) {}

// ---- What a request is made of ------------------------------------------------------------------

int64_t SimulatedPhase::OutputOf(int32_t round) const {
  return std::max<int64_t>(1,
                           output_tokens * (round + 1) / rounds - output_tokens * round / rounds);
}

std::vector<SimulatedPhase> PhasesOf(const Arrival& a, const DeviceProfile& profile) {
  std::vector<SimulatedPhase> phases;
  const SpeechProfile& speech = profile.speech;
  int64_t heard = 0;
  if (a.audio_ms > 0 || a.kind == RequestKind::kSpeech) {
    const int64_t windows =
        std::clamp<int64_t>((a.audio_ms + speech.window_ms - 1) / speech.window_ms, 1, kMaxContext);
    const bool is_answer = a.kind == RequestKind::kSpeech;
    heard = std::llround(static_cast<double>(a.audio_ms) / 1000 * kSpokenTokensPerSecond);
    phases.push_back(
        {.model = kSpeechModel,
         .rounds = static_cast<int32_t>(windows),
         .rows = is_answer ? a.rows : 1,
         .encode_units = speech.window_stages,
         .prefill_tokens = speech.prompt_tokens,
         .output_tokens = std::max<int64_t>(is_answer ? a.output_tokens : heard, windows),
         .cross_len = speech.cross_positions,
         .is_answer = is_answer});
    if (is_answer) return phases;
  }
  const int64_t picture = int64_t{a.image_crops} * profile.vision.crop_tokens;
  const int64_t prompt = picture + a.system_tokens + heard + a.prompt_tokens;
  phases.push_back({.rows = a.rows,
                    .encode_units = a.image_crops,
                    .prefill_tokens = std::clamp<int64_t>(prompt, 1, kMaxContext),
                    .output_tokens = std::min<int64_t>(a.output_tokens, kMaxContext),
                    .is_answer = true,
                    .picture_tokens = picture,
                    .system_tokens = a.system_tokens,
                    .heard_tokens = heard});
  return phases;
}

SimulatedJob::SimulatedJob(const SimulatedPhase& phase, const Arrival& arrival, int64_t number,
                           SimulatedMemory& memory)
    : phase_(phase), arrival_(arrival), number_(number), memory_(memory) {
  const int64_t longest_output = phase.OutputOf(phase.rounds - 1) + (phase.rounds > 1 ? 1 : 0);
  spec_ = {.model = phase.model,
           .tenant = arrival.tenant,
           .priority = arrival.priority,
           .deadline_us = arrival.deadline_us,
           .rows = phase.rows,
           .max_context = phase.prefill_tokens + longest_output,
           .encode_units = int64_t{phase.encode_units} * phase.rounds,
           .prefill_tokens = phase.prefill_tokens * phase.rounds,
           .decode_tokens = phase.output_tokens,
           .cross_len = phase.cross_len};
  if (phase.model == kVisionModel) {
    spec_.feature_slots = phase.encode_units > 0 ? 1 : 0;
    // A server knows what was asked for at most, and that most answers are half of it.
    spec_.expected_context = phase.prefill_tokens + (longest_output + 1) / 2;
  } else {
    spec_.fixed_blocks = BlockTable::BlocksFor(phase.cross_len, BlockSize());
  }
}

int32_t SimulatedJob::BlockSize() const {
  return phase_.model == kVisionModel ? memory_.profile.vision.block_size
                                      : memory_.profile.speech.block_size;
}

// ---- What the caches know it by -----------------------------------------------------------------

// Of the picture or the recording: the same for the same one, and for nobody else's.
ContentHash SimulatedJob::MediaHash() const {
  return memory_.hasher.Update(phase_.model == kVisionModel ? "picture" : "recording")
      .Update(int64_t{arrival_.tenant})
      .Update(phase_.model == kVisionModel ? int64_t{arrival_.image_crops} : arrival_.audio_ms)
      .Update(arrival_.media > 0 ? "known" : "new")
      .Update(arrival_.media > 0 ? arrival_.media : number_)
      .Finish();
}

void SimulatedJob::HashPrompt() {
  ContentHasher& hasher = memory_.hasher;
  const ContentHash media = MediaHash();
  std::vector<int32_t> tokens(static_cast<size_t>(phase_.prefill_tokens),
                              static_cast<int32_t>(number_));
  auto next = tokens.begin();
  const auto left = [&] { return tokens.end() - next; };
  next = std::fill_n(next, std::min(left(), phase_.picture_tokens), kPictureToken);
  for (int64_t i = 0; i < phase_.system_tokens && left() > 0; ++i) {
    *next++ = kSystemToken + static_cast<int32_t>(i);
  }
  std::fill_n(next, std::min(left(), phase_.heard_tokens), static_cast<int32_t>(media.prefix()));
  // As in the server: the tenant and the picture are in the root.
  hasher.Update("prefix").Update(int64_t{arrival_.tenant});
  if (phase_.picture_tokens > 0) hasher.Update(std::span<const uint8_t>(media.bytes));
  const ContentHash root = hasher.Finish();
  chain_ = BlockChain(root, tokens, BlockSize());
}

// ---- In and out ---------------------------------------------------------------------------------

void SimulatedJob::Start(JobId id) {
  id_ = id;
  rows_.push_back({.table = BlockTable(memory_.blocks, BlockSize())});
  phase_.model == kVisionModel ? TakePrompt() : TakeWindow();
}

// Starts behind what an earlier prompt left; the last token is computed in any case, for its
// logits.
void SimulatedJob::TakePrompt() {
  if (chain_.empty()) HashPrompt();
  Row& first = rows_.front();
  const size_t usable = static_cast<size_t>((phase_.prefill_tokens - 1) / BlockSize());
  memory_.matched.clear();
  memory_.matched.reserve(usable);
  const int32_t hits = memory_.cache.Match(CacheClass::kPrefix,
                                           std::span(chain_).first(std::min(usable, chain_.size())),
                                           memory_.matched);
  first.table.Adopt(memory_.matched);
  first.computed = int64_t{hits} * BlockSize();
  if (first.computed < phase_.picture_tokens && !lease_) {
    lease_ = memory_.features.Acquire(MediaHash(), id_);
    CHECK(lease_.has_value()) << "an admitted job's feature slot was set aside";
  }
  if (rounds_counted_ > 0) return;  // after a preemption
  rounds_counted_ = 1;
  cache_use_.prompt_tokens += phase_.prefill_tokens;
  cache_use_.cached_tokens += first.computed;
  cache_use_.pictures += phase_.picture_tokens > 0;
  cache_use_.cached_pictures += phase_.picture_tokens > 0 && !(lease_ && lease_->writer);
}

// A window's cross-attention KV, from the cache or to be encoded. A part of it is of no use.
void SimulatedJob::TakeWindow() {
  cross_.emplace(memory_.blocks, BlockSize());
  const ContentHash media = MediaHash();
  const ContentHash root = memory_.hasher.Update("window")
                               .Update(std::span<const uint8_t>(media.bytes))
                               .Update(int64_t{round_})
                               .Finish();
  chain_ = BlockChain(root, BlockTable::BlocksFor(phase_.cross_len, BlockSize()));
  memory_.matched.clear();
  memory_.matched.reserve(chain_.size());
  memory_.cache.Match(CacheClass::kEncoder, chain_, memory_.matched);
  has_window_ = memory_.matched.size() == chain_.size();
  if (has_window_) {
    cross_->Adopt(memory_.matched);
  } else {
    for (; !memory_.matched.empty(); memory_.matched.pop_back()) {
      memory_.blocks.Release(memory_.matched.back());
    }
    cross_->Grow(phase_.cross_len);
  }
  if (rounds_counted_ > round_) return;  // after a preemption
  ++rounds_counted_;
  ++cache_use_.windows;
  cache_use_.cached_windows += has_window_;
}

void SimulatedJob::Preempt() {
  // Others may wait for these features: one of them is to encode them. Complete ones are kept.
  if (WaitsForFeatures()) DropFeatures();
  encoded_ = 0;
  rows_.clear();
  cross_.reset();
  forked_ = false;
}

int32_t SimulatedJob::BlocksHeld() const {
  size_t blocks = cross_ ? cross_->blocks().size() : 0;
  for (const Row& row : rows_) blocks += row.table.blocks().size();
  return static_cast<int32_t>(blocks);
}

void SimulatedJob::DropFeatures() {
  if (lease_) memory_.features.Release(lease_->slot, id_);
  lease_.reset();
}

void SimulatedJob::End() {
  DropFeatures();
  rows_.clear();
  cross_.reset();
}

bool SimulatedJob::NextRound() {
  if (++round_ == phase_.rounds) return false;
  encoded_ = 0;
  produced_ = 0;
  forked_ = false;
  rows_.clear();
  rows_.push_back({.table = BlockTable(memory_.blocks, BlockSize())});
  TakeWindow();
  return true;
}

// ---- Its work -----------------------------------------------------------------------------------

bool SimulatedJob::WaitsForFeatures() const {
  return lease_ && !memory_.features.ready(lease_->slot);
}

bool SimulatedJob::WaitsForAnother() const {
  return running() && WaitsForFeatures() && memory_.features.writer(lease_->slot) != id_;
}

int64_t SimulatedJob::Until() const {
  // The newest token was sampled, not computed.
  return phase_.prefill_tokens + (forked_ ? std::max<int64_t>(produced_ - 1, 0) : 0);
}

const SimulatedJob::Row* SimulatedJob::Behind() const {
  for (const Row& row : rows_) {
    if (row.computed < Until()) return &row;
  }
  return nullptr;
}

JobWork SimulatedJob::Pending() const {
  const int32_t tables = static_cast<int32_t>(rows_.size());
  const int64_t computed = rows_.front().computed;
  JobWork work{.context = computed,
               .tables = tables,
               .later_units = (phase_.rounds - round_ - 1) * phase_.encode_units,
               .later_tokens = static_cast<int32_t>(Until() - computed)};
  if (WaitsForAnother()) return work;
  if (WaitsForFeatures() || (cross_ && !has_window_)) {
    work.kind = WorkKind::kEncode;
    work.amount = phase_.encode_units - encoded_;
    return work;
  }
  work.later_tokens = 0;
  if (const Row* row = Behind()) {
    work.kind = WorkKind::kPrefill;
    work.amount = static_cast<int32_t>(Until() - row->computed);
    work.context = row->computed;
    return work;
  }
  work.kind = WorkKind::kDecode;
  work.amount = tables;
  return work;
}

Work SimulatedJob::Take(const PlanItem& item) {
  const int64_t n = item.amount;
  if (item.kind == WorkKind::kEncode) return {.encode_units = n};
  Work work{.forwards = 1, .cross_positions = n * phase_.cross_len};
  if (item.kind == WorkKind::kPrefill) {
    Row& row = const_cast<Row&>(*Behind());
    row.table.Grow(row.computed + n);
    work.prefill_tokens = n;
    work.prefill_context = n * row.computed + n * (n + 1) / 2;
  } else {
    for (Row& row : rows_) row.table.Grow(row.computed + 1);
    work.decode_rows = n;
    work.decode_context = n * (rows_.front().computed + 1);
  }
  return work;
}

bool SimulatedJob::Done(const PlanItem& item) {
  if (item.kind == WorkKind::kEncode) {
    encoded_ += item.amount;
    if (encoded_ < phase_.encode_units) return false;
    if (lease_) {
      memory_.features.MarkReady(lease_->slot);
    } else {
      has_window_ = true;
      memory_.cache.Insert(CacheClass::kEncoder, chain_, cross_->blocks());
    }
    return false;
  }
  if (item.kind == WorkKind::kDecode) {
    for (Row& row : rows_) ++row.computed;
    ++produced_;
    return true;
  }
  Row& row = const_cast<Row&>(*Behind());
  row.computed += item.amount;
  if (forked_) return false;
  if (phase_.model == kVisionModel) {
    const size_t full = std::min(chain_.size(), static_cast<size_t>(row.computed / BlockSize()));
    memory_.cache.Insert(CacheClass::kPrefix, std::span(chain_).first(full),
                         row.table.blocks().first(full));
  }
  if (row.computed < phase_.prefill_tokens) return false;
  forked_ = true;
  while (static_cast<int32_t>(rows_.size()) < phase_.rows) {
    rows_.push_back({.table = rows_.front().table.Fork(phase_.prefill_tokens, memory_.copies),
                     .computed = phase_.prefill_tokens});
  }
  memory_.copies.clear();
  if (!memory_.preempts) DropFeatures();
  if (produced_ > 0) return false;
  produced_ = 1;  // the first comes with the prompt's end
  return true;
}

}  // namespace sensorium
