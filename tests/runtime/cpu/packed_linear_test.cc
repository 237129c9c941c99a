#include "runtime/cpu/packed_linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/runtime/cpu/random_matrix.h"

namespace sensorium {
namespace {

double Activate(Activation a, double v) {
  if (a == Activation::kGelu) return v / 2 * std::erfc(-v / std::sqrt(2.0));
  if (a == Activation::kQuickGelu) return v / (1 + std::exp(-1.702 * v));
  return v;
}

struct Truth {
  double value;
  double magnitude;  // sum of the absolute products: what float32 rounding errors scale with
};

// Double-precision y[r, n] before the activation; x and w rounded as the storage type demands.
Truth Product(const Matrix& x, const Matrix& w, const Matrix* bias, DType storage, int64_t r,
              int64_t n) {
  Truth t = {bias ? bias->Get(n, 0) : 0.0, bias ? std::fabs(bias->Get(n, 0)) : 0.0};
  for (int64_t k = 0; k < x.columns(); ++k) {
    const double p = double{x.GetAs(storage, r, k)} * w.GetAs(storage, n, k);
    t.value += p;
    t.magnitude += std::fabs(p);
  }
  return t;
}

// Each of K roundings is at most half an ulp of a partial sum; random signs add up to about sqrt(K)
// of them. Eight more for the worst of some thousand elements. vdpbf16ps rounds as often.
double Tolerance(const Truth& t, int64_t k) {
  return (8 + 2 * std::sqrt(static_cast<double>(k))) * 0x1p-24 * t.magnitude;
}

// On each level of this machine, for each storage type.
class PackedLinearTest : public ::testing::TestWithParam<std::tuple<CpuLevel, DType>> {
 protected:
  CpuLevel level() const { return std::get<0>(GetParam()); }
  DType storage() const { return std::get<1>(GetParam()); }
  std::unique_ptr<PackedLinear> Pack(const Matrix& w, const Matrix* bias = nullptr) {
    const LinearSource part = {w.view(), bias ? bias->vector() : ConstTensorView()};
    return PackedLinear::Pack({&part, 1}, storage(), level(), pool_, slabs_);
  }

  ThreadPool pool_{3};
  WeightSlabs slabs_;
  GemmScratch scratch_;
  std::mt19937 rng_{20240917};
};

TEST_P(PackedLinearTest, MatchesDoublePrecisionAtOddSizes) {
  struct Case {
    int64_t rows, in, out;
    DType source, x, y;
    Activation activation;
    bool add, bias;
  };
  constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
  constexpr Activation kNone = Activation::kNone;
  const Case cases[] = {
      {1, 1, 1, kF32, kF32, kF32, kNone, false, true},
      {1, 97, 97, kF16, kF32, kF32, kNone, true, true},
      {2, 64, 300, kBf16, kBf16, kBf16, kNone, false, false},
      {3, 257, 33, kF32, kF32, kBf16, Activation::kGelu, false, true},
      {5, 513, 64, kBf16, kF32, kF32, kNone, true, false},
      {8, 1030, 31, kF16, kBf16, kF32, Activation::kQuickGelu, false, true},
      {13, 97, 129, kF32, kBf16, kBf16, Activation::kGelu, false, true},
      {29, 1301, 65, kBf16, kF32, kF32, kNone, true, true},
      {97, 1, 97, kF32, kF32, kF32, kNone, false, true},
      {401, 40, 130, kF16, kF32, kF32, Activation::kGelu, false, true},
      {30, 1024, 96, kF32, kF32, kF32, kNone, false, false},  // a row stride that is copied
      {30, 2048, 96, kBf16, kBf16, kF32, kNone, false, false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.in << " x " << c.out);
    const int64_t stride = c.in % 1024 == 0 ? 0 : 3;
    const Matrix w = Matrix::Random(rng_, c.out, c.in, c.source, 5, /*offset=*/1);
    const Matrix bias = Matrix::Random(rng_, c.out, 1, c.source, 2, /*offset=*/1);
    const Matrix x = Matrix::Random(rng_, c.rows, c.in, c.x, stride);
    Matrix y(c.rows, c.out, c.y, 7);
    if (c.add) y = Matrix::Random(rng_, c.rows, c.out, c.y, 7);
    const Matrix before = y;
    const auto packed = Pack(w, c.bias ? &bias : nullptr);
    RunLinear(*packed, pool_, scratch_, y.view(), x.view(), c.activation, c.add);
    EXPECT_TRUE(y.PaddingUntouched());
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t n = 0; n < c.out; ++n) {
        const Truth t = Product(x, w, c.bias ? &bias : nullptr, storage(), r, n);
        const double add = c.add ? before.Get(r, n) : 0.0;
        const double expected = add + Activate(c.activation, t.value);
        // |GELU'| and |QuickGELU'| are below 1.13; then the roundings of y itself.
        const double rounding = c.y == kBf16 ? 0x1p-8 : 0x1p-22;
        const double tolerance =
            1.13 * Tolerance(t, c.in) + rounding * (std::fabs(expected) + std::fabs(add));
        ASSERT_NEAR(y.Get(r, n), expected, tolerance) << r << ", " << n;
      }
    }
  }
}

TEST_P(PackedLinearTest, ARowHasTheSameBitsInEveryBatch) {
  // Several blocks of steps with an odd end, three panels and a tail, more rows than two tiles.
  constexpr int64_t kRows = 40, kIn = 1237, kOut = 101;
  const Matrix w = Matrix::Random(rng_, kOut, kIn, DType::kBFloat16);
  const Matrix bias = Matrix::Random(rng_, kOut, 1, DType::kFloat32);
  const auto packed = Pack(w, &bias);
  for (DType x_type : {DType::kFloat32, DType::kBFloat16}) {
    const Matrix x = Matrix::Random(rng_, kRows, kIn, x_type);
    Matrix alone(kRows, kOut, DType::kFloat32);
    for (int64_t r = 0; r < kRows; ++r) {
      RunLinear(*packed, pool_, scratch_, alone.view().Rows(r, r + 1), x.view().Rows(r, r + 1),
                Activation::kGelu, false);
    }
    for (int64_t rows = 1; rows <= kRows; ++rows) {
      // A random subset in a random order, copied into a batch of its own.
      std::vector<int64_t> pick(kRows);
      std::iota(pick.begin(), pick.end(), 0);
      std::shuffle(pick.begin(), pick.end(), rng_);
      Matrix batch(rows, kIn, x_type, rows % 4);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < kIn; ++k) batch.Set(r, k, x.Get(pick[r], k));
      ThreadPool pool(static_cast<int>(rows % 3) + 1);
      Matrix y(rows, kOut, DType::kFloat32, 3);
      RunLinear(*packed, pool, scratch_, y.view(), batch.view(), Activation::kGelu, false);
      for (int64_t r = 0; r < rows; ++r) {
        ASSERT_TRUE(y.SameRowBits(r, alone, pick[r])) << "row " << r << " of " << rows;
      }
    }
  }
}

TEST_P(PackedLinearTest, ARowHasTheSameBitsInABatchOfManyBlocks) {
  constexpr int64_t kRows = 821, kIn = 530, kOut = 33;
  const auto packed = Pack(Matrix::Random(rng_, kOut, kIn, DType::kFloat32));
  const Matrix x = Matrix::Random(rng_, kRows, kIn, DType::kFloat32);
  Matrix y(kRows, kOut, DType::kBFloat16), one(1, kOut, DType::kBFloat16);
  RunLinear(*packed, pool_, scratch_, y.view(), x.view(), Activation::kNone, false);
  for (int64_t r = 0; r < kRows; r += 7) {
    RunLinear(*packed, pool_, scratch_, one.view(), x.view().Rows(r, r + 1), Activation::kNone,
              false);
    ASSERT_TRUE(one.SameRowBits(0, y, r)) << r;
  }
}

TEST_P(PackedLinearTest, StacksPartsAlongTheOutputs) {
  // q, k, v of different heights, one of them without bias and of another dtype.
  const Matrix q = Matrix::Random(rng_, 40, 50, DType::kFloat32, 1);
  const Matrix k = Matrix::Random(rng_, 9, 50, DType::kFloat16);
  const Matrix v = Matrix::Random(rng_, 23, 50, DType::kBFloat16, 9);
  const Matrix q_bias = Matrix::Random(rng_, 40, 1, DType::kFloat32);
  const Matrix v_bias = Matrix::Random(rng_, 23, 1, DType::kBFloat16);
  const LinearSource parts[] = {
      {q.view(), q_bias.vector()}, {k.view(), {}}, {v.view(), v_bias.vector()}};
  const auto packed = PackedLinear::Pack(parts, storage(), level(), pool_, slabs_);
  ASSERT_EQ(packed->out_features(), 72);
  const Matrix x = Matrix::Random(rng_, 2, 50, DType::kFloat32);
  Matrix y(2, 72, DType::kFloat32);
  RunLinear(*packed, pool_, scratch_, y.view(), x.view(), Activation::kNone, false);
  const auto check = [&](const Matrix& w, const Matrix* bias, int64_t first) {
    for (int64_t n = 0; n < w.rows(); ++n) {
      const Truth t = Product(x, w, bias, storage(), 1, n);
      EXPECT_NEAR(y.Get(1, first + n), t.value, Tolerance(t, 50)) << first + n;
    }
  };
  check(q, &q_bias, 0);
  check(k, nullptr, 40);
  check(v, &v_bias, 49);
}

TEST_P(PackedLinearTest, AnEmptyBatchIsNothing) {
  const auto packed = Pack(Matrix::Random(rng_, 8, 8, DType::kFloat32));
  const Matrix x(0, 8, DType::kFloat32);
  Matrix y(0, 8, DType::kFloat32);
  RunLinear(*packed, pool_, scratch_, y.view(), x.view(), Activation::kNone, false);
}

TEST_P(PackedLinearTest, ANaNStaysInItsRow) {
  const auto packed = Pack(Matrix::Random(rng_, 40, 37, DType::kFloat32));
  Matrix x = Matrix::Random(rng_, 14, 37, DType::kFloat32);
  x.Set(6, 36, NAN);
  for (Activation a : {Activation::kNone, Activation::kGelu, Activation::kQuickGelu}) {
    for (DType y_type : {DType::kFloat32, DType::kBFloat16}) {
      Matrix y(14, 40, y_type);
      RunLinear(*packed, pool_, scratch_, y.view(), x.view(), a, false);
      for (int64_t r = 0; r < 14; ++r)
        for (int64_t n = 0; n < 40; ++n) EXPECT_EQ(std::isnan(y.Get(r, n)), r == 6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, PackedLinearTest,
                         ::testing::Combine(::testing::ValuesIn(AvailableCpuLevels()),
                                            ::testing::Values(DType::kFloat32, DType::kBFloat16)),
                         [](const auto& info) {
                           return std::string(Name(std::get<0>(info.param))) + "_" +
                                  std::string(Name(std::get<1>(info.param)));
                         });

class EpilogueTest : public ::testing::TestWithParam<CpuLevel> {
 protected:
  // act(x) of each value, through a product with the 1 x 1 identity.
  std::vector<float> Apply(Activation activation, const std::vector<float>& values) {
    Matrix w(1, 1, DType::kFloat32), x(values.size(), 1, DType::kFloat32);
    Matrix y(values.size(), 1, DType::kFloat32);
    w.Set(0, 0, 1);
    for (size_t i = 0; i < values.size(); ++i) x.Set(i, 0, values[i]);
    const LinearSource part = {w.view(), {}};
    const auto packed = PackedLinear::Pack({&part, 1}, DType::kFloat32, GetParam(), pool_, slabs_);
    RunLinear(*packed, pool_, scratch_, y.view(), x.view(), activation, false);
    std::vector<float> out(values.size());
    for (size_t i = 0; i < values.size(); ++i) out[i] = y.Get(i, 0);
    return out;
  }
  static std::vector<float> Values() {
    std::vector<float> v;
    for (float x = -13; x <= 13; x += 0x1p-9f) v.push_back(x);
    for (float x = 1e-30f; x < 100; x *= 1.37f) v.push_back(x), v.push_back(-x);
    return v;
  }

  ThreadPool pool_{2};
  WeightSlabs slabs_;
  GemmScratch scratch_;
};

TEST_P(EpilogueTest, GeluIsWithinThreeUlpAndDoesNotCancelOnTheNegativeSide) {
  const std::vector<float> x = Values(), y = Apply(Activation::kGelu, x);
  double worst_ulp = 0, worst_negative = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double truth = Activate(Activation::kGelu, x[i]);
    const double error = std::fabs(y[i] - truth);
    if (x[i] == 0) {
      EXPECT_EQ(y[i], 0);
    } else if (x[i] >= -1) {
      const double ulp = std::ldexp(1.0, std::ilogb(static_cast<float>(truth)) - 23);
      worst_ulp = std::max(worst_ulp, error / ulp);
    } else if (x[i] >= -13) {
      worst_negative = std::max(worst_negative, error / std::fabs(truth));
    } else {
      EXPECT_LE(error, 1e-35) << x[i];
    }
  }
  RecordProperty("ulp", std::to_string(worst_ulp));
  RecordProperty("negative_side", std::to_string(worst_negative));
  EXPECT_LE(worst_ulp, 3.0);
  EXPECT_LE(worst_negative, 4e-6);
}

TEST_P(EpilogueTest, QuickGeluIsWithinThreeUlpNearZero) {
  const std::vector<float> x = Values(), y = Apply(Activation::kQuickGelu, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double truth = Activate(Activation::kQuickGelu, x[i]);
    // e^(1.702 x) magnifies the rounding of 1.702 x on the far negative side.
    const double ulps = x[i] >= -1 ? 3 : 3 + 2 * std::fabs(x[i]);
    EXPECT_NEAR(y[i], truth, ulps * 0x1p-23 * std::fabs(truth) + 1e-35) << x[i];
  }
}

TEST_P(EpilogueTest, EveryFloat16WeightIsReadExactly) {
  Matrix w(1 << 16, 1, DType::kFloat16);
  for (int64_t h = 0; h < 1 << 16; ++h) w.SetBits(h, 0, static_cast<uint16_t>(h));
  Matrix x(1, 1, DType::kFloat32), y(1, 1 << 16, DType::kFloat32);
  x.Set(0, 0, 1);
  const LinearSource part = {w.view(), {}};
  const auto packed = PackedLinear::Pack({&part, 1}, DType::kFloat32, GetParam(), pool_, slabs_);
  RunLinear(*packed, pool_, scratch_, y.view(), x.view(), Activation::kNone, false);
  for (int64_t h = 0; h < 1 << 16; ++h) {
    const double truth = FromFloat16(static_cast<uint16_t>(h));
    if (std::isnan(truth)) {
      EXPECT_TRUE(std::isnan(y.Get(0, h))) << h;
    } else {
      EXPECT_EQ(y.Get(0, h), truth) << h;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, EpilogueTest, ::testing::ValuesIn(AvailableCpuLevels()),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace sensorium
