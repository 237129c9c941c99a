// A step's batch as arrays; what it takes for a batch of decodes to become one of a recorded shape.
#include "runtime/engine/step_batch.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

using testing::ElementsAre;

class StepBatchTest : public testing::Test {
 protected:
  static constexpr int32_t kBlockSize = 16;
  StepBatchTest() {
    EXPECT_TRUE(blocks_.Reserve(blocks_.total()));
    for (int i = 0; i < 3; ++i) tables_.emplace_back(blocks_, kBlockSize);
  }
  // A decode of sequence `i` at `position`.
  void AddDecode(int i, int32_t position, std::span<const int32_t> wanted = kWanted) {
    tables_[i].Grow(position + 1);
    tables_[2].Grow(40);
    const int32_t token = 100 + i;
    batch_.Add({.tokens = std::span(&token, 1),
                .first_position = position,
                .self = &tables_[i],
                .cross = cross_ ? &tables_[2] : nullptr,
                .cross_len = cross_ ? 40 : 0,
                .wanted = wanted,
                .features = {},
                .feature_rows = {},
                .feature_offsets = {}});
  }
  static constexpr int32_t kWanted[] = {0};
  BlockAllocator blocks_{20};
  std::vector<BlockTable> tables_;
  bool cross_ = false;
  StepBatch batch_;
};

TEST_F(StepBatchTest, RowsOfNobodyComeBehindTheRealOnes) {
  cross_ = true;
  AddDecode(0, 20);
  AddDecode(1, 3);
  const BlockId a0 = tables_[0].blocks()[0], a1 = tables_[0].blocks()[1];
  const BlockId b0 = tables_[1].blocks()[0];
  const std::vector<BlockId> c(tables_[2].blocks().begin(), tables_[2].blocks().end());
  ASSERT_TRUE(batch_.only_decodes());
  EXPECT_EQ(batch_.max_context(), 21);
  batch_.FillUp(/*rows=*/4, /*self_blocks=*/3, /*cross_blocks=*/4);
  EXPECT_EQ(batch_.logit_rows(), 2);
  const DecoderBatch d = batch_.Decoder();
  EXPECT_THAT(d.token_ids, ElementsAre(100, 101, 0, 0));
  EXPECT_THAT(d.positions, ElementsAre(20, 3, 0, 0));
  EXPECT_THAT(d.slot_mapping, ElementsAre(a1 * 16 + 4, b0 * 16 + 3, -1, -1));
  EXPECT_THAT(d.logit_rows, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(d.self.query_start, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(d.self.context_len, ElementsAre(21, 4, 1, 1));
  EXPECT_EQ(d.self.max_blocks, 3);
  EXPECT_THAT(d.self.block_tables, ElementsAre(a0, a1, -1, b0, -1, -1, a0, -1, -1, a0, -1, -1));
  const AttentionBatch cross = batch_.Cross();
  EXPECT_THAT(cross.context_len, ElementsAre(40, 40, 1, 1));
  EXPECT_EQ(cross.max_blocks, 4);
  EXPECT_THAT(cross.block_tables, ElementsAre(c[0], c[1], c[2], -1, c[0], c[1], c[2], -1, c[0], -1,
                                              -1, -1, c[0], -1, -1, -1));
  batch_.FillUp(4, 3, 4);  // it is
  EXPECT_EQ(batch_.logit_rows(), 2);
  EXPECT_EQ(batch_.rows(), 4);
}

TEST_F(StepBatchTest, ABatchIsItsOwnSizeAgainAfterClear) {
  AddDecode(0, 20);
  batch_.FillUp(4, 8, 0);
  batch_.Clear();
  EXPECT_TRUE(batch_.empty());
  AddDecode(0, 21);
  EXPECT_EQ(batch_.logit_rows(), 1);
  EXPECT_EQ(batch_.rows(), 1);
  EXPECT_EQ(batch_.Decoder().self.max_blocks, 2);
}

TEST_F(StepBatchTest, ATableMayHoldMoreBlocksThanItsContextNeeds) {
  tables_[0].Grow(100);
  AddDecode(0, 20);
  EXPECT_EQ(batch_.Decoder().self.max_blocks, 2);
}

TEST_F(StepBatchTest, OnlyDecodesMeansOneTokenEachAndItsLogits) {
  AddDecode(0, 20);
  EXPECT_TRUE(batch_.only_decodes());
  AddDecode(1, 3, {});  // the middle of a prompt
  EXPECT_FALSE(batch_.only_decodes());
  batch_.Clear();
  tables_[0].Grow(3);
  const std::vector<int32_t> tokens = {1, 2};
  batch_.Add({.tokens = tokens,
              .first_position = 0,
              .self = &tables_[0],
              .cross = nullptr,
              .cross_len = 0,
              .wanted = kWanted,
              .features = {},
              .feature_rows = {},
              .feature_offsets = {}});
  EXPECT_FALSE(batch_.only_decodes());
}

}  // namespace
}  // namespace sensorium
