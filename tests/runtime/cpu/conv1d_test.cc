#include "runtime/cpu/conv1d.h"

#include <cmath>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/runtime/cpu/random_matrix.h"

namespace sensorium {
namespace {

class Conv1dTest : public ::testing::TestWithParam<std::tuple<CpuLevel, DType>> {
 protected:
  ThreadPool pool_{2};
  WeightSlabs slabs_;
  GemmScratch scratch_;
  std::mt19937 rng_{4711};
};

TEST_P(Conv1dTest, MatchesDoublePrecisionAtBordersStridesAndOddSizes) {
  const auto [level, storage] = GetParam();
  struct Case {
    int64_t seqs, frames, in, out, kernel, stride;
  };
  const Case cases[] = {{1, 1, 1, 1, 3, 1},     {2, 50, 80, 64, 3, 1}, {2, 49, 65, 33, 3, 2},
                        {3, 7, 16, 40, 5, 2},   {1, 2, 3, 97, 3, 2},   {2, 3, 128, 5, 1, 1},
                        {1, 20, 512, 32, 3, 2}, {2, 33, 9, 31, 4, 3}};
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c.frames << " frames, in " << c.in << ", out " << c.out
                                    << ", kernel " << c.kernel << ", stride " << c.stride);
    const Matrix w = Matrix::Random(rng_, c.out, c.in * c.kernel, DType::kFloat32, 3);
    const Matrix bias = Matrix::Random(rng_, c.out, 1, DType::kFloat32);
    const Matrix x = Matrix::Random(rng_, c.seqs * c.frames, c.in, storage, 5);
    const ConstTensorView weight(w.view().bytes(), DType::kFloat32, {c.out, c.in, c.kernel},
                                 c.in * c.kernel + 3);
    const auto packed =
        PackedLinear::PackConv1d(weight, bias.vector(), storage, level, pool_, slabs_);
    const int64_t frames_out = (c.frames - 1) / c.stride + 1;
    Matrix y(c.seqs * frames_out, c.out, DType::kFloat32, 2);
    RunConv1d(*packed, pool_, scratch_, y.view(), x.view(), c.seqs, c.stride, Activation::kGelu);
    EXPECT_TRUE(y.PaddingUntouched());
    for (int64_t s = 0; s < c.seqs; ++s) {
      for (int64_t f = 0; f < frames_out; ++f) {
        for (int64_t o = 0; o < c.out; ++o) {
          double sum = bias.Get(o, 0), magnitude = std::fabs(sum);
          for (int64_t t = 0; t < c.kernel; ++t) {
            const int64_t frame = f * c.stride + t - (c.kernel - 1) / 2;
            if (frame < 0 || frame >= c.frames) continue;
            for (int64_t i = 0; i < c.in; ++i) {
              const double p = double{w.GetAs(storage, o, i * c.kernel + t)} *
                               x.GetAs(storage, s * c.frames + frame, i);
              sum += p;
              magnitude += std::fabs(p);
            }
          }
          const double gelu = sum / 2 * std::erfc(-sum / std::sqrt(2.0));
          const double k = static_cast<double>(c.in * c.kernel);
          ASSERT_NEAR(
              y.Get(s * frames_out + f, o), gelu,
              1.13 * (8 + 2 * std::sqrt(k)) * 0x1p-24 * magnitude + 0x1p-22 * std::fabs(gelu))
              << "sequence " << s << " frame " << f << " output " << o;
        }
      }
    }
  }
}

TEST_P(Conv1dTest, ASequenceHasTheSameBitsAloneAndAmongOthers) {
  const auto [level, storage] = GetParam();
  const Matrix w = Matrix::Random(rng_, 70, 80 * 3, DType::kFloat32);
  const ConstTensorView weight(w.view().bytes(), DType::kFloat32, {70, 80, 3});
  const auto packed = PackedLinear::PackConv1d(weight, {}, storage, level, pool_, slabs_);
  const Matrix x = Matrix::Random(rng_, 3 * 41, 80, storage);
  Matrix all(3 * 21, 70, storage), one(21, 70, storage);
  RunConv1d(*packed, pool_, scratch_, all.view(), x.view(), 3, 2, Activation::kGelu);
  for (int64_t s = 0; s < 3; ++s) {
    RunConv1d(*packed, pool_, scratch_, one.view(), x.view().Rows(s * 41, (s + 1) * 41), 1, 2,
              Activation::kGelu);
    for (int64_t f = 0; f < 21; ++f) EXPECT_TRUE(one.SameRowBits(f, all, s * 21 + f));
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, Conv1dTest,
                         ::testing::Combine(::testing::ValuesIn(AvailableCpuLevels()),
                                            ::testing::Values(DType::kFloat32, DType::kBFloat16)),
                         [](const auto& info) {
                           return std::string(Name(std::get<0>(info.param))) + "_" +
                                  std::string(Name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace sensorium
