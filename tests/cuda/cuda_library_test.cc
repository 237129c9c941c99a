// The CUDA backend under `determinism: fast` on the emulated device: products by cuBLASLt,
// convolutions by cuDNN, as far as they are the strict ones, pinned, and logged. Executed by
// emulation.
#include <cmath>
#include <sstream>
#include <tuple>

#include "cuda/kernels/convert_rows.h"
#include "cuda/kernels/linear.h"
#include "cuda/views.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/cuda/cuda_backend_fixture.h"
#include "tests/reference/linear.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

using CudaLibraryTest = CudaBackendTest;

// kFast: 32 rows and more go through the library, padded to a bucket, in pieces where scratch is
// small.
TEST_F(CudaLibraryTest, FastProductsAreTheStrictOnesButForRounding) {
  for (DType dtype : {kF32, kBf16}) {
    const auto strict = Open({.dtype = dtype, .wait_after_each_op = true});
    const auto fast = Open({.dtype = dtype,
                            .determinism = Determinism::kFast,
                            .scratch_bytes = size_t{1} << 16,
                            .wait_after_each_op = true});
    EXPECT_EQ(fast->description(), "cuda: emulated device (8.0), fast products and convolutions");
    const int64_t in = 97, out = 71;
    const Matrix w = Matrix::Random(rng_, out, in, kF32), b = Matrix::Random(rng_, out, 1, kF32);
    const LinearSource source = {w.view(), b.vector()};
    const auto strict_w = strict->PackLinear({&source, 1}), fast_w = fast->PackLinear({&source, 1});
    for (int64_t rows : {31, 32, 65, 150}) {
      const Matrix x = Matrix::Random(rng_, rows, in, dtype, 3);
      Matrix want(rows, out, dtype, 2), got(rows, out, dtype, 2);
      strict->Linear(want.view(), x.view(), *strict_w, Activation::kGelu);
      fast->Linear(got.view(), x.view(), *fast_w, Activation::kGelu);
      Matrix want_sum = Matrix::Random(rng_, rows, out, kF32), got_sum = want_sum;
      strict->AddLinear(want_sum.view(), x.view(), *strict_w);
      fast->AddLinear(got_sum.view(), x.view(), *fast_w);
      const double rounding = dtype == kBf16 ? 0x1p-7 : 0x1p-21;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < out; ++c) {
          ASSERT_NEAR(got.Get(r, c), want.Get(r, c), rounding * std::fabs(want.Get(r, c)) + 1e-4);
          ASSERT_NEAR(got_sum.Get(r, c), want_sum.Get(r, c), 1e-4);
        }
      }
      EXPECT_TRUE(got.PaddingUntouched());
    }
  }
}

// kFast: convolutions go through cuDNN, whatever the type and the alignment of what they read, in
// float32 or bfloat16 sums; where there is no engine, or no scratch, through our own kernels.
TEST_F(CudaLibraryTest, FastConvolutionsAreTheStrictOnesButForRounding) {
  for (DType dtype : {kF32, kBf16}) {
    const auto strict = Open({.dtype = dtype, .wait_after_each_op = true});
    for (const bool no_wider_sums : {false, true}) {
      cuda_emu::LimitCudnn({.no_wider_sums = no_wider_sums});
      const auto fast =
          Open({.dtype = dtype, .determinism = Determinism::kFast, .wait_after_each_op = true});
      // 3 x 80 inputs are padded to 256; 3 x 32 are not.
      for (const auto& [in, stride, seqs] :
           {std::tuple<int64_t, int64_t, int64_t>{80, 1, 1}, {32, 2, 1}, {32, 2, 3}, {5, 1, 2}}) {
        const int64_t out = 71, frames = 21, frames_out = (frames - 1) / stride + 1;
        const Matrix w = Matrix::Random(rng_, out, in * 3, kF32);
        const Matrix b = Matrix::Random(rng_, out, 1, kF32);
        const ConstTensorView taps = w.view().Reshape({out, in, 3});
        const auto strict_w = strict->PackConv1d(taps, b.vector());
        const auto fast_w = fast->PackConv1d(taps, b.vector());
        for (DType x_type : {dtype, kF32}) {
          const Matrix x = Matrix::Random(rng_, seqs * frames, in, x_type, 3,
                                          static_cast<int64_t>(SizeOf(x_type)));
          Matrix want(seqs * frames_out, out, dtype, 2), got(seqs * frames_out, out, dtype, 2);
          strict->Conv1d(want.view(), x.view(), *strict_w, seqs, 3, stride, Activation::kGelu);
          const int64_t launches = cuda_emu::counters().launches;
          fast->Conv1d(got.view(), x.view(), *fast_w, seqs, 3, stride, Activation::kGelu);
          EXPECT_GE(cuda_emu::counters().launches - launches, 2);
          // bfloat16: the sum may be rounded, too, and so is what comes of it.
          const double rounding = dtype == kBf16 ? (no_wider_sums ? 0x1p-5 : 0x1p-7) : 0x1p-20;
          for (int64_t r = 0; r < seqs * frames_out; ++r) {
            for (int64_t c = 0; c < out; ++c) {
              ASSERT_NEAR(got.Get(r, c), want.Get(r, c),
                          rounding * std::fabs(want.Get(r, c)) + (no_wider_sums ? 0.05 : 1e-4))
                  << in << " inputs, row " << r << ", output " << c;
            }
          }
          EXPECT_TRUE(got.PaddingUntouched());
        }
      }
    }
    cuda_emu::LimitCudnn({});
  }
}

// A device that has the arena to give, but no room for what a library wants behind it, is full and
// not absent: `auto` must not take the CPU for it.
TEST_F(CudaLibraryTest, ADeviceWithoutRoomForALibraryIsFullAndNotAbsent) {
  struct Case {
    int allocation;  // behind three pinned buffers and the arena
    const char* failed;
  };
  for (const Case c : {Case{5, "cublasLtCreate(&handle): cuBLASLt status 3"},
                       Case{6, "cudnnCreate(&handle_): cuDNN status 4004"}}) {
    cuda_emu::SetDeviceMemory(size_t{256} << 20);
    cuda_emu::FailAllocation(c.allocation);
    const absl::Status status =
        CudaBackend::Create({.determinism = Determinism::kFast, .memory_share = 0.5}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(std::string(status.message()),
              "the CUDA device cannot be opened: " + std::string(c.failed) +
                  ": out of memory (cudaErrorMemoryAllocation); less may be taken as "
                  "device.memory_share");
    EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
  }
}

TEST_F(CudaLibraryTest, TheConvolutionsEngineIsPinnedAndLogged) {
  std::ostringstream log;
  const auto kept = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_st>(log));
  logger->set_pattern("%l %v");
  spdlog::set_default_logger(logger);
  const auto convolve = [&](Backend& be, DType dtype, int64_t frames, int times = 1) {
    const Matrix w = Matrix::Random(rng_, 64, 32 * 3, kF32);
    const auto packed = be.PackConv1d(w.view().Reshape({64, 32, 3}), {});
    const Matrix x = Matrix::Random(rng_, frames, 32, dtype);
    Matrix y(frames, 64, dtype), again(frames, 64, dtype);
    for (int i = 0; i < times; ++i) {
      be.Conv1d(i == 0 ? y.view() : again.view(), x.view(), *packed, 1, 3, 1, Activation::kNone);
    }
    for (int64_t r = 0; times > 1 && r < frames; ++r) EXPECT_TRUE(y.SameRowBits(r, again, r));
  };
  const auto run = [&](DType dtype) {
    const auto be =
        Open({.dtype = dtype, .determinism = Determinism::kFast, .wait_after_each_op = true});
    log.str("");
    convolve(*be, dtype, 20, 2);
  };
  const std::string what = " [64, 3, 32] over 1 x 20 frames by 1";
  // Not the engine that is not deterministic, not the one in TF32, not those by transforms.
  run(kF32);
  EXPECT_EQ(log.str(), "info cuDNN 90000: float32" + what +
                           " pinned, engine 1, sums float32, 1048576 bytes of workspace\n");
  run(kBf16);
  EXPECT_EQ(log.str(), "info cuDNN 90000: bfloat16" + what +
                           " pinned, engine 3, sums float32, 1048576 bytes of workspace\n");
  cuda_emu::LimitCudnn({.no_wider_sums = true});
  run(kBf16);
  EXPECT_EQ(log.str(), "info cuDNN 90000: bfloat16" + what +
                           " pinned, engine 3, sums bfloat16, 1048576 bytes of workspace\n");
  for (int engines : {3, 4, 5}) {  // TF32, Winograd and Fourier are all there is
    cuda_emu::LimitCudnn({.engines = engines});
    run(kF32);
    EXPECT_EQ(log.str(),
              "warning cuDNN 90000: no engine for float32" + what + "; our own kernels do it\n");
  }
  cuda_emu::LimitCudnn({});
  spdlog::set_default_logger(kept);
}

// One line for each weight shape at start, whatever weights share it, and all buckets below it.
TEST_F(CudaLibraryTest, ThePinnedAlgorithmOfEachShapeAndBucketIsLogged) {
  std::ostringstream log;
  const auto kept = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_st>(log));
  logger->set_level(spdlog::level::debug);
  logger->set_pattern("%l %v");
  spdlog::set_default_logger(logger);
  {
    const auto be = Open({.dtype = kBf16, .determinism = Determinism::kFast});
    for (const auto& [out, in] : {std::pair{70, 96}, {128, 96}, {65, 90}}) {
      const Matrix w = Matrix::Random(rng_, out, in, kF32);  // padded: 128 x 96, all of them
      const LinearSource source = {w.view(), {}};
      be->PackLinear({&source, 1});
    }
    const Matrix w = Matrix::Random(rng_, 64, 32, kF32);
    const LinearSource source = {w.view(), {}};
    be->PackLinear({&source, 1});
  }
  spdlog::set_default_logger(kept);
  const auto count = [&](const std::string& part) {
    int n = 0;
    for (size_t at = log.str().find(part); at != std::string::npos;
         at = log.str().find(part, at + 1))
      ++n;
    return n;
  };
  EXPECT_EQ(count("info cuBLASLt: "), 2) << log.str();
  EXPECT_EQ(count("info cuBLASLt: bfloat16 [128, 96] pinned, rows:algorithm/tile 32:21/32 64:21/64 "
                  "128:21/128 256:21/256 512:21/512 1024:21/1024 2048:21/2048"),
            1)
      << log.str();
  EXPECT_EQ(count("info cuBLASLt: bfloat16 [64, 32] pinned"), 1);
  EXPECT_EQ(count("debug cuBLASLt: bfloat16 [128, 96], 512 rows: algorithm 21, tile 512"), 1);
  EXPECT_EQ(count("debug cuBLASLt: "), 2 * 7);
}

// What a product's bucket has behind the rows and columns there are: zeros, and nothing is read
// there. Narrower and wider than the 1024 columns of a CTA, in three orders of the threads.
TEST_F(CudaLibraryTest, FastProductsPadTheirRowsWithZeros) {
  struct Case {
    int64_t columns, padded;
  };
  for (uint64_t seed : {1, 2, 3}) {
    cuda_emu::SetSeed(seed);
    for (const Case c : {Case{70, 96}, Case{1023, 1024}, Case{1025, 1056}, Case{2049, 2080}}) {
      for (DType x_type : {kF32, kBf16}) {
        const Matrix x = Matrix::Random(rng_, 5, c.columns, x_type, 2);  // NaN between rows
        Matrix y(8, c.padded, kBf16, 4);
        cuda::Queue queue;
        cuda::PadRows({y.view().bytes(), c.padded + 4, cuda::Type::kBFloat16},
                      {x.view().bytes(), c.columns + 2, cuda::TypeOf(x_type)}, 3, c.columns, 8,
                      c.padded, queue);
        queue.Wait();
        for (int64_t r = 0; r < 8; ++r) {
          for (int64_t col = 0; col < c.padded; ++col) {
            ASSERT_EQ(y.Get(r, col), r < 3 && col < c.columns ? x.GetAs(kBf16, r, col) : 0)
                << r << ", " << col;
          }
        }
        EXPECT_TRUE(y.PaddingUntouched());
      }
    }
  }
}

// The end of a library's product: bias, activation, an added y, in rows narrower and wider than the
// 1024 columns of a CTA, in three orders of the threads.
TEST_F(CudaLibraryTest, TheEndOfAProductIsTheReferences) {
  constexpr int64_t kRows = 3;
  for (uint64_t seed : {1, 2, 3}) {
    cuda_emu::SetSeed(seed);
    for (int64_t out : {1, 71, 1024, 1025, 2049}) {
      for (DType sums_type : {kF32, kBf16}) {
        for (Activation act : {Activation::kNone, Activation::kGelu, Activation::kQuickGelu}) {
          const bool add = act == Activation::kNone && sums_type == kF32;
          const Matrix sums = Matrix::Random(rng_, kRows, out, sums_type, 2);
          const Matrix bias = Matrix::Random(rng_, 1, out, kF32);
          Matrix y = Matrix::Random(rng_, kRows, out, add ? kF32 : kBf16, 3);
          const Matrix before = y;
          cuda::LinearProblem p = {
              .y = {y.view().bytes(), out + 3, cuda::TypeOf(add ? kF32 : kBf16)},
              .x = {},
              .rows = kRows,
              .in = 0,
              .in_padded = 0,
              .out = out,
              .type = cuda::Type::kBFloat16};
          p.activation = static_cast<cuda::Activation>(act);
          p.add = add;
          p.matrix.bias = bias.view().as<const float>();
          cuda::Queue queue;
          cuda::FinishLinear(p, {sums.view().bytes(), out + 2, cuda::TypeOf(sums_type)}, queue);
          queue.Wait();
          for (int64_t r = 0; r < kRows; ++r) {
            for (int64_t c = 0; c < out; ++c) {
              const double v = reference::Activate(act, double{sums.Get(r, c)} + bias.Get(0, c));
              const double truth = add ? before.Get(r, c) + v : v;
              // One rounding to y's type; the sums' own and erfc's in float32.
              const double bound = (add ? 0x1p-22 : 0x1p-8) * std::fabs(truth) + 1e-6;
              ASSERT_LE(std::fabs(y.Get(r, c) - truth), bound)
                  << out << " outputs, row " << r << ", output " << c;
            }
          }
          EXPECT_TRUE(y.PaddingUntouched());
        }
      }
    }
  }
}

TEST_F(CudaLibraryTest, AFastRowKeepsItsBitsWithinItsBucket) {
  const auto be =
      Open({.dtype = kBf16, .determinism = Determinism::kFast, .wait_after_each_op = true});
  const Matrix w = Matrix::Random(rng_, 64, 64, kF32);
  const LinearSource source = {w.view(), {}};
  const auto packed = be->PackLinear({&source, 1});
  const Matrix x = Matrix::Random(rng_, 64, 64, kBf16);
  Matrix all(64, 64, kF32), part(40, 64, kF32);
  be->Linear(all.view(), x.view(), *packed);
  be->Linear(part.view(), x.view().Rows(20, 60), *packed);  // 64 rows too, the last ones zero
  for (int64_t r = 0; r < 40; ++r) EXPECT_TRUE(part.SameRowBits(r, all, 20 + r)) << r;
}

}  // namespace
}  // namespace sensorium
