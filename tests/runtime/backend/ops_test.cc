// Every op of the seam but attention (attention_test.cc) on every backend and dtype, against
// tests/reference.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "tests/reference/linear.h"
#include "tests/reference/norms.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {
namespace {

constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
constexpr int64_t kWidths[] = {1, 97, 128, 1027};  // tails and whole vectors

TEST_P(OpsTest, RmsNormMatchesTheReference) {
  for (DType x_type : Acts()) {
    for (DType y_type : Acts()) {
      for (int64_t n : kWidths) {
        const Matrix x = Random(7, n, x_type);
        const std::pmr::vector<float> weight = RandomVector(rng_, n);
        const reference::Array truth = reference::RmsNorm(Truth(x), Truth(weight), 1e-5);
        const Tolerance t = {ToleranceOf(y_type).result, ToleranceOf(x_type).operation};
        Matrix y = Poisoned(7, n, y_type);
        be_->RmsNorm(y.view(), View(x), Vector(weight), 1e-5f);
        ExpectNear(y, truth, truth, t);

        Matrix in_place = x;
        be_->RmsNorm(in_place.view(), View(in_place), Vector(weight), 1e-5f);
        if (x_type == y_type) {
          for (int64_t r = 0; r < 7; ++r) EXPECT_TRUE(in_place.SameRowBits(r, y, r));
        }

        if (y_type != kF32) continue;
        Matrix sum = Random(7, n, kF32);
        reference::Array sum_truth = Truth(sum);
        for (size_t i = 0; i < truth.values.size(); ++i) sum_truth.values[i] += truth.values[i];
        be_->AddRmsNorm(sum.view(), View(x), Vector(weight), 1e-5f);
        ExpectNear(sum, sum_truth, truth, t);
      }
    }
  }
}

TEST_P(OpsTest, LayerNormMatchesTheReferenceFarFromZero) {
  for (DType x_type : Acts()) {
    for (DType y_type : Acts()) {
      for (int64_t n : kWidths) {
        Matrix x = Random(5, n, x_type);
        for (int64_t c = 0; c < n; ++c) x.Set(2, c, x.Get(2, c) + 100);  // a mean that cancels
        const std::pmr::vector<float> weight = RandomVector(rng_, n), bias = RandomVector(rng_, n);
        const reference::Array truth =
            reference::LayerNorm(Truth(x), Truth(weight), Truth(bias), 1e-5);
        reference::Array magnitude = truth;
        for (int64_t r = 0; r < 5; ++r) {
          for (int64_t c = 0; c < n; ++c) {
            magnitude(r, c) = std::fabs(bias[c]) + 10 * std::fabs(weight[c]);
            if (r == 2) magnitude(r, c) *= 10;  // 100 / sigma: relative errors of x - mean
          }
        }
        Matrix y = Poisoned(5, n, y_type);
        be_->LayerNorm(y.view(), View(x), Vector(weight), Vector(bias), 1e-5f);
        ExpectNear(y, truth, magnitude, {ToleranceOf(y_type).result, ToleranceOf(kF32).operation});

        if (x_type != y_type) continue;
        be_->LayerNorm(x.view(), View(x), Vector(weight), Vector(bias), 1e-5f);
        for (int64_t r = 0; r < 5; ++r) EXPECT_TRUE(x.SameRowBits(r, y, r));
      }
    }
  }
}

TEST_P(OpsTest, SiluMulMatchesTheReferenceAtAnyMagnitude) {
  for (DType in : Acts()) {
    for (DType out : Acts()) {
      for (int64_t n : {int64_t{1}, int64_t{97}, int64_t{20011}}) {
        const Matrix up = Random(3, n, in);
        Matrix gate = Random(3, n, in);
        for (int64_t c = 0; c < n; ++c) gate.Set(1, c, gate.Get(1, c) * 40);
        const reference::Array truth = reference::SiluMul(Truth(up), Truth(gate));
        reference::Array magnitude = truth;
        // Below e^-87 the sigmoid is 0: an absolute error of 1e-37 |gate up|.
        for (size_t i = 0; i < truth.values.size(); ++i)
          magnitude.values[i] = std::fabs(truth.values[i]) + 1e-28;
        Matrix y = Poisoned(3, n, out);
        be_->SiluMul(y.view(), View(up), View(gate));
        ExpectNear(y, truth, magnitude, {ToleranceOf(out).result, ToleranceOf(kF32).operation});
      }
    }
  }
}

TEST_P(OpsTest, RopeMatchesTheReferenceAtLongPositions) {
  for (DType t : Acts()) {
    for (int64_t dims : {2, 34, 64, 128}) {
      const int64_t heads = 3;
      std::vector<float> inv_freq(dims / 2);
      for (int64_t i = 0; i < dims / 2; ++i)
        inv_freq[i] = static_cast<float>(std::pow(10000.0, -2.0 * i / dims));
      const std::vector<int32_t> positions = {0, 1, 4095, 131071, 77};
      for (int repeat = 0; repeat < 2; ++repeat) {  // the second time from the remembered angles
        Matrix x = Random(5, heads * dims, t);
        const reference::Array truth = reference::Rope(Truth(x), positions, inv_freq);
        const reference::Array magnitude(5, heads * dims);
        reference::Array one = magnitude;
        std::fill(one.values.begin(), one.values.end(), 4.0);
        be_->Rope(x.view().SplitColumns(heads), positions, inv_freq);
        ExpectNear(x, truth, one, {ToleranceOf(t).result, ToleranceOf(kF32).operation});
      }
      // Fewer tokens, other positions: nothing of the last call is left.
      Matrix x = Random(2, heads * dims, t);
      const std::vector<int32_t> others = {0, 2};
      const reference::Array truth = reference::Rope(Truth(x), others, inv_freq);
      reference::Array one(2, heads * dims);
      std::fill(one.values.begin(), one.values.end(), 4.0);
      be_->Rope(x.view().SplitColumns(heads), others, inv_freq);
      ExpectNear(x, truth, one, {ToleranceOf(t).result, ToleranceOf(kF32).operation});
    }
  }
}

TEST_P(OpsTest, EmbedReadsStackedTablesOfAnyTypeExactly) {
  for (DType table_type : {kF32, kBf16, kF16}) {
    for (int64_t n : {1, 97, 1025}) {
      // Odd addresses: a safetensors file aligns to nothing.
      const Matrix first = Matrix::Random(rng_, 5, n, table_type, 0, 1);
      const Matrix second = Matrix::Random(rng_, 3, n, table_type, 2, 0);
      const ConstTensorView parts[] = {View(first), View(second)};
      const auto table = be_->MakeTable(parts);
      EXPECT_EQ(table->rows(), 8);
      EXPECT_EQ(table->columns(), n);
      const auto value = [&](int32_t id, int64_t c) {
        return id < 5 ? first.GetAs(dtype(), id, c) : second.GetAs(dtype(), id - 5, c);
      };
      const std::vector<int32_t> ids = {7, -1, 0, 5, 4, 0};
      Matrix y = Poisoned(6, n, kF32), sum = Random(6, n, kF32);
      const Matrix before = sum, untouched = y;
      be_->Embed(y.view(), *table, ids, /*add=*/false);
      be_->Embed(sum.view(), *table, ids, /*add=*/true);
      for (int64_t r = 0; r < 6; ++r) {
        if (ids[r] < 0) {
          EXPECT_TRUE(y.SameRowBits(r, untouched, r));
          EXPECT_TRUE(sum.SameRowBits(r, before, r));
          continue;
        }
        for (int64_t c = 0; c < n; ++c) {
          ASSERT_EQ(y.Get(r, c), value(ids[r], c));
          ASSERT_EQ(sum.Get(r, c), before.Get(r, c) + value(ids[r], c));
        }
      }
      EXPECT_TRUE(y.PaddingUntouched() && sum.PaddingUntouched());
    }
  }
}

TEST_P(OpsTest, CopiesConvertBetweenActivationsExactly) {
  for (DType from : Acts()) {
    for (DType to : Acts()) {
      for (int64_t n : {97, 1024, 1025, 2049}) {
        const Matrix x = Random(3, n, from);
        Matrix y = Poisoned(3, n, to);
        be_->Copy(y.view(), View(x));
        for (int64_t r = 0; r < 3; ++r)
          for (int64_t c = 0; c < n; ++c) ASSERT_EQ(y.Get(r, c), x.GetAs(to, r, c));
        EXPECT_TRUE(y.PaddingUntouched());
      }
    }
    const std::pmr::vector<float> host = RandomVector(rng_, 9 * 97);
    Matrix x = Poisoned(9, 97, from);
    be_->CopyFromHost(x.view(), host);
    Matrix rounded(1, 9 * 97, from);
    for (int64_t i = 0; i < 9 * 97; ++i) rounded.Set(0, i, host[i]);
    for (int64_t i = 0; i < 9 * 97; ++i) ASSERT_EQ(x.Get(i / 97, i % 97), rounded.Get(0, i));
    EXPECT_TRUE(x.PaddingUntouched());
    if (from != kF32) continue;
    std::pmr::vector<float> back(9 * 97);
    be_->CopyToHost(back, View(x));
    EXPECT_EQ(back, host);
  }
}

TEST_P(OpsTest, UploadWidensAnyTypeExactly) {
  for (DType t : {kF32, kBf16, kF16}) {
    const Matrix x = Random(4, 33, t);
    const auto buffer = be_->UploadFloat32(View(x));
    ASSERT_EQ(buffer->size_bytes(), 4u * 33 * 4);
    std::vector<float> y(4 * 33);
    be_->CopyToHost(y, ConstTensorView(buffer->data(), kF32, {4, 33}));
    for (int64_t i = 0; i < 4 * 33; ++i) ASSERT_EQ(y[i], x.Get(i / 33, i % 33));
  }
  // Every float16 there is, infinities, denormals and NaNs among them.
  Matrix all(64, 1024, kF16);
  for (int i = 0; i < 65536; ++i) all.SetBits(i / 1024, i % 1024, static_cast<uint16_t>(i));
  const auto buffer = be_->UploadFloat32(View(all));
  std::vector<float> y(65536);
  be_->CopyToHost(y, ConstTensorView(buffer->data(), kF32, {64, 1024}));
  for (int i = 0; i < 65536; ++i) {
    const float truth = static_cast<float>(FromFloat16(static_cast<uint16_t>(i)));
    ASSERT_TRUE(y[i] == truth || (std::isnan(y[i]) && std::isnan(truth))) << i;
  }
}

TEST_P(OpsTest, RowsAreGatheredScatteredAndAveraged) {
  for (DType t : Acts()) {
    for (int64_t n : {1, 97, 1025}) {
      const Matrix x = Random(12, n, t);
      const std::vector<int32_t> rows = {11, 3, 3, 0};
      Matrix gathered = Poisoned(4, n, t);
      be_->GatherRows(gathered.view(), View(x), rows);
      for (int64_t r = 0; r < 4; ++r) EXPECT_TRUE(gathered.SameRowBits(r, x, rows[r]));
      EXPECT_TRUE(gathered.PaddingUntouched());

      const std::vector<int32_t> to = {5, 0, 2, 7};
      Matrix sum = Random(8, n, kF32);
      const Matrix before = sum;
      be_->ScatterAddRows(sum.view(), View(gathered), to);
      for (int64_t r = 0; r < 8; ++r) {
        const auto at = std::find(to.begin(), to.end(), r);
        for (int64_t c = 0; c < n; ++c) {
          const float add = at == to.end() ? 0.f : gathered.Get(at - to.begin(), c);
          ASSERT_EQ(sum.Get(r, c), before.Get(r, c) + add);
        }
      }

      Matrix mean = Poisoned(3, n, t);
      be_->MeanRows(mean.view(), View(x), 4);
      const reference::Array truth = reference::MeanRows(Truth(x), 4);
      reference::Array one(3, n);
      std::fill(one.values.begin(), one.values.end(), 4.0);
      ExpectNear(mean, truth, one, {ToleranceOf(t).result, ToleranceOf(kF32).operation});
    }
  }
}

// What a library may make, where a backend has one.
class ProductTest : public OpsTest {};

TEST_P(ProductTest, LinearMatchesTheReference) {
  for (DType x_type : Acts()) {
    for (DType y_type : Acts()) {
      for (Activation act : {Activation::kNone, Activation::kGelu, Activation::kQuickGelu}) {
        const int64_t rows = 14, in = 97, out = 71;
        const Matrix x = Random(rows, in, x_type), w = Random(out, in, kF32),
                     b = Random(out, 1, kF32);
        const LinearSource source = {View(w), b.vector()};
        const auto packed = be_->PackLinear({&source, 1});
        reference::Array bias(1, out);
        for (int64_t o = 0; o < out; ++o) bias(0, o) = b.Get(o, 0);
        const reference::Array truth =
            reference::Linear(Truth(x, dtype()), Truth(w, dtype()), bias, act);
        // Of |x| |W|: the sum over in = 97 products of absolute values has mean 0.64 * 97.
        reference::Array magnitude(rows, out);
        std::fill(magnitude.values.begin(), magnitude.values.end(), 100.0);
        const Tolerance t = {ToleranceOf(y_type).result, ToleranceOf(kF32).operation};
        Matrix y = Poisoned(rows, out, y_type);
        be_->Linear(y.view(), View(x), *packed, act);
        ExpectNear(y, truth, magnitude, t);
        if (act != Activation::kNone || y_type != kF32) continue;
        Matrix sum = Random(rows, out, kF32);
        reference::Array sum_truth = Truth(sum);
        for (size_t i = 0; i < truth.values.size(); ++i) sum_truth.values[i] += truth.values[i];
        be_->AddLinear(sum.view(), View(x), *packed);
        ExpectNear(sum, sum_truth, magnitude, t);
      }
    }
  }
}

// One row less, as many and one more than a tile of 16 or 64 rows, and more than two.
TEST_P(ProductTest, LinearMatchesTheReferenceAtTheEdgesOfItsTiles) {
  const int64_t in = 97, out = 71;
  const Matrix w = Random(out, in, kF32), b = Random(out, 1, kF32);
  const LinearSource source = {View(w), b.vector()};
  const auto packed = be_->PackLinear({&source, 1});
  reference::Array bias(1, out);
  for (int64_t o = 0; o < out; ++o) bias(0, o) = b.Get(o, 0);
  for (int64_t rows : {1, 15, 16, 17, 63, 64, 65, 130}) {
    const Matrix x = Random(rows, in, dtype());
    const reference::Array truth =
        reference::Linear(Truth(x), Truth(w, dtype()), bias, Activation::kNone);
    reference::Array magnitude(rows, out);
    std::fill(magnitude.values.begin(), magnitude.values.end(), 100.0);  // as above
    Matrix y = Poisoned(rows, out, kF32);
    be_->Linear(y.view(), View(x), *packed);
    ExpectNear(y, truth, magnitude, ToleranceOf(kF32));
  }
}

TEST_P(ProductTest, Conv1dMatchesTheReference) {
  for (DType x_type : Acts()) {
    for (const auto& [stride, in, frames] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 21, 31}, {2, 21, 31}, {2, 130, 5}}) {
      const int64_t seqs = 2, out = 37, kernel = 3;
      const int64_t frames_out = (frames - 1) / stride + 1;
      const Matrix x = Random(seqs * frames, in, x_type), b = Random(out, 1, kF32);
      const Matrix w = Matrix::Random(rng_, out, in * kernel, kF32);
      reference::Array bias(1, out);
      for (int64_t o = 0; o < out; ++o) bias(0, o) = b.Get(o, 0);
      const auto packed = be_->PackConv1d(View(w).Reshape({out, in, kernel}), b.vector());
      const reference::Array truth = reference::Conv1d(Truth(x, dtype()), Truth(w, dtype()), bias,
                                                       seqs, kernel, stride, Activation::kGelu);
      reference::Array magnitude = truth;
      std::fill(magnitude.values.begin(), magnitude.values.end(), in < 100 ? 100.0 : 400.0);
      const bool rounded = fast() && dtype() == kBf16;
      reference::Array one = truth;
      std::fill(one.values.begin(), one.values.end(), 1.0);
      Matrix y = Poisoned(seqs * frames_out, out, kF32);
      be_->Conv1d(y.view(), View(x), *packed, seqs, kernel, stride, Activation::kGelu);
      ExpectNear(y, truth, rounded ? one : magnitude, rounded ? kRoundedSums : ToleranceOf(kF32));
    }
  }
}

class MixtureTest : public OpsTest {
 protected:
  void Check(int64_t tokens, int64_t width, int64_t ffn, int64_t num_experts, int64_t chosen);
};

TEST_P(MixtureTest, MixtureOfExpertsMatchesTheReference) { Check(9, 33, 19, 6, 2); }
// Each expert has all tokens: more than a tile of 64 rows.
TEST_P(MixtureTest, AnExpertMayHaveMoreTokensThanATile) { Check(70, 33, 19, 2, 2); }
// More columns than one CTA adds.
TEST_P(MixtureTest, ExpertsAddUpInWideRows) { Check(2, 1030, 5, 3, 2); }

void MixtureTest::Check(const int64_t tokens, const int64_t width, const int64_t ffn,
                        const int64_t num_experts, const int64_t chosen) {
  std::vector<ExpertWeights> experts;
  std::vector<reference::Expert> truths;
  for (int64_t e = 0; e < num_experts; ++e) {
    const Matrix up_gate = Random(2 * ffn, width, kF32), down = Random(width, ffn, kF32);
    const LinearSource a = {View(up_gate), {}}, b = {View(down), {}};
    experts.push_back({be_->PackLinear({&a, 1}), be_->PackLinear({&b, 1})});
    truths.push_back({Truth(up_gate, dtype()), Truth(down, dtype())});
  }
  const Matrix logits = Random(tokens, num_experts, kF32);
  const reference::Route route = reference::MoeRoute(Truth(logits), chosen);
  std::pmr::vector<int32_t> ids(tokens * chosen, -7);
  const TensorView ids_view(reinterpret_cast<std::byte*>(ids.data()), DType::kInt32,
                            {tokens, chosen});
  Matrix weights(tokens, chosen, kF32);
  be_->MoeRoute(ids_view, weights.view(), View(logits));
  EXPECT_TRUE(std::ranges::equal(ids, route.ids));
  for (int64_t i = 0; i < tokens * chosen; ++i)
    ASSERT_NEAR(weights.Get(i / chosen, i % chosen), route.weights[i], 1e-6);

  for (DType x_type : Acts()) {
    Matrix x = Random(tokens, width, x_type);
    // A wide row's inputs are mostly zero: its sums have as many terms, and roundings, as a narrow
    // one's.
    for (int64_t c = 0; width > 100 && c < width; ++c)
      for (int64_t t = 0; c % 31 != 0 && t < tokens; ++t) x.Set(t, c, 0);
    Matrix y = Random(tokens, width, kF32);
    const reference::Array truth =
        reference::AddMoe(Truth(y), Truth(x, dtype()), route.ids, route.weights, truths);
    // What rounding the hidden layer costs: the sum of |down| |hidden| instead of down hidden.
    reference::Array magnitude(tokens, width);
    const reference::Array in = Truth(x, dtype());
    for (int64_t i = 0; i < tokens * chosen; ++i) {
      const reference::Expert& e = truths[route.ids[i]];
      const reference::Array both =
          reference::Linear(in, e.up_gate, reference::Array(1, 2 * ffn), Activation::kNone);
      for (int64_t f = 0; f < ffn; ++f) {
        const int64_t t = i / chosen;
        const double gate = both(t, ffn + f), hidden = gate / (1 + std::exp(-gate)) * both(t, f);
        for (int64_t c = 0; c < width; ++c)
          magnitude(t, c) += route.weights[i] * std::fabs(e.down(c, f) * hidden);
      }
    }
    be_->AddMoe(y.view(), View(x), ids_view, View(weights), experts);
    ExpectNear(y, truth, magnitude, {ToleranceOf(kF32).result, ToleranceOf(dtype()).operation / 2});
  }
}

// One and two experts a lane of a warp, and one lane that has one more.
TEST_P(OpsTest, RouterMatchesTheReferenceWithMoreExpertsThanAWarpHasLanes) {
  constexpr int64_t kTokens = 5, kChosen = 8;
  for (int64_t experts : {32, 33, 64}) {
    const Matrix logits = Random(kTokens, experts, kF32);
    const reference::Route route = reference::MoeRoute(Truth(logits), kChosen);
    std::pmr::vector<int32_t> ids(kTokens * kChosen, -7);
    Matrix weights(kTokens, kChosen, kF32);
    be_->MoeRoute({reinterpret_cast<std::byte*>(ids.data()), DType::kInt32, {kTokens, kChosen}},
                  weights.view(), View(logits));
    EXPECT_TRUE(std::ranges::equal(ids, route.ids)) << experts;
    for (int64_t i = 0; i < kTokens * kChosen; ++i)
      ASSERT_NEAR(weights.Get(i / kChosen, i % kChosen), route.weights[i], 1e-6) << experts;
  }
}

TEST_P(OpsTest, RouterPrefersTheLowestIdOnTiesAndNumbersToNaN) {
  Matrix wide(3, 9, kF32);  // what is not set is NaN
  for (int r = 0; r < 3; ++r)
    for (int e = 6; e < 9; ++e) wide.Set(r, e, 100);  // no experts: behind a row's end
  const ConstTensorView logits = View(wide).Columns(0, 6);
  const float rows[2][6] = {{1, 3, 2, 3, -5, 2}, {0, 0, 0, 0, 0, 0}};
  for (int r = 0; r < 2; ++r)
    for (int e = 0; e < 6; ++e) wide.Set(r, e, rows[r][e]);
  std::pmr::vector<int32_t> ids(3 * 4, -1);
  Matrix weights(3, 4, kF32);
  const TensorView ids_view(reinterpret_cast<std::byte*>(ids.data()), DType::kInt32, {3, 4});
  be_->MoeRoute(ids_view, weights.view(), logits);
  EXPECT_EQ(ids, (std::pmr::vector<int32_t>{1, 3, 2, 5, 0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(weights.Get(1, 3), 1.f / 6);
}

// Each op on one row at a time gives the bits of that row in the batch.
TEST_P(OpsTest, ARowNeverSeesItsNeighbours) {
  const int64_t rows = 23, n = 131;
  const std::pmr::vector<float> weight = RandomVector(rng_, n), bias = RandomVector(rng_, n);
  const Matrix w = Random(n, n, kF32);
  const LinearSource source = {View(w), {}};
  const auto packed = be_->PackLinear({&source, 1});
  const std::vector<float> inv_freq = {1.f, 0.1f, 0.01f};
  std::vector<int32_t> positions(rows);
  for (int32_t& p : positions) p = static_cast<int32_t>(Below(5000));
  const Matrix x = Random(rows, n, dtype()), other = Random(rows, n, dtype());
  const auto run = [&](int op, TensorView y, int64_t begin, int64_t end) {
    const ConstTensorView in = View(x).Rows(begin, end), up = View(other).Rows(begin, end);
    if (op == 0) be_->RmsNorm(y, in, Vector(weight), 1e-5f);
    if (op == 1) be_->LayerNorm(y, in, Vector(weight), Vector(bias), 1e-5f);
    if (op == 2) be_->SiluMul(y, up, in);
    if (op == 3) be_->Linear(y, in, *packed, Activation::kGelu);
    if (op == 4) {
      be_->Copy(y, in);
      be_->Rope(y.Columns(0, 126).SplitColumns(21),
                std::span(positions).subspan(begin, end - begin), inv_freq);
    }
  };
  for (int op = 0; op < 5; ++op) {
    Matrix all = Poisoned(rows, n, dtype());
    run(op, all.view(), 0, rows);
    for (int64_t begin = 0; begin < rows;) {
      const int64_t end = std::min(rows, begin + 1 + Below(5));
      Matrix part = Poisoned(end - begin, n, dtype());
      run(op, part.view(), begin, end);
      for (int64_t r = begin; r < end; ++r) {
        EXPECT_TRUE(part.SameRowBits(r - begin, all, r)) << "op " << op << " row " << r;
      }
      begin = end;
    }
  }
}

TEST_P(OpsTest, QuantisedWeightsAreRefusedByNameWithWhatIsSupported) {
  for (DType t : {kF32, kBf16, kF16}) EXPECT_TRUE(be_->PacksLinear(t).ok()) << Name(t);
  for (DType t : {DType::kInt8, DType::kInt4, DType::kFloat8E4M3, DType::kInt32}) {
    const absl::Status status = be_->PacksLinear(t);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "weights of " + std::string(Name(t)) +
                                    " are not supported by this device (" + be_->description() +
                                    "): it takes float32, bfloat16 and float16");
  }
}

TEST_P(OpsTest, EmptyBatchesDoNothing) {
  const TensorView none(nullptr, dtype(), {0, 16}), none_f32(nullptr, kF32, {0, 16});
  const std::pmr::vector<float> weight(16, 1.f);
  be_->RmsNorm(none, none, Vector(weight), 1e-5f);
  be_->SiluMul(none, none, none);
  be_->Copy(none, none);
  be_->GatherRows(none_f32, none_f32, {});
  be_->Rope(none.SplitColumns(2), {}, std::vector<float>(4));
}

INSTANTIATE_TEST_SUITE_P(Backends, OpsTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsOfEveryOp()),
                                            ::testing::Values(kF32, kBf16)),
                         OpsTestName);
INSTANTIATE_TEST_SUITE_P(Backends, ProductTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsUnderTest()),
                                            ::testing::Values(kF32, kBf16)),
                         OpsTestName);
INSTANTIATE_TEST_SUITE_P(Backends, MixtureTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsOfEveryOp()),
                                            ::testing::Values(kF32, kBf16)),
                         OpsTestName);

}  // namespace
}  // namespace sensorium
