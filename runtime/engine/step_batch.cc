#include "runtime/engine/step_batch.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace sensorium {

namespace {

// The blocks that so many tokens lie in: a table may hold more.
std::span<const BlockId> BlocksOf(const BlockTable& table, int32_t tokens) {
  return table.blocks().first(BlockTable::BlocksFor(tokens, table.block_size()));
}

}  // namespace

void StepBatch::Reserve(int32_t seqs, int32_t tokens, int32_t blocks_per_seq) {
  tokens = std::max(tokens, seqs);  // filled up, it has one of each
  token_ids_.reserve(tokens);
  positions_.reserve(tokens);
  slots_.reserve(tokens);
  query_start_.reserve(seqs + 1);
  context_len_.reserve(seqs);
  cross_len_.reserve(seqs);
  logit_rows_.reserve(2 * seqs);
  choices_.reserve(2 * seqs);
  for (Tables* tables : {&self_, &cross_}) {
    tables->rows.reserve(seqs);
    tables->packed.reserve(static_cast<size_t>(seqs) * blocks_per_seq);
  }
  feature_from_.reserve(tokens);
  feature_to_.reserve(tokens);
  pending_adds_.reserve(seqs);
  adds_.reserve(seqs);
  copies_.reserve(seqs);
}

void StepBatch::Clear() {
  token_ids_.clear();
  positions_.clear();
  slots_.clear();
  query_start_.assign(1, 0);
  context_len_.clear();
  cross_len_.clear();
  logit_rows_.clear();
  idle_rows_ = 0;
  choices_.clear();
  for (Tables* tables : {&self_, &cross_}) {
    tables->rows.clear();
    tables->least_blocks = 0;
  }
  feature_from_.clear();
  feature_to_.clear();
  pending_adds_.clear();
  copies_.clear();
}

int32_t StepBatch::Add(const Sequence& s) {
  const int32_t first_token = static_cast<int32_t>(token_ids_.size());
  const int32_t first_logits = logit_rows();
  CHECK(!s.tokens.empty());
  CHECK_EQ(idle_rows_, 0) << "the batch is filled up";
  for (size_t i = 0; i < s.tokens.size(); ++i) {
    const int64_t position = s.first_position + static_cast<int64_t>(i);
    token_ids_.push_back(s.tokens[i]);
    positions_.push_back(static_cast<int32_t>(position));
    slots_.push_back(s.self->Slot(position));
  }
  query_start_.push_back(static_cast<int32_t>(token_ids_.size()));
  context_len_.push_back(static_cast<int32_t>(s.first_position) +
                         static_cast<int32_t>(s.tokens.size()));
  self_.rows.push_back(BlocksOf(*s.self, context_len_.back()));
  if (s.cross) {
    cross_.rows.push_back(BlocksOf(*s.cross, s.cross_len));
    cross_len_.push_back(s.cross_len);
  }
  for (const int32_t offset : s.wanted) logit_rows_.push_back(first_token + offset);
  if (!s.feature_rows.empty()) {
    const size_t begin = feature_from_.size();
    feature_from_.insert(feature_from_.end(), s.feature_rows.begin(), s.feature_rows.end());
    for (const int32_t offset : s.feature_offsets) feature_to_.push_back(first_token + offset);
    CHECK_EQ(feature_from_.size(), feature_to_.size());
    pending_adds_.push_back({s.features, begin, feature_from_.size()});
  }
  return first_logits;
}

void StepBatch::Choose(int32_t first_row, TokenChoice choice) {
  choice.row += first_row;
  CHECK(choice.row >= first_row && choice.row < logit_rows());
  choices_.push_back(choice);
}

bool StepBatch::only_decodes() const {
  return token_ids_.size() == context_len_.size() && logit_rows_.size() == context_len_.size() &&
         pending_adds_.empty();
}

int32_t StepBatch::max_context() const {
  int32_t most = 0;
  for (const int32_t context : context_len_) most = std::max(most, context);
  return most;
}

void StepBatch::FillUp(int32_t rows, int32_t self_blocks, int32_t cross_blocks) {
  CHECK(!empty() && only_decodes() && this->rows() <= rows);
  const bool cross = !cross_.rows.empty();
  for (; this->rows() < rows; ++idle_rows_) {
    logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()));
    token_ids_.push_back(0);
    positions_.push_back(0);
    slots_.push_back(-1);
    query_start_.push_back(static_cast<int32_t>(token_ids_.size()));
    self_.rows.push_back(self_.rows[0].first(1));
    if (cross) {
      cross_len_.push_back(1);
      cross_.rows.push_back(cross_.rows[0].first(1));
    }
    context_len_.push_back(1);
  }
  self_.least_blocks = self_blocks;
  cross_.least_blocks = cross_blocks;
}

void StepBatch::Tables::Pack() {
  max_blocks = least_blocks;
  for (const auto& row : rows) max_blocks = std::max(max_blocks, static_cast<int32_t>(row.size()));
  packed.assign(rows.size() * max_blocks, -1);
  for (size_t s = 0; s < rows.size(); ++s) {
    std::copy(rows[s].begin(), rows[s].end(), packed.begin() + s * max_blocks);
  }
}

DecoderBatch StepBatch::Decoder() {
  self_.Pack();
  return {.token_ids = token_ids_,
          .positions = positions_,
          .slot_mapping = slots_,
          .self = {.query_start = query_start_,
                   .context_len = context_len_,
                   .block_tables = self_.packed,
                   .max_blocks = self_.max_blocks},
          .logit_rows = logit_rows_};
}

AttentionBatch StepBatch::Cross() {
  CHECK_EQ(cross_len_.size(), context_len_.size());
  cross_.Pack();
  return {.query_start = query_start_,
          .context_len = cross_len_,
          .block_tables = cross_.packed,
          .max_blocks = cross_.max_blocks};
}

std::span<const FeatureAdd> StepBatch::FeatureAdds() {
  adds_.clear();
  for (const PendingAdd& p : pending_adds_) {
    adds_.push_back({.features = p.features,
                     .from_rows = std::span(feature_from_).subspan(p.begin, p.end - p.begin),
                     .to_rows = std::span(feature_to_).subspan(p.begin, p.end - p.begin)});
  }
  return adds_;
}

}  // namespace sensorium
