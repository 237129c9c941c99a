// The place of quantised weights in the seam: what a LinearSource of one must be, and that a
// backend that cannot pack it says so before it reads a byte.
#include <vector>

#include "gtest/gtest.h"
#include "runtime/cpu/cpu_backend.h"

namespace sensorium {
namespace {

class QuantisedWeightDeathTest : public testing::Test {
 protected:
  // A weight [out, in] of zeros and scales [out, groups] of ones.
  LinearSource Source(DType weight, int64_t out, int64_t in, int64_t groups, int64_t group) {
    zeros_.assign(static_cast<size_t>(BytesOf(weight, out * in)), std::byte{0});
    ones_.assign(static_cast<size_t>(out * groups), 1.0f);
    return {.weight = ConstTensorView(zeros_.data(), weight, {out, in}),
            .bias = {},
            .scales = ConstTensorView(reinterpret_cast<const std::byte*>(ones_.data()),
                                      DType::kFloat32, {out, groups}),
            .group = group};
  }
  void Pack(const LinearSource& source) { be_->PackLinear({&source, 1}); }

  std::vector<std::byte> zeros_;
  std::vector<float> ones_;
  std::unique_ptr<Backend> be_ = std::move(CpuBackend::Create({.threads = 1})).value();
};

TEST_F(QuantisedWeightDeathTest, AWholeSourceIsRefusedForItsDtypeAlone) {
  for (const DType t : {DType::kInt8, DType::kInt4, DType::kFloat8E4M3}) {
    EXPECT_DEATH(Pack(Source(t, 4, 64, 1, 64)),
                 "weights of " + std::string(Name(t)) + " are not supported by this device");
    EXPECT_DEATH(Pack(Source(t, 4, 64, 2, 32)), "are not supported by this device");
  }
}

TEST_F(QuantisedWeightDeathTest, ScalesMustBeThereAndFitTheGroups) {
  EXPECT_DEATH(Pack(Source(DType::kInt8, 4, 64, 1, 48)), "groups of 48 in 64 inputs");
  EXPECT_DEATH(Pack(Source(DType::kInt8, 4, 64, 1, 0)), "groups of 0 in 64 inputs");
  EXPECT_DEATH(Pack(Source(DType::kInt8, 4, 64, 3, 32)), R"(\(3 vs 2\))");
  LinearSource source = Source(DType::kInt8, 4, 64, 2, 32);
  source.scales = source.scales.Rows(0, 3);
  EXPECT_DEATH(Pack(source), R"(\(3 vs 4\))");
  source.scales = {};
  EXPECT_DEATH(Pack(source), "IsQuantised");
}

TEST_F(QuantisedWeightDeathTest, AFloatWeightHasNoScales) {
  EXPECT_DEATH(Pack(Source(DType::kFloat32, 4, 64, 1, 64)), "IsQuantised");
}

}  // namespace
}  // namespace sensorium
