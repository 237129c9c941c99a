// The host side of the CUDA backend on the emulated device: opening, memory, order, uploads,
// errors. What its ops compute is the op suite's (tests/runtime/backend). Executed by emulation.
#include "cuda/cuda_backend.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <tuple>

#include "absl/status/status.h"
#include "cuda/cuda_error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cuda/cuda_backend_fixture.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

TEST_F(CudaBackendTest, SaysWhichDeviceItIs) {
  EXPECT_EQ(Open()->description(), "cuda: emulated device (8.0), graphs");
  EXPECT_EQ(Open({.graphs = false})->description(), "cuda: emulated device (8.0)");
}

TEST_F(CudaBackendTest, WithoutADeviceOpeningSaysSo) {
  cuda_emu::SetDeviceCount(0);
  const absl::Status status = CudaBackend::Create({}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "no CUDA device: no CUDA-capable device is detected");
}

TEST_F(CudaBackendTest, RefusesOtherTypes) {
  EXPECT_EQ(CudaBackend::Create({.dtype = DType::kFloat16}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaBackendTest, AFullDeviceTellsThePlanOfMemoryAndNothingLeaks) {
  const char* kWanted[] = {"16.0 MiB wanted for workspace", "64.0 MiB wanted for workspace",
                           "32.0 MiB wanted for workspace"};  // uploads, scratch, cuBLASLt's
  for (int n : {4, 5, 6}) {                                   // behind the pinned buffers
    cuda_emu::FailAllocation(n);
    const absl::Status status = CudaBackend::Create({.determinism = Determinism::kFast}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(kWanted[n - 4]));
    EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
  }
  const auto backend = Open();
  const absl::Status huge = backend->Allocate(size_t{1} << 40).status();
  EXPECT_EQ(huge.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(huge.message()),
            "the CUDA device's memory: 1048576.0 MiB wanted for KV blocks and activations; taken: "
            "weights 0.0 MiB, KV blocks and activations 0.0 MiB, workspace 80.0 MiB, free 4016.0 "
            "MiB of 4096.0 MiB");
  EXPECT_EQ(backend->Allocate(SIZE_MAX).status().code(), absl::StatusCode::kResourceExhausted);
}

// A model that does not fit: what its weights, the KV blocks and the workspace take so far.
TEST_F(CudaBackendTest, WeightsThatDoNotFitTellThePlanOfMemory) {
  const Matrix w = Matrix::Random(rng_, 512, 512, kF32);
  const LinearSource source = {w.view(), {}};
  for (double share : {0.0, 0.75}) {
    cuda_emu::SetDeviceMemory(size_t{80} << 20);
    const auto be =
        Open({.memory_share = share, .scratch_bytes = size_t{48} << 20, .graphs = false});
    const auto kv = be->Allocate(size_t{2} << 20);
    ASSERT_TRUE(kv.ok()) << kv.status();
    std::vector<std::unique_ptr<LinearWeight>> layers;
    try {
      while (layers.size() < 100) layers.push_back(be->PackLinear({&source, 1}));
      ADD_FAILURE() << "a hundred MiB of eighty";
    } catch (const cuda::CudaError& e) {
      EXPECT_EQ(e.error(), cudaErrorMemoryAllocation);
      EXPECT_THAT(e.what(), HasSubstr("1.0 MiB wanted for weights; taken: weights "));
      EXPECT_THAT(e.what(), HasSubstr("KV blocks and activations 2.0 MiB, workspace 56.0 MiB"));
      EXPECT_THAT(e.what(), HasSubstr("out of memory (cudaErrorMemoryAllocation)"));
    }
    EXPECT_EQ(layers.size(), share == 0 ? 21u : 1u);
  }
}

TEST_F(CudaBackendTest, OneArenaIsTakenAtStartAndEveryBufferIsAPartOfIt) {
  cuda_emu::SetDeviceMemory(size_t{200} << 20);
  const int64_t before = cuda_emu::counters().device_allocations;
  const auto be = Open({.determinism = Determinism::kFast,
                        .memory_share = 0.5,
                        .upload_bytes = 1000,
                        .scratch_bytes = 100000});
  EXPECT_EQ(cuda_emu::AllocatedBytes(), size_t{100} << 20);
  const Matrix w = Matrix::Random(rng_, 64, 32, kF32);
  const LinearSource source = {w.view(), {}};
  const auto packed = be->PackLinear({&source, 1});
  // Gaps are filled again, the first that is large enough, and nothing overlaps.
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  for (size_t bytes : {1, 300, 256, 5000}) buffers.push_back(*be->Allocate(bytes));
  std::byte* const second = buffers[1]->data();
  buffers[1].reset();
  buffers[1] = *be->Allocate(512);
  EXPECT_EQ(buffers[1]->data(), second);
  buffers.push_back(*be->Allocate(513));
  for (const auto& a : buffers) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a->data()) % 256, 0u);
    for (const auto& b : buffers) {
      EXPECT_TRUE(a == b || a->data() + a->size_bytes() <= b->data() ||
                  b->data() + b->size_bytes() <= a->data());
    }
  }
  const absl::Status full = be->Allocate(size_t{90} << 20).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("of the 100.0 MiB taken at start"));
  EXPECT_EQ(cuda_emu::counters().device_allocations, before + 1);
}

// The host's memory that cannot be had is told apart from the device's.
TEST_F(CudaBackendTest, AHostThatCannotPinSaysSoAndNothingOfTheDevicesPlan) {
  const char* kWanted[] = {"16777216", "4194304", "2097152"};  // uploads, downloads, answers
  for (int n : {1, 2, 3}) {
    cuda_emu::FailAllocation(n);
    const absl::Status status = CudaBackend::Create({}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(std::string(status.message()), std::string("pinned host memory: ") + kWanted[n - 1] +
                                                 " bytes wanted, and the host does not give them");
    EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
  }
}

// Not even the driver finds room: there is a device, and it is somebody's mistake, not a machine
// without one.
TEST_F(CudaBackendTest, ADeviceWithoutRoomForTheDriverIsFullAndNotAbsent) {
  cuda_emu::SetDeviceMemory(0);
  const absl::Status status = CudaBackend::Create({.memory_share = 0.9}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("the CUDA device cannot be opened: cudaStreamCreate"),
                             HasSubstr("out of memory (cudaErrorMemoryAllocation)")));
}

TEST_F(CudaBackendTest, AnArenaThatCannotBeHadIsRefusedWithBothNumbers) {
  cuda_emu::FailAllocation(1);
  const absl::Status status = CudaBackend::Create({.memory_share = 0.9}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4096 of 4096 MiB are free"));
  EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
}

TEST_F(CudaBackendTest, AllocatesAlignedMemoryAndFreesIt) {
  const auto backend = Open();
  const size_t before = cuda_emu::AllocatedBytes();
  {
    auto buffer = backend->Allocate(1000);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 64, 0u);
    EXPECT_EQ((*buffer)->size_bytes(), 1000u);
  }
  EXPECT_EQ(cuda_emu::AllocatedBytes(), before);
  EXPECT_TRUE(backend->Allocate(0).ok());
}

// A device array of float32 [rows, columns].
class DeviceArray {
 public:
  DeviceArray(Backend& be, int64_t rows, int64_t columns)
      : be_(be), buffer_(*be.Allocate(rows * columns * 4)), rows_(rows), columns_(columns) {}
  DeviceArray(Backend& be, int64_t columns, const std::vector<float>& values)
      : DeviceArray(be, static_cast<int64_t>(values.size()) / columns, columns) {
    be.CopyFromHost(view(), values);
  }
  TensorView view() { return {buffer_->data(), kF32, {rows_, columns_}}; }
  std::vector<float> Read() {
    std::vector<float> y(rows_ * columns_);
    be_.CopyToHost(y, view());
    return y;
  }

 private:
  Backend& be_;
  std::unique_ptr<DeviceBuffer> buffer_;
  int64_t rows_, columns_;
};

TEST_F(CudaBackendTest, OpsAreQueuedAndRunInOrderWhenWaitedFor) {
  const auto be = Open();
  std::vector<float> host(6, 1.f);
  DeviceArray x(*be, 3, host), y(*be, 2, 3);
  std::fill(host.begin(), host.end(), 9.f);  // the caller's array is its own again at once
  be->Copy(y.view(), x.view());
  be->ScatterAddRows(y.view(), x.view(), std::vector<int32_t>{1, 0});
  EXPECT_TRUE(std::isnan(y.view().as<float>()[0])) << "ran before anything waited";
  EXPECT_EQ(y.Read(), std::vector<float>(6, 2.f));
}

TEST_F(CudaBackendTest, AStepWaitsOnceAndAllocatesNothing) {
  const auto be = Open({.dtype = kBf16});
  const Matrix w = Matrix::Random(rng_, 64, 64, kF32);
  const LinearSource source = {w.view(), {}};
  const auto packed = be->PackLinear({&source, 1});
  DeviceArray x(*be, 64, std::vector<float>(4 * 64, 1.f)), y(*be, 4, 64);
  const std::vector<int32_t> positions = {3, 1, 4, 1};
  const std::vector<float> inv_freq(32, 0.5f);
  y.Read();
  const cuda_emu::Counters before = cuda_emu::counters();
  for (int layer = 0; layer < 10; ++layer) {
    be->Linear(y.view(), x.view(), *packed);
    be->Rope(y.view().SplitColumns(1), positions, inv_freq);
  }
  y.Read();
  const cuda_emu::Counters after = cuda_emu::counters();
  EXPECT_EQ(after.launches - before.launches, 20);
  EXPECT_EQ(after.synchronisations - before.synchronisations, 1);
  EXPECT_EQ(after.device_allocations, before.device_allocations);
  // Positions and frequencies once for all layers.
  EXPECT_EQ(after.copies_to_device - before.copies_to_device, 2);
}

// More arrays than the upload buffer holds: it waits and starts again, and no kernel sees
// another's.
TEST_F(CudaBackendTest, ASmallUploadBufferOnlyWaitsMoreOften) {
  const auto be = Open({.upload_bytes = 2048, .scratch_bytes = 4096});
  std::vector<float> rows(50);
  std::iota(rows.begin(), rows.end(), 0.f);
  DeviceArray x(*be, 1, rows), y(*be, 50, 20);
  for (int32_t c = 0; c < 20; ++c) {
    std::vector<int32_t> from(50);
    for (int32_t r = 0; r < 50; ++r) from[r] = (r * 7 + c) % 50;
    be->GatherRows(y.view().Columns(c, c + 1), x.view(), from);
  }
  const std::vector<float> got = y.Read();
  for (int r = 0; r < 50; ++r)
    for (int c = 0; c < 20; ++c) EXPECT_EQ(got[r * 20 + c], (r * 7 + c) % 50);
}

// The pieces of one tile of rows over a long context may not fit the scratch: fewer rows at once
// then, down to one, and no bit changes.
TEST_F(CudaBackendTest, ContextsTooLongForTheScratchAreAttendedToInFewerRows) {
  constexpr int64_t kQueries = 70, kKeys = 1600, kDims = 64;  // four pieces
  for (DType dtype : {kF32, kBf16}) {
    const Matrix q = Matrix::Random(rng_, kQueries, kDims, dtype);
    const Matrix k = Matrix::Random(rng_, kKeys, kDims, dtype);
    const Matrix v = Matrix::Random(rng_, kKeys, kDims, dtype);
    const auto run = [&](size_t scratch_bytes) {
      const auto be = Open({.dtype = dtype, .scratch_bytes = scratch_bytes});
      Matrix y(kQueries, kDims, dtype);
      be->EncoderAttention(y.view().SplitColumns(1), q.view().SplitColumns(1),
                           k.view().SplitColumns(1), v.view().SplitColumns(1), 1, 0.125f);
      be->Wait();
      return y;
    };
    const Matrix whole = run(size_t{1} << 20);
    const size_t row_bytes = 4 * (kDims + 2) * sizeof(float);  // its four pieces
    for (size_t rows : {1, 13, 64}) {
      const Matrix cut = run(rows * row_bytes + 100);
      for (int64_t r = 0; r < kQueries; ++r) {
        ASSERT_TRUE(cut.SameRowBits(r, whole, r)) << r << ", " << rows << " rows at once";
      }
    }
  }
}

// What a call to the device came to: the error's text, "" when nothing was thrown.
template <typename F>
std::string ErrorOf(cudaError_t expected, F f) {
  try {
    f();
  } catch (const cuda::CudaError& e) {
    EXPECT_EQ(e.error(), expected);
    return e.what();
  }
  return "";
}

TEST_F(CudaBackendTest, AFailedKernelIsNamedAmongWhatWasQueued) {
  const auto be = Open();
  DeviceArray x(*be, 2, std::vector<float>(4, 1.f)), y(*be, 2, 2);
  y.Read();  // the ops before a wait that was well are not suspects
  cuda_emu::FailLaunch(2);
  be->Copy(y.view(), x.view());
  be->Copy(y.view(), x.view());
  be->MeanRows(y.view().Rows(0, 1), x.view(), 2);  // all queued: nobody knows yet
  const std::string error = ErrorOf(cudaErrorLaunchFailure, [&] { y.Read(); });
  EXPECT_THAT(error, HasSubstr("CopyToHost, cudaStreamSynchronize(stream_): unspecified launch "
                               "failure (cudaErrorLaunchFailure)"));
  EXPECT_THAT(error, HasSubstr("queued before"));
  EXPECT_THAT(error, HasSubstr(": 1 CopyToHost 2 Copy 1 MeanRows"));
}

TEST_F(CudaBackendTest, AFailedKernelIsNamedAloneWhenEachOpWaits) {
  const auto be = Open({.wait_after_each_op = true});
  DeviceArray x(*be, 2, std::vector<float>(4, 1.f)), y(*be, 2, 2);
  cuda_emu::FailLaunch(1);
  EXPECT_EQ(
      ErrorOf(cudaErrorLaunchFailure, [&] { be->MeanRows(y.view().Rows(0, 1), x.view(), 2); }),
      "MeanRows, its kernels: unspecified launch failure (cudaErrorLaunchFailure)");
}

TEST_F(CudaBackendTest, ARefusedLaunchIsNamedAtOnce) {
  const auto be = Open();
  DeviceArray x(*be, 2, std::vector<float>(4, 1.f)), y(*be, 2, 2);
  y.Read();
  cuda_emu::RefuseLaunch(1);
  const std::string error =
      ErrorOf(cudaErrorInvalidConfiguration, [&] { be->Copy(y.view(), x.view()); });
  EXPECT_EQ(error.find("Copy, "), 0u) << error;
  EXPECT_THAT(error, HasSubstr("invalid configuration argument (cudaErrorInvalidConfiguration)"));
}

// An array may be larger than the pinned buffer, and so may one row of it.
TEST_F(CudaBackendTest, ASmallDownloadBufferOnlyWaitsMoreOften) {
  for (size_t bytes : {64, 400, 404, 1 << 20}) {
    const auto be = Open({.download_bytes = bytes});
    std::vector<float> values(7 * 101);
    std::iota(values.begin(), values.end(), 0.f);
    DeviceArray x(*be, 101, values);
    EXPECT_EQ(x.Read(), values);
    std::vector<float> columns(7 * 90);
    be->CopyToHost(columns, x.view().Columns(5, 95));
    for (int i = 0; i < 7 * 90; ++i) ASSERT_EQ(columns[i], values[i / 90 * 101 + 5 + i % 90]);
  }
}

TEST_F(CudaBackendTest, TokensAreThereOnceWaitedFor) {
  const auto be = Open();
  DeviceArray logits(*be, 4, {1, 2, 3, 2, 9, 0, 0, 0});
  ChosenTokens first, second;
  std::vector<TokenChoice> choices(2);
  choices[1].row = 1;
  choices[1].num_likeliest = 2;
  const cuda_emu::Counters before = cuda_emu::counters();
  be->ChooseTokens(first, logits.view(), choices);
  be->ChooseTokens(second, logits.view(), {&choices[0], 1});
  EXPECT_EQ(first[0].token, 0) << "ran before anything waited";
  const cuda_emu::Counters queued = cuda_emu::counters();
  EXPECT_EQ(queued.synchronisations, before.synchronisations);
  EXPECT_EQ(queued.launches - before.launches, 2);
  EXPECT_EQ(queued.copies_to_device - before.copies_to_device, 2);
  EXPECT_EQ(queued.copies_to_host - before.copies_to_host, 2);
  be->Wait();
  EXPECT_EQ(cuda_emu::counters().synchronisations - before.synchronisations, 1);
  EXPECT_EQ(first[0].token, 2);
  EXPECT_EQ(second[0].token, 2);
  EXPECT_EQ(first[1].token, 0);
  ASSERT_EQ(first[1].likeliest.size(), 2u);
  EXPECT_EQ(first[1].likeliest[1].first, 1);
}

// Lists that many choices share are sent once, and answers that have no room wait for it.
TEST_F(CudaBackendTest, SmallBuffersOnlyMakeChoicesWaitMoreOften) {
  std::vector<float> values(3 * 200);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101);
  const std::vector<int32_t> banned = {100, 3, 77, 199}, asked = {5, 6, 7};
  std::vector<TokenChoice> choices(40);
  for (int i = 0; i < 40; ++i) {
    choices[i].row = i % 3;
    choices[i].banned[i % 2] = banned;
    choices[i].num_likeliest = i % 7;
    if (i % 5 == 0) choices[i].asked = asked;
  }
  std::vector<std::vector<std::tuple<int32_t, float, std::vector<TokenLogProb>>>> answers;
  std::vector<int64_t> waits;
  for (const CudaBackendOptions& options :
       {CudaBackendOptions{}, CudaBackendOptions{.answer_bytes = 512},
        CudaBackendOptions{.upload_bytes = 2048}, CudaBackendOptions{.scratch_bytes = 512}}) {
    const auto be = Open(options);
    DeviceArray logits(*be, 200, values);
    const int64_t before = cuda_emu::counters().synchronisations;
    ChosenTokens chosen;
    be->ChooseTokens(chosen, logits.view(), choices);
    be->Wait();
    waits.push_back(cuda_emu::counters().synchronisations - before);
    auto& all = answers.emplace_back();
    for (int i = 0; i < 40; ++i) {
      const ChosenToken& c = chosen[i];
      all.push_back({c.token, c.logprob, {c.likeliest.begin(), c.likeliest.end()}});
      EXPECT_EQ(c.likeliest.size(), static_cast<size_t>(i % 7));
      for (size_t a = 0; a < c.asked.size(); ++a) {
        EXPECT_EQ(c.asked[a], values[i % 3 * 200 + asked[a]]);
      }
    }
    EXPECT_EQ(all, answers[0]);
  }
  EXPECT_EQ(waits[0], 1);
  EXPECT_GT(waits[1], 1);
  EXPECT_GT(waits[2], 1);
  EXPECT_EQ(waits[3], 1);
}

TEST_F(CudaBackendTest, AFailedChoiceIsNamedByTheWaitAndForgotten) {
  const auto be = Open();
  DeviceArray logits(*be, 2, {1, 2});
  ChosenTokens chosen;
  const TokenChoice choice;
  cuda_emu::FailLaunch(1);
  be->ChooseTokens(chosen, logits.view(), {&choice, 1});
  const std::string error = ErrorOf(cudaErrorLaunchFailure, [&] { be->Wait(); });
  EXPECT_THAT(error, HasSubstr("Wait, "));
  EXPECT_THAT(error, HasSubstr("1 ChooseTokens"));
  cuda_emu::FailLaunch(0);
  be->Wait();
  EXPECT_EQ(chosen[0].token, 0) << "what never ran gives no answer";
}

// Rows that are not 16-byte aligned take another way into shared memory: the same values arrive.
TEST_F(CudaBackendTest, AlignedAndStridedRowsGiveTheSameBits) {
  const auto be = Open({.dtype = kBf16, .wait_after_each_op = true});
  for (const auto& [rows, in] :
       {std::pair<int64_t, int64_t>{3, 104}, {70, 104}, {3, 99}, {70, 99}}) {
    const int64_t out = 70, to_even = 8 - in % 8;  // what lies between rows is NaN
    const Matrix w = Matrix::Random(rng_, out, in, kF32);
    const LinearSource source = {w.view(), {}};
    const auto packed = be->PackLinear({&source, 1});
    const Matrix x = Matrix::Random(rng_, rows, in, kBf16);
    Matrix strided(rows, in, kBf16, 3), even(rows, in, kBf16, 8 + to_even);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < in; ++c) {
        strided.Set(r, c, x.Get(r, c)), even.Set(r, c, x.Get(r, c));
      }
    }
    Matrix y[3] = {{rows, out, kF32}, {rows, out, kF32}, {rows, out, kF32}};
    be->Linear(y[0].view(), x.view(), *packed);
    be->Linear(y[1].view(), std::as_const(strided).view(), *packed);
    be->Linear(y[2].view(), std::as_const(even).view(), *packed);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < out; ++c) ASSERT_TRUE(std::isfinite(y[0].Get(r, c)));
      EXPECT_TRUE(y[1].SameRowBits(r, y[0], r) && y[2].SameRowBits(r, y[0], r)) << r;
    }
  }
  for (int64_t dims : {64, 128}) {
    const int64_t rows = 75;
    const Matrix q = Matrix::Random(rng_, rows, 2 * dims, kBf16);
    Matrix k = Matrix::Random(rng_, rows, 2 * dims, kBf16), odd(rows, 2 * dims, kBf16, 5);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < 2 * dims; ++c) odd.Set(r, c, k.Get(r, c));
    Matrix a(rows, 2 * dims, kF32), b(rows, 2 * dims, kF32);
    const auto run = [&](Matrix& y, const Matrix& keys) {
      be->EncoderAttention(y.view().SplitColumns(2), q.view().SplitColumns(2),
                           keys.view().SplitColumns(2), keys.view().SplitColumns(2), 1, 0.1f);
    };
    run(a, k);
    run(b, odd);
    for (int64_t r = 0; r < rows; ++r) EXPECT_TRUE(a.SameRowBits(r, b, r)) << r;
  }
}

// Both heights of tile run the same chain of additions.
TEST_F(CudaBackendTest, ARowHasTheSameBitsAloneAndInATallTile) {
  for (DType dtype : {kF32, kBf16}) {
    const auto be = Open({.dtype = dtype, .wait_after_each_op = true});
    const int64_t in = 200, out = 65, rows = 130;
    const Matrix w = Matrix::Random(rng_, out, in, kF32);
    const LinearSource source = {w.view(), {}};
    const auto packed = be->PackLinear({&source, 1});
    const Matrix x = Matrix::Random(rng_, rows, in, dtype);
    Matrix all(rows, out, kF32), one(1, out, kF32);
    be->Linear(all.view(), x.view(), *packed, Activation::kGelu);
    for (int64_t r : {int64_t{0}, int64_t{63}, int64_t{64}, rows - 1}) {
      be->Linear(one.view(), x.view().Rows(r, r + 1), *packed, Activation::kGelu);
      EXPECT_TRUE(one.SameRowBits(0, all, r)) << r;
    }
  }
}

}  // namespace
}  // namespace sensorium
