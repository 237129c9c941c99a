// The plan of one model's forward pass as arrays: sequences are appended one by one, then the ops
// read the whole. Storage is kept from step to step, and taken at once by Reserve. Engine thread
// only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/batch.h"
#include "runtime/backend/token_choice.h"
#include "runtime/kv_cache/block_table.h"
#include "runtime/models/llm_decoder.h"

namespace sensorium {

class StepBatch {
 public:
  struct Sequence {
    std::span<const int32_t> tokens;  // the new ones
    int64_t first_position = 0;       // of tokens[0]; so many are cached
    const BlockTable* self = nullptr;
    const BlockTable* cross = nullptr;  // Whisper's window
    int32_t cross_len = 0;
    std::span<const int32_t> wanted;  // offsets into tokens whose logits are wanted, ascending
    // Image features of these tokens: rows of `features` and the offsets into tokens they go to.
    ConstTensorView features;
    std::span<const int32_t> feature_rows, feature_offsets;
  };

  // Takes memory for batches of at most so much: none of what follows takes any up to there.
  void Reserve(int32_t seqs, int32_t tokens, int32_t blocks_per_seq);
  void Clear();
  // Returns the index of the sequence's first row of logits. Its tables stay as they are until the
  // batch has run.
  int32_t Add(const Sequence& sequence);
  // Chooses a token from the choice's row, counted from `first_row` of the logits. What its spans
  // see stays as it is until the batch has been queued.
  void Choose(int32_t first_row, TokenChoice choice);
  // Whether every sequence has one new token, whose logits are wanted, and no features.
  bool only_decodes() const;
  // Makes a batch of decodes one of `rows` sequences, its tables so many blocks wide: behind the
  // real ones come rows of nobody. They store nothing and see the first sequence's first token, so
  // that all of them are alike; what they come to is nobody's business.
  // REQUIRES: only_decodes(), rows() <= rows, tables no longer than that.
  void FillUp(int32_t rows, int32_t self_blocks, int32_t cross_blocks);
  // Asks for a whole-block copy before the forward pass.
  std::vector<BlockCopy>& copies() { return copies_; }

  bool empty() const { return token_ids_.empty(); }
  int32_t rows() const { return static_cast<int32_t>(context_len_.size()); }  // sequences
  int32_t max_context() const;                                                // of any sequence
  // Those that were asked for.
  int32_t logit_rows() const { return static_cast<int32_t>(logit_rows_.size()) - idle_rows_; }
  std::span<const TokenChoice> choices() const { return choices_; }

  // Views of the arrays, valid until the next Add or Clear.
  DecoderBatch Decoder();
  AttentionBatch Cross();
  std::span<const FeatureAdd> FeatureAdds();

 private:
  struct Tables {  // block tables of all sequences, padded to the longest
    std::vector<std::span<const BlockId>> rows;  // in the tables, which stay as they are
    std::vector<BlockId> packed;
    int32_t max_blocks = 0, least_blocks = 0;
    void Pack();
  };
  struct PendingAdd {
    ConstTensorView features;
    size_t begin, end;  // into feature_from_ and feature_to_
  };

  std::vector<int32_t> token_ids_, positions_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> query_start_ = {0};
  std::vector<int32_t> context_len_, cross_len_;
  std::vector<int32_t> logit_rows_;
  int32_t idle_rows_ = 0;  // of nobody, the last ones
  std::vector<TokenChoice> choices_;
  Tables self_, cross_;
  std::vector<int32_t> feature_from_, feature_to_;
  std::vector<PendingAdd> pending_adds_;
  std::vector<FeatureAdd> adds_;
  std::vector<BlockCopy> copies_;
};

}  // namespace sensorium
