#include "runtime/cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/runtime/cpu/random_matrix.h"

namespace sensorium {
namespace {

TEST(MoeRouteTest, PicksTheHighestFirstAndTheLowestIdOnTies) {
  ThreadPool pool(2);
  Matrix logits(2, 6, DType::kFloat32, 3);
  const float rows[2][6] = {{1, 3, 2, 3, -5, 2}, {0, 0, 0, 0, 0, 0}};
  for (int r = 0; r < 2; ++r)
    for (int e = 0; e < 6; ++e) logits.Set(r, e, rows[r][e]);
  std::vector<int32_t> ids(2 * 4, -1);
  Matrix weights(2, 4, DType::kFloat32);
  const TensorView ids_view(reinterpret_cast<std::byte*>(ids.data()), DType::kInt32, {2, 4});
  RunMoeRoute(pool, ids_view, weights.view(), std::as_const(logits).view());
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 3, 2, 5, 0, 1, 2, 3}));
  double sum = 0;
  for (float l : rows[0]) sum += std::exp(double{l});
  EXPECT_NEAR(weights.Get(0, 0), std::exp(3.0) / sum, 1e-7);
  EXPECT_NEAR(weights.Get(0, 3), std::exp(2.0) / sum, 1e-7);
  EXPECT_EQ(weights.Get(1, 3), 1.f / 6);
}

TEST(MoeRouteTest, RowsOfNaNStillGiveDistinctExperts) {
  ThreadPool pool(1);
  const Matrix logits(1, 5, DType::kFloat32);  // poisoned
  std::vector<int32_t> ids(3, -1);
  Matrix weights(1, 3, DType::kFloat32);
  const TensorView ids_view(reinterpret_cast<std::byte*>(ids.data()), DType::kInt32, {1, 3});
  RunMoeRoute(pool, ids_view, weights.view(), logits.view());
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2}));
}

class MoeTest : public ::testing::TestWithParam<std::tuple<CpuLevel, DType>> {
 protected:
  static constexpr int64_t kExperts = 7, kHidden = 45, kFfn = 37, kChosen = 3;

  MoeTest() {
    for (int64_t e = 0; e < kExperts; ++e) {
      up_gate_.push_back(Matrix::Random(rng_, 2 * kFfn, kHidden, DType::kFloat32));
      down_.push_back(Matrix::Random(rng_, kHidden, kFfn, DType::kFloat32));
      const LinearSource up_gate = {std::as_const(up_gate_[e]).view(), {}};
      const LinearSource down = {std::as_const(down_[e]).view(), {}};
      experts_.push_back({PackedLinear::Pack({&up_gate, 1}, storage(), level(), pool_, slabs_),
                          PackedLinear::Pack({&down, 1}, storage(), level(), pool_, slabs_)});
    }
  }
  CpuLevel level() const { return std::get<0>(GetParam()); }
  DType storage() const { return std::get<1>(GetParam()); }

  // kChosen distinct experts per token, in no order. Expert 5 is never chosen.
  std::vector<int32_t> RandomIds(int64_t tokens) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> all = {0, 1, 2, 3, 4, 6};
      std::shuffle(all.begin(), all.end(), rng_);
      ids.insert(ids.end(), all.begin(), all.begin() + kChosen);
    }
    return ids;
  }
  static ConstTensorView View(const std::vector<int32_t>& ids) {
    return {reinterpret_cast<const std::byte*>(ids.data()),
            DType::kInt32,
            {static_cast<int64_t>(ids.size()) / kChosen, kChosen}};
  }

  std::mt19937 rng_{99};
  ThreadPool pool_{2};
  WeightSlabs slabs_;
  GemmScratch scratch_;
  std::vector<Matrix> up_gate_, down_;
  std::vector<ExpertWeights> experts_;
};

TEST_P(MoeTest, AddsTheWeightedExpertsOfEachToken) {
  constexpr int64_t kTokens = 19;
  const Matrix x = Matrix::Random(rng_, kTokens, kHidden, storage(), 3);
  const Matrix weights = Matrix::Random(rng_, kTokens, kChosen, DType::kFloat32, 1);
  const std::vector<int32_t> ids = RandomIds(kTokens);
  Matrix y = Matrix::Random(rng_, kTokens, kHidden, DType::kFloat32, 2);
  const Matrix before = y;
  RunAddMoe(pool_, scratch_, y.view(), x.view(), View(ids), weights.view(), experts_);
  EXPECT_TRUE(y.PaddingUntouched());
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<double> truth(kHidden), magnitude(kHidden);
    for (int64_t n = 0; n < kHidden; ++n) {
      truth[n] = before.Get(t, n), magnitude[n] = std::fabs(truth[n]);
    }
    for (int64_t i = 0; i < kChosen; ++i) {
      const int32_t e = ids[t * kChosen + i];
      std::vector<float> h(kFfn);
      for (int64_t f = 0; f < kFfn; ++f) {
        double up = 0, gate = 0;
        for (int64_t k = 0; k < kHidden; ++k) {
          up += double{up_gate_[e].GetAs(storage(), f, k)} * x.GetAs(storage(), t, k);
          gate += double{up_gate_[e].GetAs(storage(), kFfn + f, k)} * x.GetAs(storage(), t, k);
        }
        h[f] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
        if (storage() == DType::kBFloat16) h[f] = FromBFloat16(ToBFloat16(h[f]));
      }
      for (int64_t n = 0; n < kHidden; ++n) {
        for (int64_t f = 0; f < kFfn; ++f) {
          const double p = double{down_[e].GetAs(storage(), n, f)} * h[f] * weights.Get(t, i);
          truth[n] += p;
          magnitude[n] += std::fabs(p);
        }
      }
    }
    // In bfloat16 h may round to the other side where float32 sums differ: one of its ulps, rarely.
    const double tolerance = storage() == DType::kBFloat16 ? 0x1p-9 : 0x1p-19;
    for (int64_t n = 0; n < kHidden; ++n)
      ASSERT_NEAR(y.Get(t, n), truth[n], tolerance * magnitude[n]) << t << ", " << n;
  }
}

TEST_P(MoeTest, ATokenHasTheSameBitsAloneAndInAnyOrderOfItsExperts) {
  constexpr int64_t kTokens = 33;
  const Matrix x = Matrix::Random(rng_, kTokens, kHidden, storage());
  Matrix weights = Matrix::Random(rng_, kTokens, kChosen, DType::kFloat32);
  std::vector<int32_t> ids = RandomIds(kTokens);
  const Matrix before = Matrix::Random(rng_, kTokens, kHidden, DType::kFloat32);
  Matrix all = before, alone = before;
  RunAddMoe(pool_, scratch_, all.view(), x.view(), View(ids), weights.view(), experts_);
  for (int64_t t = 0; t < kTokens; ++t) {
    std::swap(ids[t * kChosen], ids[t * kChosen + 2]);
    const float first = weights.Get(t, 0);
    weights.Set(t, 0, weights.Get(t, 2));
    weights.Set(t, 2, first);
    RunAddMoe(pool_, scratch_, alone.view().Rows(t, t + 1), x.view().Rows(t, t + 1),
              View(ids).Rows(t, t + 1), std::as_const(weights).view().Rows(t, t + 1), experts_);
    ASSERT_TRUE(alone.SameRowBits(t, all, t)) << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, MoeTest,
                         ::testing::Combine(::testing::ValuesIn(AvailableCpuLevels()),
                                            ::testing::Values(DType::kFloat32, DType::kBFloat16)),
                         [](const auto& info) {
                           return std::string(Name(std::get<0>(info.param))) + "_" +
                                  std::string(Name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace sensorium
