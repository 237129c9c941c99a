// The attention ops on every backend and dtype: the truth, what may never be read, and that a
// row's bits depend on nothing but its own keys.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/reference/attention.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {
namespace {

constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16;

class AttentionTest : public OpsTest {
 protected:
  // Rounding of q, scores of a few units, P, and the result.
  Tolerance AttentionTolerance(DType y_type) const {
    return {ToleranceOf(y_type).result, 4 * ToleranceOf(dtype()).operation};
  }
};

// Sequences in an arena of NaN, their blocks in random order.
class PagedSequences {
 public:
  PagedSequences(Backend& be, std::mt19937& rng, KvLayout layout, std::vector<int64_t> lengths)
      : layout(layout), rng_(rng), be_(be), lengths(std::move(lengths)) {
    int64_t blocks = 3;  // some that nobody owns
    for (int64_t n : this->lengths) blocks += Blocks(n);
    max_blocks_ = 2;  // entries behind a sequence's blocks
    for (int64_t n : this->lengths) max_blocks_ = std::max(max_blocks_, Blocks(n) + 2);
    stride_ = be.KvBlockBytes(layout) + 64;
    arena_.resize(blocks * stride_ + 64);
    num_blocks_ = static_cast<int32_t>(blocks);
    ShuffleBlocks();
    const int64_t columns = int64_t{layout.kv_heads} * layout.head_dim;
    for (int64_t n : this->lengths) {
      k.push_back(Matrix::Random(rng, n, columns, be.dtype(), 5));
      v.push_back(Matrix::Random(rng, n, columns, be.dtype(), 5));
    }
  }

  // New homes for all blocks; what was stored is lost.
  void ShuffleBlocks() {
    std::vector<BlockId> ids(num_blocks_);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng_);
    // Garbage behind a sequence's own blocks: no op may follow it.
    table_.assign(lengths.size() * max_blocks_, 0x7fffffff);
    size_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s)
      for (int64_t b = 0; b < Blocks(lengths[s]); ++b) table_[s * max_blocks_ + b] = ids[next++];
    std::fill(arena_.begin(), arena_.end(), std::byte{0xff});  // NaN in every type
  }

  KvCacheView view() {
    const auto address = reinterpret_cast<uintptr_t>(arena_.data());
    return {arena_.data() + (64 - address % 64) % 64, stride_, num_blocks_, layout};
  }
  int64_t Slot(size_t s, int64_t position) const {
    return int64_t{table_[s * max_blocks_ + position / layout.block_size]} * layout.block_size +
           position % layout.block_size;
  }
  void Store(size_t s, int32_t layer, int64_t begin, int64_t end) {
    std::vector<int64_t> slots;
    for (int64_t i = begin; i < end; ++i) slots.push_back(Slot(s, i));
    be_.StoreKv(view(), layer, View(k[s]).Rows(begin, end).SplitColumns(layout.kv_heads),
                View(v[s]).Rows(begin, end).SplitColumns(layout.kv_heads), slots);
  }
  // Attention of rows of some sequences, whose tables are copied in that order.
  void Attend(Backend& be, TensorView y, ConstTensorView q, int32_t layer,
              const std::vector<size_t>& seqs, const std::vector<int32_t>& query_start,
              const std::vector<int32_t>& context_len, float scale, bool causal) {
    std::vector<BlockId> tables;
    for (size_t s : seqs)
      tables.insert(tables.end(), table_.begin() + s * max_blocks_,
                    table_.begin() + (s + 1) * max_blocks_);
    const AttentionBatch batch = {query_start, context_len, tables,
                                  static_cast<int32_t>(max_blocks_)};
    be.PagedAttention(y, q, view(), layer, batch, scale, causal);
  }
  BlockId block(size_t s, int64_t i) const { return table_[s * max_blocks_ + i]; }
  void Rename(size_t s, int64_t i, BlockId id) { table_[s * max_blocks_ + i] = id; }
  BlockId FreeBlock() const {
    BlockId id = 0;
    while (std::find(table_.begin(), table_.end(), id) != table_.end()) ++id;
    return id;
  }

  const KvLayout layout;

 private:
  int64_t Blocks(int64_t n) const { return (n + layout.block_size - 1) / layout.block_size; }

  std::mt19937& rng_;
  Backend& be_;

 public:
  const std::vector<int64_t> lengths;
  std::vector<Matrix> k, v;  // [length, kv_heads * head_dim] each

 private:
  int64_t max_blocks_ = 0;
  size_t stride_ = 0;
  int32_t num_blocks_ = 0;
  std::pmr::vector<std::byte> arena_;  // the blocks begin at its first multiple of 64 bytes
  std::vector<BlockId> table_;
};

TEST_P(AttentionTest, PagedMatchesTheReferenceInRaggedBatches) {
  struct Case {
    int32_t heads, kv_heads, head_dim, block_size;
  };
  for (const Case c : {Case{4, 4, 64, 16}, Case{6, 2, 80, 48}, Case{7, 1, 128, 32},
                       Case{2, 2, 16, 1024}, Case{28, 4, 64, 64}, Case{2, 1, 256, 32}}) {
    for (DType act : Acts()) {
      PagedSequences seqs(
          *be_, rng_,
          {.layers = 2, .kv_heads = c.kv_heads, .head_dim = c.head_dim, .block_size = c.block_size},
          {1, 97, 33, 130, 5});
      // New tokens: all of a prompt, a decode row, the end of a chunked prompt, nobody, all but
      // one.
      const std::vector<int32_t> rows = {1, 1, 18, 0, 4};
      std::vector<int32_t> query_start = {0}, context_len;
      for (size_t s = 0; s < rows.size(); ++s) {
        seqs.Store(s, 1, 0, seqs.lengths[s]);
        query_start.push_back(query_start.back() + rows[s]);
        context_len.push_back(static_cast<int32_t>(seqs.lengths[s]));
      }
      const int64_t columns = int64_t{c.heads} * c.head_dim;
      const Matrix q = Random(query_start.back(), columns, act);
      const float scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
      for (bool causal : {true, false}) {
        Matrix y = Poisoned(q.rows(), columns, act);
        seqs.Attend(*be_, y.view().SplitColumns(c.heads), View(q).SplitColumns(c.heads), 1,
                    {0, 1, 2, 3, 4}, query_start, context_len, scale, causal);
        reference::Array truth(q.rows(), columns), magnitude = truth;
        for (size_t s = 0; s < rows.size(); ++s) {
          reference::Array own(rows[s], columns);
          std::vector<int64_t> limits;
          for (int32_t i = 0; i < rows[s]; ++i) {
            for (int64_t d = 0; d < columns; ++d) {
              own(i, d) = q.GetAs(dtype(), query_start[s] + i, d);
            }
            limits.push_back(causal ? seqs.lengths[s] - rows[s] + i + 1 : seqs.lengths[s]);
          }
          const auto result = reference::Attention(own, Truth(seqs.k[s]), Truth(seqs.v[s]), c.heads,
                                                   c.kv_heads, limits, scale);
          std::copy(result.y.values.begin(), result.y.values.end(),
                    truth.values.begin() + query_start[s] * columns);
          std::copy(result.magnitude.values.begin(), result.magnitude.values.end(),
                    magnitude.values.begin() + query_start[s] * columns);
        }
        ExpectNear(y, truth, magnitude, AttentionTolerance(act));
      }
    }
  }
}

// A prompt in one piece; in random chunks among strangers, token by token, on one thread, in other
// blocks: the same bits.
TEST_P(AttentionTest, BitsDoNotDependOnChunksNeighboursBlocksOrThreads) {
  for (const auto& [heads, kv_heads, dims] :
       {std::tuple<int, int, int>{4, 4, 64}, {14, 2, 128}, {3, 1, 48}}) {
    const int64_t length = kForRaces ? 70 : 150, columns = int64_t{heads} * dims;
    PagedSequences seqs(*be_, rng_,
                        {.layers = 1, .kv_heads = kv_heads, .head_dim = dims, .block_size = 16},
                        {length, 70});
    const Matrix q = Random(length, columns, dtype()), stranger = Random(1, columns, dtype());
    const float scale = 0.2f;
    Matrix whole = Poisoned(length, columns, dtype());
    seqs.Store(0, 0, 0, length);
    seqs.Attend(*be_, whole.view().SplitColumns(heads), View(q).SplitColumns(heads), 0, {0},
                {0, static_cast<int32_t>(length)}, {static_cast<int32_t>(length)}, scale, true);

    const auto one_thread = MakeBackend(1);
    for (int64_t longest_chunk : {kForRaces ? 30 : 1, 40}) {
      seqs.ShuffleBlocks();
      seqs.Store(1, 0, 0, 70);
      for (int64_t begin = 0; begin < length;) {
        const int64_t n = std::min(length - begin, 1 + Below(longest_chunk));
        seqs.Store(0, 0, begin, begin + n);    // what comes later is still NaN
        Matrix rows(n + 1, columns, dtype());  // a stranger's decode row first
        std::memcpy(rows.view().bytes(), View(stranger).bytes(), columns * SizeOf(dtype()));
        for (int64_t i = 0; i < n; ++i)
          std::memcpy(rows.view().Rows(i + 1, i + 2).bytes(),
                      View(q).Rows(begin + i, begin + i + 1).bytes(), columns * SizeOf(dtype()));
        Matrix y = Poisoned(n + 1, columns, dtype());
        seqs.Attend(longest_chunk < 40 ? *one_thread : *be_, y.view().SplitColumns(heads),
                    View(rows).SplitColumns(heads), 0, {1, 0}, {0, 1, static_cast<int32_t>(n + 1)},
                    {70, static_cast<int32_t>(begin + n)}, scale, true);
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_TRUE(y.SameRowBits(i + 1, whole, begin + i))
              << "row " << begin + i << " in a chunk of " << n << " from " << begin;
        }
        begin += n;
      }
    }
  }
}

// A backend may cut a long context and merge the pieces: in one chunk, whose rows have different
// numbers of pieces, and token by token beside a stranger, the same bits, and the right ones.
TEST_P(AttentionTest, LongContextsAnswerAlikeInChunksAndTokenByToken) {
  for (const auto& [heads, kv_heads, dims] :
       {std::tuple<int, int, int>{2, 1, 64}, {2, 1, 128}, {2, 2, 48}}) {
    const int64_t length = 1050, first = 1000, rows = length - first;
    const int64_t columns = int64_t{heads} * dims;
    PagedSequences seqs(*be_, rng_,
                        {.layers = 1, .kv_heads = kv_heads, .head_dim = dims, .block_size = 32},
                        {length, 600});
    seqs.Store(0, 0, 0, length);
    seqs.Store(1, 0, 0, 600);
    const Matrix q = Random(rows, columns, dtype());
    const float scale = 0.2f;
    Matrix whole = Poisoned(rows, columns, dtype());
    seqs.Attend(*be_, whole.view().SplitColumns(heads), View(q).SplitColumns(heads), 0, {0},
                {0, static_cast<int32_t>(rows)}, {static_cast<int32_t>(length)}, scale, true);
    reference::Array own(rows, columns);
    std::vector<int64_t> limits;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < columns; ++d) own(r, d) = q.GetAs(dtype(), r, d);
      limits.push_back(first + r + 1);
    }
    const auto truth = reference::Attention(own, Truth(seqs.k[0]), Truth(seqs.v[0]), heads,
                                            kv_heads, limits, scale);
    ExpectNear(whole, truth.y, truth.magnitude, AttentionTolerance(dtype()));

    for (int64_t r = 0; r < rows; r += kForRaces ? 49 : 7) {
      Matrix two(2, columns, dtype()), y = Poisoned(2, columns, dtype());
      for (int64_t i = 0; i < 2; ++i) {
        std::memcpy(two.view().Rows(i, i + 1).bytes(), View(q).Rows(r, r + 1).bytes(),
                    columns * SizeOf(dtype()));
      }
      seqs.Attend(*be_, y.view().SplitColumns(heads), View(two).SplitColumns(heads), 0, {1, 0},
                  {0, 1, 2}, {600, static_cast<int32_t>(first + r + 1)}, scale, true);
      EXPECT_TRUE(y.SameRowBits(1, whole, r)) << r;
    }
  }
}

// A later token of a chunk may hold a NaN or an infinity (a sequence that overflowed): the rows
// before it have the bits they have without it, and those that see it say so where it is.
TEST_P(AttentionTest, WhatALaterTokenHoldsNeverReachesTheRowsBefore) {
  struct Bad {
    int64_t token, dim;
    float value;
  };
  const Bad kBad[] = {{61, 3, NAN}, {78, 10, INFINITY}, {79, 11, -INFINITY}};
  constexpr int64_t kNaNKey = 100, kLength = 110, kFirst = 45, kRows = kLength - kFirst;
  for (const auto& [heads, kv_heads, dims] :
       {std::tuple<int, int, int>{2, 1, 64}, {3, 3, 128}, {2, 1, 48}}) {
    const int64_t columns = int64_t{heads} * dims;
    PagedSequences seqs(*be_, rng_,
                        {.layers = 1, .kv_heads = kv_heads, .head_dim = dims, .block_size = 16},
                        {kLength});
    const Matrix q = Random(kRows, columns, dtype());
    const auto run = [&] {
      Matrix y = Poisoned(kRows, columns, dtype());
      seqs.Store(0, 0, 0, kLength);
      seqs.Attend(*be_, y.view().SplitColumns(heads), View(q).SplitColumns(heads), 0, {0},
                  {0, static_cast<int32_t>(kRows)}, {static_cast<int32_t>(kLength)}, 0.2f, true);
      return y;
    };
    const Matrix clean = run();
    for (int64_t h = 0; h < kv_heads; ++h) {
      for (const Bad& bad : kBad) seqs.v[0].Set(bad.token, h * dims + bad.dim, bad.value);
      seqs.k[0].Set(kNaNKey, h * dims + 1, NAN);
    }
    const Matrix y = run();
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t token = kFirst + r;
      for (int64_t c = 0; c < columns; ++c) {
        bool sees = token >= kNaNKey;
        for (const Bad& bad : kBad) sees |= c % dims == bad.dim && token >= bad.token;
        if (sees) {
          ASSERT_FALSE(std::isfinite(y.Get(r, c))) << "token " << token << ", column " << c;
        } else {
          ASSERT_EQ(y.Get(r, c), clean.Get(r, c)) << "token " << token << ", column " << c;
        }
      }
    }
  }
}

TEST_P(AttentionTest, ACopiedBlockAnswersLikeItsOriginal) {
  PagedSequences seqs(*be_, rng_, {.layers = 3, .kv_heads = 2, .head_dim = 32, .block_size = 32},
                      {50});
  for (int32_t layer = 0; layer < 3; ++layer) seqs.Store(0, layer, 0, 50);
  const Matrix q = Random(1, 64, dtype());
  for (int32_t layer = 0; layer < 3; ++layer) {
    Matrix before = Poisoned(1, 64, dtype()), after = before;
    seqs.Attend(*be_, before.view().SplitColumns(2), View(q).SplitColumns(2), layer, {0}, {0, 1},
                {50}, 1.f, true);
    const BlockId copy = seqs.FreeBlock();
    be_->CopyKvBlock(seqs.view(), copy, seqs.block(0, 1));
    seqs.Rename(0, 1, copy);
    seqs.Attend(*be_, after.view().SplitColumns(2), View(q).SplitColumns(2), layer, {0}, {0, 1},
                {50}, 1.f, true);
    EXPECT_TRUE(after.SameRowBits(0, before, 0));
  }
}

TEST_P(AttentionTest, StoreWritesItsSlotsAloneAndSkipsNegativeOnes) {
  const KvLayout layout = {.layers = 2, .kv_heads = 3, .head_dim = 48, .block_size = 48};
  const size_t bytes = be_->KvBlockBytes(layout);
  EXPECT_EQ(bytes % 64, 0u);
  std::pmr::vector<std::byte> arena(2 * bytes + 64, std::byte{0xff});
  std::byte* blocks = arena.data() + (64 - reinterpret_cast<uintptr_t>(arena.data()) % 64) % 64;
  const KvCacheView kv = {blocks, bytes, 2, layout};
  const Matrix k = Random(4, 144, dtype()), v = Random(4, 144, dtype());
  const std::vector<int64_t> slots = {95, -1, 3, 4};
  be_->StoreKv(kv, 1, View(k).SplitColumns(3), View(v).SplitColumns(3), slots);
  size_t written = 0;
  for (size_t i = 0; i < 2 * bytes; i += SizeOf(dtype())) {
    written += std::any_of(blocks + i, blocks + i + SizeOf(dtype()),
                           [](std::byte b) { return b != std::byte{0xff}; });
  }
  EXPECT_EQ(written, 3u * 2 * 144);  // three tokens' K and V
}

TEST_P(AttentionTest, EncoderMatchesTheReference) {
  struct Case {
    int64_t seqs, heads, dims, q_len, kv_len;
  };
  for (const Case c :
       {Case{1, 2, 64, kForRaces ? 130 : 577, 577}, Case{1, 1, 64, kForRaces ? 20 : 100, 1500},
        Case{2, 3, 80, 97, 97}, Case{kForRaces ? 30 : 300, 4, 64, 1, 4}, Case{3, 2, 5, 7, 33},
        Case{2, 1, 128, 31, 1}, Case{1, 1, 33, 50, 31}}) {
    for (DType act : Acts()) {
      const int64_t columns = c.heads * c.dims;
      const Matrix q = Random(c.seqs * c.q_len, columns, act);
      const Matrix k = Random(c.seqs * c.kv_len, columns, act);
      const Matrix v = Random(c.seqs * c.kv_len, columns, act);
      const float scale = 1 / std::sqrt(static_cast<float>(c.dims));
      Matrix y = Poisoned(q.rows(), columns, act);
      be_->EncoderAttention(y.view().SplitColumns(c.heads), View(q).SplitColumns(c.heads),
                            View(k).SplitColumns(c.heads), View(v).SplitColumns(c.heads), c.seqs,
                            scale);
      reference::Array truth(q.rows(), columns), magnitude = truth;
      const auto part = [&](const Matrix& m, int64_t rows, int64_t s) {
        reference::Array a(rows, columns);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t d = 0; d < columns; ++d) a(r, d) = m.GetAs(dtype(), s * rows + r, d);
        return a;
      };
      for (int64_t s = 0; s < c.seqs; ++s) {
        const auto result =
            reference::Attention(part(q, c.q_len, s), part(k, c.kv_len, s), part(v, c.kv_len, s),
                                 c.heads, c.heads, std::vector<int64_t>(c.q_len, c.kv_len), scale);
        std::copy(result.y.values.begin(), result.y.values.end(),
                  truth.values.begin() + s * c.q_len * columns);
        std::copy(result.magnitude.values.begin(), result.magnitude.values.end(),
                  magnitude.values.begin() + s * c.q_len * columns);
      }
      ExpectNear(y, truth, magnitude, AttentionTolerance(act));
    }
  }
}

// Large scores: the maximum is subtracted, so one key takes it all and nothing overflows.
TEST_P(AttentionTest, LargeScoresNeitherOverflowNorLeak) {
  const int64_t keys = 70, dims = 32;
  Matrix q(1, dims, dtype()), k(keys, dims, dtype()), v(keys, dims, dtype());
  for (int64_t d = 0; d < dims; ++d) q.Set(0, d, 100);
  for (int64_t i = 0; i < keys; ++i) {
    for (int64_t d = 0; d < dims; ++d) {
      k.Set(i, d, i == 37 ? 100 : static_cast<float>(-i));
      v.Set(i, d, static_cast<float>(i));
    }
  }
  Matrix y = Poisoned(1, dims, dtype());
  be_->EncoderAttention(y.view().SplitColumns(1), View(q).SplitColumns(1), View(k).SplitColumns(1),
                        View(v).SplitColumns(1), 1, 1.f);
  for (int64_t d = 0; d < dims; ++d) EXPECT_EQ(y.Get(0, d), 37.f);
}

TEST_P(AttentionTest, EncoderBitsDoNotDependOnNeighboursOrThreads) {
  const int64_t seqs = 5, heads = 3, dims = 64, q_len = 45, kv_len = 77, columns = heads * dims;
  const Matrix q = Random(seqs * q_len, columns, dtype());
  const Matrix k = Random(seqs * kv_len, columns, dtype());
  const Matrix v = Random(seqs * kv_len, columns, dtype());
  Matrix all = Poisoned(seqs * q_len, columns, dtype());
  const auto run = [&](Backend& be, TensorView y, ConstTensorView q_rows, int64_t first,
                       int64_t n) {
    be.EncoderAttention(y.SplitColumns(heads), q_rows.SplitColumns(heads),
                        View(k).Rows(first * kv_len, (first + n) * kv_len).SplitColumns(heads),
                        View(v).Rows(first * kv_len, (first + n) * kv_len).SplitColumns(heads), n,
                        0.125f);
  };
  run(*be_, all.view(), View(q), 0, seqs);
  const auto one_thread = MakeBackend(1);
  for (int64_t s = 0; s < seqs; ++s) {
    Matrix alone = Poisoned(q_len, columns, dtype());
    run(*one_thread, alone.view(), View(q).Rows(s * q_len, (s + 1) * q_len), s, 1);
    for (int64_t r = 0; r < q_len; ++r) EXPECT_TRUE(alone.SameRowBits(r, all, s * q_len + r));
    const int64_t r = Below(q_len);  // one query alone
    Matrix single = Poisoned(1, columns, dtype());
    run(*be_, single.view(), View(q).Rows(s * q_len + r, s * q_len + r + 1), s, 1);
    EXPECT_TRUE(single.SameRowBits(0, all, s * q_len + r));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsOfEveryOp()),
                                            ::testing::Values(kF32, kBf16)),
                         OpsTestName);

}  // namespace
}  // namespace sensorium
