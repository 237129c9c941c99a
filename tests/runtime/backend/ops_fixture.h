// One suite over every op of the seam. A binary of it runs on the backends its BackendsUnderTest
// names, each with both storage types. What each is compared with is the reference
// (tests/reference, in double), never another backend; here is how far results may be from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <memory_resource>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"
#include "tests/reference/array.h"
#include "tests/runtime/cpu/random_matrix.h"
#include "tests/sanitized.h"

namespace sensorium {

// Bounds on |result - truth|, by the dtype of what is rounded.
struct Tolerance {
  double result;     // of |truth|: the rounding of the stored result
  double operation;  // of the operation's magnitude: roundings within it
};
// float32: a handful of roundings of 2^-24, and exp and sums of some thousand terms. bfloat16: half
// an ulp is 2^-9 of the value; within an operation something is rounded to it twice at most.
constexpr Tolerance ToleranceOf(DType t) {
  return t == DType::kBFloat16 ? Tolerance{0x1p-8, 0x1p-7} : Tolerance{0x1p-22, 0x1p-20};
}
// Of a convolution whose sums, before the bias is added, a library may round to bfloat16: half an
// ulp of a sum is 2^-9 of it. Absolute what the bias takes away again: the magnitude is 1.
inline constexpr Tolerance kRoundedSums = {0x1p-7, 0.05};

struct BackendUnderTest {
  std::string name;  // letters, digits and underscores
  std::function<std::unique_ptr<Backend>(DType dtype, int threads)> make;  // CHECKs that it can
  bool fast = false;           // a library makes products of many rows and convolutions
  bool products_only = false;  // what it does else is another one's that is under test
};
// cpu_under_test.cc: each CPU level of this machine. cuda_emulated_under_test.cc: the CUDA backend
// on the emulated device, in several orders of its threads.
std::vector<BackendUnderTest> BackendsUnderTest();
// Without those of products only.
inline std::vector<BackendUnderTest> BackendsOfEveryOp() {
  std::vector<BackendUnderTest> backends = BackendsUnderTest();
  std::erase_if(backends, [](const BackendUnderTest& b) { return b.products_only; });
  return backends;
}

class OpsTest : public ::testing::TestWithParam<std::tuple<BackendUnderTest, DType>> {
 protected:
  std::unique_ptr<Backend> MakeBackend(int threads) const {
    return std::get<0>(GetParam()).make(dtype(), threads);
  }

  DType dtype() const { return std::get<1>(GetParam()); }
  bool fast() const { return std::get<0>(GetParam()).fast; }
  // The dtypes that an activation may have.
  std::vector<DType> Acts() const {
    if (dtype() == DType::kFloat32) return {DType::kFloat32};
    return {DType::kFloat32, DType::kBFloat16};
  }
  // Rows 3 elements apart from each other and everything unset poisoned with NaN.
  Matrix Poisoned(int64_t rows, int64_t columns, DType t) { return Matrix(rows, columns, t, 3); }
  Matrix Random(int64_t rows, int64_t columns, DType t) {
    return Matrix::Random(rng_, rows, columns, t, 3);
  }
  int64_t Below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(rng_); }

  std::mt19937 rng_{20250311};
  std::unique_ptr<Backend> be_ = MakeBackend(3);
};

inline std::string OpsTestName(const ::testing::TestParamInfo<OpsTest::ParamType>& info) {
  return std::get<0>(info.param).name + "_" + std::string(Name(std::get<1>(info.param)));
}

// The values as doubles; `as` bfloat16: as the backend reads them where it stores that type.
inline reference::Array Truth(const Matrix& m, DType as = DType::kFloat32) {
  reference::Array a(m.rows(), m.columns());
  for (int64_t r = 0; r < m.rows(); ++r)
    for (int64_t c = 0; c < m.columns(); ++c) a(r, c) = m.GetAs(as, r, c);
  return a;
}

inline ConstTensorView View(const Matrix& m) { return m.view(); }

// A contiguous float32 vector.
inline ConstTensorView Vector(const std::pmr::vector<float>& v) {
  return {reinterpret_cast<const std::byte*>(v.data()),
          DType::kFloat32,
          {static_cast<int64_t>(v.size())}};
}
inline std::pmr::vector<float> RandomVector(std::mt19937& rng, int64_t n) {
  std::normal_distribution<float> normal;
  std::pmr::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}
inline reference::Array Truth(const std::pmr::vector<float>& v) {
  reference::Array a(1, static_cast<int64_t>(v.size()));
  std::copy(v.begin(), v.end(), a.values.begin());
  return a;
}

// Each |y - truth| <= result |truth| + operation magnitude; padding between rows untouched.
inline void ExpectNear(const Matrix& y, const reference::Array& truth,
                       const reference::Array& magnitude, Tolerance tolerance) {
  ASSERT_EQ(y.rows(), truth.rows);
  ASSERT_EQ(y.columns(), truth.columns);
  int64_t wrong = 0;
  std::string first;
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (int64_t c = 0; c < y.columns(); ++c) {
      const double bound = tolerance.result * std::fabs(truth(r, c)) +
                           tolerance.operation * std::fabs(magnitude(r, c));
      if (std::fabs(y.Get(r, c) - truth(r, c)) <= bound) continue;  // false for a NaN
      if (wrong++ == 0) {
        std::ostringstream where;
        where << "(" << r << ", " << c << ") is " << y.Get(r, c) << ", truth " << truth(r, c)
              << ", bound " << bound;
        first = where.str();
      }
    }
  }
  EXPECT_EQ(wrong, 0) << "of " << y.rows() << " x " << y.columns() << "; first " << first;
  EXPECT_TRUE(y.PaddingUntouched());
}

}  // namespace sensorium
