#include "runtime/models/compression_ratio.h"

#include <string>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

// Sizes that Python's zlib.compress() gives.
TEST(CompressionRatioTest, IsPythons) {
  std::string loop = "Thank you.";
  for (int i = 1; i < 20; ++i) loop += " Thank you.";
  EXPECT_FLOAT_EQ(CompressionRatio(loop), 219.0f / 22.0f);
  EXPECT_FLOAT_EQ(CompressionRatio("And so my fellow Americans ask not what your country can do "
                                   "for you, ask what you can do for your country."),
                  106.0f / 79.0f);
}

TEST(CompressionRatioTest, OfNothingIsZero) { EXPECT_EQ(CompressionRatio(""), 0.0f); }

}  // namespace
}  // namespace sensorium
