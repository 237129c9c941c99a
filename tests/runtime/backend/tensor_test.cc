// Where the bytes of a view's rows and columns lie, for elements of any width.
#include "runtime/backend/tensor.h"

#include "gtest/gtest.h"

namespace sensorium {
namespace {

constexpr DType kAll[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,   DType::kInt32,
                          DType::kInt8,    DType::kInt4,     DType::kFloat8E4M3};

TEST(TensorTest, EveryDtypeHasAWidthAndAName) {
  const int64_t bits[] = {32, 16, 16, 32, 8, 4, 8};
  for (size_t i = 0; i < std::size(kAll); ++i) {
    EXPECT_EQ(BitsOf(kAll[i]), bits[i]) << Name(kAll[i]);
    EXPECT_EQ(BytesOf(kAll[i], 6), 6 * bits[i] / 8) << Name(kAll[i]);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(Name(kAll[i]), Name(kAll[j]));
    EXPECT_NE(Name(kAll[i]), "?");
    EXPECT_EQ(IsQuantised(kAll[i]), i >= 4);
    EXPECT_EQ(IsFloat(kAll[i]), i < 3);
  }
}

TEST(TensorTest, RowsAndColumnsOfPackedElementsBeginAtTheirBytes) {
  std::byte data[256];
  for (const DType t : kAll) {
    const BasicTensorView<std::byte> view(data, t, {5, 6}, 8);
    const int64_t bits = BitsOf(t);
    EXPECT_EQ(view.Rows(3, 5).bytes() - data, 3 * 8 * bits / 8) << Name(t);
    EXPECT_EQ(view.Columns(4, 6).bytes() - data, 4 * bits / 8) << Name(t);
    EXPECT_EQ(view.Columns(2, 6).Rows(2, 3).bytes() - data, (2 * 8 + 2) * bits / 8) << Name(t);
  }
}

TEST(TensorDeathTest, NothingBeginsInTheMiddleOfAByte) {
  std::byte data[64];
  EXPECT_DEATH(TensorView(data, DType::kInt4, {2, 3}), "3 elements of 4 bits");
  const TensorView view(data, DType::kInt4, {2, 4});
  EXPECT_DEATH(view.Columns(1, 3), "1 elements of 4 bits");
  EXPECT_DEATH(SizeOf(DType::kInt4), "1 elements of 4 bits");
  EXPECT_EQ(TensorView(data, DType::kInt4, {1, 3}).elements(), 3);  // one row may end in a half
}

}  // namespace
}  // namespace sensorium
