#include "runtime/engine/step_batch.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace sensorium {

void StepBatch::Clear() {
  token_ids_.clear();
  positions_.clear();
  slots_.clear();
  query_start_.assign(1, 0);
  context_len_.clear();
  cross_len_.clear();
  logit_rows_.clear();
  feature_from_.clear();
  feature_to_.clear();
  pending_adds_.clear();
  copies_.clear();
}

int32_t StepBatch::Add(const Sequence& s) {
  const int32_t first_token = static_cast<int32_t>(token_ids_.size());
  const int32_t first_logits = logit_rows();
  const size_t seq = context_len_.size();
  CHECK(!s.tokens.empty());
  for (size_t i = 0; i < s.tokens.size(); ++i) {
    const int64_t position = s.first_position + static_cast<int64_t>(i);
    token_ids_.push_back(s.tokens[i]);
    positions_.push_back(static_cast<int32_t>(position));
    slots_.push_back(s.self->Slot(position));
  }
  query_start_.push_back(static_cast<int32_t>(token_ids_.size()));
  context_len_.push_back(static_cast<int32_t>(s.first_position) +
                         static_cast<int32_t>(s.tokens.size()));
  const auto copy_table = [seq](Tables& tables, const BlockTable& table) {
    if (tables.rows.size() <= seq) tables.rows.resize(seq + 1);
    tables.rows[seq].assign(table.blocks().begin(), table.blocks().end());
  };
  copy_table(self_, *s.self);
  if (s.cross) {
    copy_table(cross_, *s.cross);
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

void StepBatch::Tables::Pack(size_t seqs) {
  max_blocks = 0;
  for (size_t s = 0; s < seqs; ++s) {
    max_blocks = std::max(max_blocks, static_cast<int32_t>(rows[s].size()));
  }
  packed.assign(seqs * max_blocks, -1);
  for (size_t s = 0; s < seqs; ++s) {
    std::copy(rows[s].begin(), rows[s].end(), packed.begin() + s * max_blocks);
  }
}

DecoderBatch StepBatch::Decoder() {
  self_.Pack(context_len_.size());
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
  cross_.Pack(cross_len_.size());
  return {.query_start = query_start_,
          .context_len = cross_len_,
          .block_tables = cross_.packed,
          .max_blocks = cross_.max_blocks};
}

std::span<const FeatureAdd> StepBatch::FeatureAdds() {
  adds_.clear();
  for (const PendingAdd& p : pending_adds_) {
    adds_.push_back(
        {.features = p.features,
         .from_rows = std::span(feature_from_).subspan(p.begin, p.end - p.begin),
         .to_rows = std::span(feature_to_).subspan(p.begin, p.end - p.begin)});
  }
  return adds_;
}

}  // namespace sensorium
