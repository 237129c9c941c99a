#include "runtime/engine/generate_job.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace sensorium {

GenerateJob::GenerateJob(LoadedModel& model, PreparedGenerate prepared,
                         std::shared_ptr<GenerateQueue> queue, std::string_view tenant_salt,
                         size_t max_unsaid, std::function<void()> wake)
    : Job(model, prepared.request.deadline, prepared.submitted), p_(std::move(prepared)) {
  spec_.model = model.index;
  spec_.priority = p_.request.priority;
  spec_.rows = p_.request.n;
  spec_.max_context = int64_t{PromptTokens()} + p_.max_tokens;
  spec_.prefill_tokens = PromptTokens();
  spec_.decode_tokens = p_.max_tokens;
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
    spec_.feature_slots = 1;
    spec_.encode_units = layout.crops + UnitsToResize();
    const auto bytes = [](const std::vector<float>& v) {
      return std::span(reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof(float));
    };
    ContentHasher hasher;
    hasher.Update(p_.picture ? "picture's features" : "image features")
        .Update(std::span<const uint8_t>(model.cache_root.bytes))
        .Update(tenant_salt);
    if (p_.picture) {  // all that the device makes follows from these
      hasher.Update(int64_t{p_.image_width})
          .Update(int64_t{p_.image_height})
          .Update(std::span<const uint8_t>(p_.picture->image().pixels));
    } else {
      hasher.Update(int64_t{layout.tile_rows})
          .Update(int64_t{layout.tile_cols})
          .Update(bytes(p_.image->masks))
          .Update(bytes(p_.image->pixels));
    }
    image_hash_ = hasher.Finish();
  }
  root_ = ContentHasher()
              .Update("prefix")
              .Update(std::span<const uint8_t>(model.cache_root.bytes))
              .Update(tenant_salt)
              .Update(std::span<const uint8_t>(image_hash_.bytes))
              .Finish();
  chain_ = BlockChain(root_, p_.prompt, model.self_kv.layout.block_size);
  block_tokens_.resize(model.self_kv.layout.block_size);
  matched_.reserve(chain_.size());
  feature_rows_.reserve(feature_at_.size());
  feature_offsets_.reserve(feature_at_.size());
  started_ = {.request_id = p_.request_id,
              .model = model_.name,
              .prompt_tokens = PromptTokens(),
              .image_tokens = ImageTokens(),
              .cached_tokens = 0,
              .heard = p_.heard,
              .prompt_token_ids = p_.request.echo_token_ids ? p_.prompt : std::vector<int32_t>()};

  size_t longest_stop = 0;
  for (const std::string& stop : p_.request.stop)
    longest_stop = std::max(longest_stop, stop.size());
  AnswerStream::Options options{
      .answers = p_.request.n,
      .max_unsaid = max_unsaid,
      // The last token flushes what is cut, too.
      .token_bytes = 2 * StreamDecoder::MaxGrowth(model.tokenizer->longest_token_bytes()),
      .held_bytes = longest_stop,
      .alternatives = p_.request.logprobs,
      .echo_token_ids = p_.request.echo_token_ids,
      .image_width = p_.image_width,
      .image_height = p_.image_height};
  stream_ = std::make_shared<AnswerStream>(options, std::move(queue), std::move(wake));
}

GenerateJob::~GenerateJob() { CHECK(!features_); }

int32_t GenerateJob::ImageTokens() const {
  return p_.image ? static_cast<int32_t>(p_.image->layout.tokens.size()) : 0;
}

void GenerateJob::Attach(const JobServices& services) {
  services_ = services;
  const int32_t size = model_.self_kv.layout.block_size;
  const int32_t blocks = BlockTable::BlocksFor(spec_.max_context, size);
  size_t longest_stop = 0;
  for (const std::string& stop : p_.request.stop)
    longest_stop = std::max(longest_stop, stop.size());
  answers_.reserve(p_.request.n);
  for (int32_t i = 0; i < p_.request.n; ++i) {
    Answer& answer =
        answers_.emplace_back(*model_.tokenizer, BlockTable(*services.blocks, size, blocks),
                              Sampler(p_.request.sampling, model_.vocab_size(), p_.prompt,
                                      p_.max_tokens, static_cast<uint64_t>(i)));
    answer.index = i;
    answer.tokens.reserve(p_.max_tokens);
    answer.chain.reserve(blocks);
    answer.chain = chain_;
    answer.held.reserve(longest_stop +
                        2 * StreamDecoder::MaxGrowth(model_.tokenizer->longest_token_bytes()));
  }
}

// What an earlier prompt may have computed for this one. The last token is computed in any case:
// its logits are what the answer begins with.
std::span<const ContentHash> GenerateJob::UsableChain() const {
  const size_t usable = static_cast<size_t>(PromptTokens() - 1) / model_.self_kv.layout.block_size;
  return std::span(chain_).first(std::min(usable, chain_.size()));
}

void GenerateJob::Foresee(JobSpec& spec) const {
  const int32_t cached = services_.cache->MatchLength(CacheClass::kPrefix, UsableChain()) *
                         model_.self_kv.layout.block_size;
  spec.prefill_tokens -= cached;
  if (!p_.image) return;
  const bool behind_it = !feature_at_.empty() && cached > feature_at_.back().first;
  if (behind_it || model_.feature_cache->Has(image_hash_)) spec.encode_units = 0;
}

void GenerateJob::Start() {
  clock_.Started();
  Answer& first = answers_.front();
  matched_.clear();
  const int32_t hits = services_.cache->Match(CacheClass::kPrefix, UsableChain(), matched_);
  first.table.Adopt(matched_);
  first.computed = hits * first.table.block_size();
  if (p_.image && !features_ &&
      (feature_at_.empty() || first.computed <= feature_at_.back().first)) {
    features_ = model_.feature_cache->Acquire(image_hash_, holder());
    CHECK(features_) << "an admitted request's image slot was set aside";
  }
  if (announced_) return;  // after a preemption
  announced_ = true;
  started_.cached_tokens = cached_tokens_ = first.computed;
  stream_->Started(std::move(started_));
  Post();
}

void GenerateJob::Preempt() {
  for (Answer& answer : answers_) {
    answer.table.Clear();
    answer.computed = 0;
  }
  forked_ = false;
  prefilling_ = 0;
  // Somebody may wait for these features who runs on: it is to encode them itself. Complete ones
  // are kept, since the picture's pixels are gone by now.
  if (WaitsForFeatures()) {
    DropFeatures();
    resized_ = crops_done_ = 0;
  }
}

void GenerateJob::DropFeatures() {
  if (features_) model_.feature_cache->Release(features_->slot, holder());
  features_.reset();
}

bool GenerateJob::WaitsForFeatures() const {
  return features_ && !model_.feature_cache->ready(features_->slot);
}

const GenerateJob::Answer* GenerateJob::Behind() const {
  for (const Answer& answer : answers_) {
    if (!answer.done &&
        answer.computed + 1 < PromptTokens() + static_cast<int32_t>(answer.tokens.size())) {
      return &answer;
    }
  }
  return nullptr;
}

JobWork GenerateJob::Pending() const {
  if (ended_) return {};
  const Answer& first = answers_.front();
  if (!forked_) {
    if (WaitsForFeatures()) {
      // Another request is encoding the same picture: this one waits for it.
      if (model_.feature_cache->writer(features_->slot) != holder()) {
        return {.context = first.computed, .later_tokens = PromptTokens() - first.computed};
      }
      return {.kind = WorkKind::kEncode,
              .amount = UnitsToResize() + p_.image->layout.crops - crops_done_,
              .context = first.computed,
              .later_tokens = PromptTokens() - first.computed};
    }
    return {WorkKind::kPrefill, PromptTokens() - first.computed, first.computed};
  }
  const int32_t tables = static_cast<int32_t>(answers_.size());
  if (const Answer* behind = Behind()) {
    const int32_t until = PromptTokens() + static_cast<int32_t>(behind->tokens.size()) - 1;
    return {WorkKind::kPrefill, until - behind->computed, behind->computed, tables};
  }
  int32_t live = 0;
  int64_t context = 0;
  for (const Answer& answer : answers_) {
    if (answer.done) continue;
    ++live;
    context = answer.computed;
  }
  if (live == 0) return {.context = context, .tables = tables};
  if (!stream_->HasRoom()) return {WorkKind::kParked, 0, context, tables};
  return {WorkKind::kDecode, live, context, tables};
}

void GenerateJob::RunEncode(int32_t units, TensorView state, Workspace& workspace) {
  MolmoImageInputs& image = *p_.image;
  if (const int32_t resize = std::min(units, UnitsToResize()); resize > 0) {
    p_.picture->Resize(*model_.media, resized_, resized_ + resize, state.bytes());
    resized_ += resize;
    units -= resize;
    if (units == 0) return;
  }
  const VisionConfig& vision = model_.molmo->vision->config();
  const int64_t begin = crops_done_, end = crops_done_ + units;
  const int64_t patches = vision.patches(), tokens = vision.tokens_per_crop();
  const int64_t crop_pixels = patches * vision.patch_dim;
  const TensorView features =
      model_.FeatureSlot(features_->slot).Rows(kept_before_[begin], kept_before_[end]);
  const auto masks = std::span(image.masks).subspan(begin * patches, units * patches);
  const auto index = std::span(image.layout.token_index).subspan(begin * tokens, units * tokens);
  if (p_.picture) {
    const auto cut = [&](TensorView pixels) {
      p_.picture->CutCrops(*model_.media, crops_done_, state.bytes(), pixels);
    };
    model_.molmo->vision->Encode(features, cut, masks, index, workspace);
  } else {
    model_.molmo->vision->Encode(
        features, std::span(image.pixels).subspan(begin * crop_pixels, units * crop_pixels), masks,
        index, workspace);
  }
  crops_done_ += units;
  if (crops_done_ == image.layout.crops) model_.feature_cache->MarkReady(features_->slot);
}

void GenerateJob::AddPrefill(int32_t tokens, StepBatch& batch) {
  prefilling_ = tokens;
  if (forked_) {  // after a preemption: an answer's own tokens
    chunk_of_ = const_cast<Answer*>(Behind());
    Answer& answer = *chunk_of_;
    answer.table.Grow(answer.computed + tokens);
    batch.Add({.tokens = std::span(answer.tokens).subspan(answer.computed - PromptTokens(), tokens),
               .first_position = answer.computed,
               .self = &answer.table,
               .cross = nullptr,
               .cross_len = 0,
               .wanted = {},
               .features = {},
               .feature_rows = {},
               .feature_offsets = {}});
    return;
  }
  chunk_of_ = &answers_.front();
  Answer& first = *chunk_of_;
  const int32_t begin = first.computed, end = begin + tokens;
  first.table.Grow(end);
  feature_rows_.clear();
  feature_offsets_.clear();
  TensorView features;
  if (features_) {
    if (!p_.image->masks.empty()) {  // the features are what is needed from here on
      p_.image->pixels = {};
      p_.image->masks = {};
      p_.picture.reset();
      p_.media.Reset();
    }
    features = model_.FeatureSlot(features_->slot);
    for (auto it = std::lower_bound(feature_at_.begin(), feature_at_.end(),
                                    std::pair<int32_t, int32_t>(begin, 0));
         it != feature_at_.end() && it->first < end; ++it) {
      feature_rows_.push_back(it->second);
      feature_offsets_.push_back(it->first - begin);
    }
  }
  const int32_t last = tokens - 1;
  // Behind a preemption the first tokens are known already.
  const bool wanted = end == PromptTokens() && first.tokens.empty();
  const int32_t row =
      batch.Add({.tokens = std::span(p_.prompt).subspan(begin, tokens),
                 .first_position = begin,
                 .self = &first.table,
                 .cross = nullptr,
                 .cross_len = 0,
                 .wanted = wanted ? std::span(&last, 1) : std::span<const int32_t>(),
                 .features = features,
                 .feature_rows = feature_rows_,
                 .feature_offsets = feature_offsets_});
  if (!wanted) return;
  for (const Answer& answer : answers_) Choose(answer, row, batch);
}

void GenerateJob::Choose(const Answer& answer, int32_t row, StepBatch& batch) const {
  TokenChoice choice = answer.sampler.choice();
  choice.num_likeliest = p_.request.logprobs;
  batch.Choose(row, choice);
}

void GenerateJob::AddDecode(StepBatch& batch) {
  const int32_t wanted = 0;
  for (Answer& answer : answers_) {
    if (answer.done) continue;
    // The newest token has been sampled but not computed.
    answer.table.Grow(answer.computed + 1);
    const int32_t row = batch.Add({.tokens = std::span(&answer.tokens.back(), 1),
                                   .first_position = answer.computed,
                                   .self = &answer.table,
                                   .cross = nullptr,
                                   .cross_len = 0,
                                   .wanted = std::span(&wanted, 1),
                                   .features = {},
                                   .feature_rows = {},
                                   .feature_offsets = {}});
    Choose(answer, row, batch);
  }
}

void GenerateJob::KeepPrompt() {
  const Answer& first = answers_.front();
  const size_t full =
      std::min(chain_.size(), static_cast<size_t>(first.computed / first.table.block_size()));
  services_.cache->Insert(CacheClass::kPrefix, std::span(chain_).first(full),
                          first.table.blocks().first(full));
}

void GenerateJob::KeepAnswer(Answer& answer) {
  const int32_t size = answer.table.block_size();
  if (answer.computed % size != 0) return;
  // Token `at` of prompt and answer together.
  const auto token = [&](int32_t at) {
    return at < PromptTokens() ? p_.prompt[at] : answer.tokens[at - PromptTokens()];
  };
  const size_t full = static_cast<size_t>(answer.computed / size);
  while (answer.chain.size() < full) {
    const int32_t begin = static_cast<int32_t>(answer.chain.size()) * size;
    for (int32_t i = 0; i < size; ++i) block_tokens_[i] = token(begin + i);
    answer.chain.push_back(
        NextBlockHash(hasher_, answer.chain.empty() ? root_ : answer.chain.back(), block_tokens_));
  }
  services_.cache->Insert(CacheClass::kPrefix, std::span(answer.chain).first(full),
                          answer.table.blocks().first(full));
}

// Every answer starts from the same prompt: its full blocks are shared.
void GenerateJob::Fork(std::vector<BlockCopy>& copies) {
  forked_ = true;
  for (int32_t i = 1; i < p_.request.n; ++i) {
    if (!answers_[i].done) answers_[0].table.ForkInto(answers_[i].table, PromptTokens(), copies);
    answers_[i].computed = PromptTokens();
  }
  if (answers_[0].done) answers_[0].table.Clear();
  if (!services_.preempts) DropFeatures();  // else the prompt may be computed once more
}

void GenerateJob::OnForward(std::span<const ChosenToken> chosen, std::vector<BlockCopy>& copies) {
  if (prefilling_ > 0) {
    chunk_of_->computed += std::exchange(prefilling_, 0);
    blocks_peak_ = std::max(blocks_peak_, BlocksHeld());
    if (forked_) return;
    KeepPrompt();
    if (answers_.front().computed < PromptTokens()) return;
    const bool fresh = answers_.front().tokens.empty();
    Fork(copies);
    if (!fresh) return;
    clock_.FirstToken();
    for (Answer& answer : answers_) Take(answer, chosen[static_cast<size_t>(answer.index)]);
  } else {
    blocks_peak_ = std::max(blocks_peak_, BlocksHeld());
    size_t next = 0;
    for (Answer& answer : answers_) {
      if (answer.done) continue;
      ++answer.computed;
      KeepAnswer(answer);
      Take(answer, chosen[next++]);
    }
  }
  if (std::all_of(answers_.begin(), answers_.end(), [](const Answer& a) { return a.done; })) {
    End(absl::OkStatus());
  }
}

void GenerateJob::Take(Answer& answer, const ChosenToken& chosen) {
  answer.tokens.push_back(chosen.token);
  answer.sampler.Push(chosen.token);
  const std::vector<int32_t>& stops = model_.prompt->stop_ids();
  const bool stopped = std::find(stops.begin(), stops.end(), chosen.token) != stops.end();
  const bool full = static_cast<int32_t>(answer.tokens.size()) == p_.max_tokens;

  if (!stopped) answer.decoder.Push(chosen.token, answer.held);
  if (stopped || full) answer.decoder.Flush(answer.held);
  // The model answers with a leading space, which is not part of what it says.
  if (!answer.started && !answer.held.empty()) {
    answer.started = true;
    if (answer.held.front() == ' ') answer.held.erase(0, 1);
  }
  bool stop_string = false;
  const size_t sayable = Sayable(answer, stopped || full, stop_string);
  stream_->Token(answer.index, chosen.token, chosen.logprob, chosen.likeliest,
                 std::string_view(answer.held).substr(0, sayable));
  answer.held.erase(0, sayable);
  if (stop_string) {
    Finish(answer, FinishReason::kStopString);
  } else if (stopped) {
    Finish(answer, FinishReason::kStop);
  } else if (full) {
    Finish(answer, FinishReason::kLength);
  }
  Post();
}

size_t GenerateJob::Sayable(Answer& answer, bool last, bool& stopped) const {
  const std::string& held = answer.held;
  size_t stop_at = std::string::npos;
  for (const std::string& stop : p_.request.stop) stop_at = std::min(stop_at, held.find(stop));
  stopped = stop_at != std::string::npos;
  if (stopped) return stop_at;
  size_t sayable = held.size();
  if (last) return sayable;
  // Hold back the longest tail that a stop string could begin with.
  for (const std::string& stop : p_.request.stop) {
    for (size_t n = std::min(stop.size() - 1, held.size()); n > 0; --n) {
      if (held.compare(held.size() - n, n, stop, 0, n) == 0) {
        sayable = std::min(sayable, held.size() - n);
        break;
      }
    }
  }
  return sayable;
}

Usage GenerateJob::MakeUsage(size_t completion_tokens) const {
  Usage usage{.prompt_tokens = PromptTokens(),
              .cached_tokens = cached_tokens_,
              .image_tokens = ImageTokens(),
              .completion_tokens = static_cast<int32_t>(completion_tokens),
              .audio_ms = p_.hearing.audio_ms,
              .kv_blocks_peak = std::max(blocks_peak_, p_.hearing.kv_blocks_peak)};
  AddCost(clock_.cost(), usage);
  AddCost(p_.hearing, usage);
  return usage;
}

void GenerateJob::Finish(Answer& answer, FinishReason reason) {
  answer.done = true;
  answer.table.Clear();
  if (reason != FinishReason::kCancelled && reason != FinishReason::kDeadline) {
    // What the next answers are expected to come to: a moving average.
    const int64_t tokens = static_cast<int64_t>(answer.tokens.size());
    int64_t& expected = model_.expected_tokens;
    expected = expected == 0 ? tokens : (7 * expected + tokens) / 8;
  }
  stream_->Finished(answer.index, reason, MakeUsage(answer.tokens.size()), clock_.timing());
}

int32_t GenerateJob::BlocksHeld() const {
  int32_t n = 0;
  for (const Answer& answer : answers_) n += static_cast<int32_t>(answer.table.blocks().size());
  return n;
}

void GenerateJob::End(absl::Status status) {
  if (ended_) return;
  ended_ = true;
  if (announced_ && (absl::IsDeadlineExceeded(status) || absl::IsCancelled(status))) {
    const FinishReason reason =
        absl::IsCancelled(status) ? FinishReason::kCancelled : FinishReason::kDeadline;
    for (Answer& answer : answers_) {
      if (!answer.done) Finish(answer, reason);
    }
  }
  size_t tokens = 0;
  for (Answer& answer : answers_) {
    answer.table.Clear();
    tokens += answer.tokens.size();
  }
  DropFeatures();
  p_.image.reset();
  p_.picture.reset();
  p_.media.Reset();
  StreamEnd end{.status = std::move(status)};
  if (!end.status.ok()) end.usage = MakeUsage(tokens);
  stream_->Ended(std::move(end));
  Post();
}

}  // namespace sensorium
