// The emulated device itself, its kernels executed by emulation: what it computes, and that it
// notices what the hardware would not.
#include "tests/cuda_emu/emulator.h"

#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/ptx.h"
#include "cuda/primitives.cuh"
#include "gtest/gtest.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/sanitized.h"

namespace sensorium::cuda {
namespace {

// Runs `body` as a kernel at once.
void RunKernel(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  cuda_emu::RunGrid(grid, block, shared_bytes, body);
}

class EmulatorTest : public testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override { cuda_emu::SetSeed(GetParam()); }
  void TearDown() override { cuda_emu::SetSeed(0); }
};

TEST_P(EmulatorTest, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> seen(2 * 3 * 2 * 70);
  RunKernel({2, 3, 2}, {35, 2}, 0, [&] {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    ++seen[block * 70 + threadIdx.y * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST_P(EmulatorTest, ABarrierOrdersWritesBeforeReads) {
  std::vector<int> y(256);
  RunKernel(1, 256, 256 * sizeof(int), [&] {
    int* s = &shared_memory<int>();
    for (int round = 0; round < 3; ++round) {
      s[threadIdx.x] = static_cast<int>(threadIdx.x) + round;
      __syncthreads();
      y[threadIdx.x] += s[255 - threadIdx.x];
      __syncthreads();
    }
  });
  for (int i = 0; i < 256; ++i) EXPECT_EQ(y[i], 3 * (255 - i) + 3);
}

TEST_P(EmulatorTest, SharedMemoryIsNaNBeforeEachBlock) {
  std::vector<float> y(2 * 64);
  RunKernel(2, 64, 64 * sizeof(float), [&] {
    float* s = &shared_memory<float>();
    y[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];
    s[threadIdx.x] = 1;
  });
  for (float v : y) EXPECT_TRUE(std::isnan(v));
}

TEST_P(EmulatorTest, WarpAndBlockSumsAreTheSameForAllThreads) {
  std::vector<float> warp(128), block(128), max(128);
  RunKernel(1, 128, 32 * sizeof(float), [&] {
    const float v = static_cast<float>(threadIdx.x);
    warp[threadIdx.x] = WarpSum(v);
    max[threadIdx.x] = WarpMax(v);
    block[threadIdx.x] = BlockSum(v, &shared_memory<float>());
  });
  for (int i = 0; i < 128; ++i) {
    EXPECT_EQ(warp[i], static_cast<float>(i / 32 * 32 * 32 + 496));
    EXPECT_EQ(max[i], static_cast<float>(i / 32 * 32 + 31));
    EXPECT_EQ(block[i], 127 * 64);
  }
}

TEST_P(EmulatorTest, AnAsyncCopyIsNaNUntilItsWait) {
  alignas(16) const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> early(8), late(8);
  RunKernel(1, 1, sizeof(from), [&] {
    float* s = &shared_memory<float>();
    cp_async_16(s, from, 16);
    cp_async_commit();
    cp_async_16(s + 4, from + 4, 8);  // zeros behind 8 bytes
    cp_async_commit();
    cp_async_wait<1>();
    std::copy(s, s + 8, early.begin());
    cp_async_wait<0>();
    std::copy(s, s + 8, late.begin());
  });
  EXPECT_EQ(early[3], 4);
  EXPECT_TRUE(std::isnan(early[4]) && std::isnan(early[7]));
  EXPECT_EQ(late, (std::vector<float>{1, 2, 3, 4, 5, 6, 0, 0}));
}

// Matrices of small integers: every sum is exact.
TEST_P(EmulatorTest, LdmatrixAndMmaMultiplyMatrices) {
  std::mt19937 rng(7);
  std::uniform_int_distribution<int> small(-8, 8);
  struct Shared {
    __nv_bfloat16 a[16][16], b[16][16], v[16][16];  // b [n, k], v [k, n]
  };
  Shared m;
  for (auto* matrix : {&m.a, &m.b, &m.v})
    for (auto& row : *matrix)
      for (auto& e : row) e = __float2bfloat16(static_cast<float>(small(rng)));
  float by_rows[16][16], by_columns[16][16];  // a b^T and a v
  RunKernel(1, 32, sizeof(Shared), [&] {
    auto& s = shared_memory<Shared>();
    if (threadIdx.x == 0) s = m;
    __syncwarp();
    const int lane = static_cast<int>(threadIdx.x);
    uint32_t a[4], b[4], v[4];
    ldmatrix_x4(a, &s.a[lane % 16][lane / 16 * 8]);
    ldmatrix_x4(b, &s.b[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
    ldmatrix_x4_trans(v, &s.v[lane % 16][lane / 16 * 8]);
    for (int half = 0; half < 2; ++half) {
      float c[4] = {1, 1, 1, 1}, d[4] = {};
      mma_bf16_16816(c, a, b[2 * half], b[2 * half + 1]);
      mma_bf16_16816(d, a, v[2 * half], v[2 * half + 1]);
      for (int e = 0; e < 4; ++e) {
        by_rows[lane / 4 + e / 2 * 8][half * 8 + lane % 4 * 2 + e % 2] = c[e];
        by_columns[lane / 4 + e / 2 * 8][half * 8 + lane % 4 * 2 + e % 2] = d[e];
      }
    }
  });
  for (int i = 0; i < 16; ++i) {
    for (int n = 0; n < 16; ++n) {
      float c = 1, d = 0;
      for (int k = 0; k < 16; ++k) {
        c += __bfloat162float(m.a[i][k]) * __bfloat162float(m.b[n][k]);
        d += __bfloat162float(m.a[i][k]) * __bfloat162float(m.v[k][n]);
      }
      EXPECT_EQ(by_rows[i][n], c);
      EXPECT_EQ(by_columns[i][n], d);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, EmulatorTest, testing::Values(0, 1, 2, 3));

// These race on purpose.
TEST(EmulatorOrderTest, SeedsShuffleTheOrderOfThreads) {
  if (kForRaces) GTEST_SKIP() << "ThreadSanitizer would report what is tested";
  std::set<std::vector<unsigned>> orders;
  for (uint64_t seed : {0, 1, 2, 3}) {
    cuda_emu::SetSeed(seed);
    std::vector<unsigned> order;
    RunKernel(1, 64, 0, [&] { order.push_back(threadIdx.x); });
    orders.insert(order);
  }
  cuda_emu::SetSeed(0);
  EXPECT_EQ(orders.size(), 4u);
}

// Without the barrier some thread reads what is not there yet, in every order.
TEST(EmulatorOrderTest, AMissingBarrierIsSeen) {
  if (kForRaces) GTEST_SKIP() << "ThreadSanitizer would report what is tested";
  for (uint64_t seed : {0, 1, 2}) {
    cuda_emu::SetSeed(seed);
    bool nan = false;
    RunKernel(1, 64, 64 * sizeof(float), [&] {
      float* s = &shared_memory<float>();
      s[threadIdx.x] = 1;
      nan |= std::isnan(s[63 - threadIdx.x]);
    });
    EXPECT_TRUE(nan);
  }
  cuda_emu::SetSeed(0);
}

// A warp that runs ahead overwrites what others still read: in turns alone nobody would see it.
TEST(EmulatorOrderTest, AWarpMayRunAheadOfTheOthers) {
  if (kForRaces) GTEST_SKIP() << "ThreadSanitizer would report what is tested";
  int overtaken = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    cuda_emu::SetSeed(seed);
    int wrong = 0;
    RunKernel(1, 128, 4 * sizeof(float), [&] {
      float* s = &shared_memory<float>();
      s[threadIdx.x / 32] = 1;
      __syncthreads();
      float sum = 0;
      for (int w = 0; w < 4; ++w) sum += s[w];
      wrong += sum != 4;
      const float next = WarpSum(sum);  // no barrier before this is written
      s[threadIdx.x / 32] = next;
    });
    overtaken += wrong > 0;
  }
  cuda_emu::SetSeed(0);
  EXPECT_GE(overtaken, 2);
  EXPECT_LE(overtaken, 6);
}

#if defined(__SANITIZE_THREAD__)
// The witnesses of what ThreadSanitizer is told: of several blocks some show each race, whether the
// shared values came out right or not.
TEST(EmulatorDeathTest, ARaceOfTwoThreadsIsReported) {
  const auto end = [](unsigned threads, const std::function<void(float*)>& body) {
    cuda_emu::SetSeed(1);
    RunKernel(8, threads, 64 * sizeof(float), [&] { body(&shared_memory<float>()); });
    std::exit(0);  // the sanitizer makes 66 of it
  };
  const auto reported = testing::ExitedWithCode(66);
  // Two warps need a barrier between them; so do a copy's waiter and its readers.
  EXPECT_EXIT(end(64,
                  [](float* s) {
                    s[threadIdx.x] = 1;
                    __syncwarp();
                    s[threadIdx.x] += s[63 - threadIdx.x] * 0;
                  }),
              reported, "data race.*emulator_test");
  alignas(16) static const float kFrom[64] = {};
  EXPECT_EXIT(end(64,
                  [](float* s) {
                    if (threadIdx.x % 4 == 0) cp_async_16(s + threadIdx.x, kFrom + threadIdx.x, 16);
                    cp_async_commit();
                    cp_async_wait<0>();
                    __syncwarp();
                    if (s[63 - threadIdx.x] == 1) std::exit(1);
                  }),
              reported, "data race");
  // Two lanes need a rendezvous, in a block of many warps and of one.
  for (const unsigned threads : {32u, 64u}) {
    EXPECT_EXIT(end(threads,
                    [](float* s) {
                      s[threadIdx.x] = 1;
                      if (s[threadIdx.x ^ 1] == 2) std::exit(1);
                    }),
                reported, "data race");
  }
  // Nothing to report.
  EXPECT_EXIT(end(64,
                  [](float* s) {
                    s[threadIdx.x] = 1;
                    __syncwarp();
                    if (s[threadIdx.x ^ 1] == 2) std::exit(1);
                    __syncthreads();
                    s[63 - threadIdx.x] = 2;
                  }),
              testing::ExitedWithCode(0), "");
}
#endif

TEST(EmulatorDeathTest, NamesWhatCanNeverComplete) {
  EXPECT_DEATH(RunKernel(1, 64, 0,
                         [] {
                           if (threadIdx.x < 32) __syncthreads();
                         }),
               "barrier");
  EXPECT_DEATH(RunKernel(1, 32, 0,
                         [] {
                           if (threadIdx.x == 5) {
                             __syncthreads();
                           } else {
                             WarpSum(1.f);
                           }
                         }),
               "hangs|waits");
  EXPECT_DEATH(RunKernel(1, 32, 0,
                         [] {
                           if (threadIdx.x < 16) {
                             __syncwarp();
                           } else {
                             WarpSum(1.f);
                           }
                         }),
               "lanes of one warp meet");
  EXPECT_DEATH(RunKernel(1, 32, 64,
                         [] {
                           uint32_t r[4];
                           ldmatrix_x4(r, &shared_memory<char>() + 2);
                         }),
               "unaligned");
  EXPECT_DEATH(RunKernel(1, 2000, 0, [] {}), "2000 threads");
  EXPECT_DEATH(RunKernel(1, 32, 200 * 1024, [] {}), "shared memory");
}

// ---- The runtime's calls -----------------------------------------------------------------------

class RuntimeTest : public testing::Test {
 protected:
  void SetUp() override { CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  void TearDown() override {
    CUDA_CHECK(cudaStreamDestroy(stream_));
    cuda_emu::FailLaunch(0);
  }
  cudaStream_t stream_;
};

TEST_F(RuntimeTest, WorkRunsWhenItIsWaitedForAndInOrder) {
  std::vector<int> order;
  const auto note = [&](int i) {
    CUDA_CHECK(cuda_emu::Launch(1, 1, 0, stream_, [&order, i] { order.push_back(i); }));
  };
  note(1);
  note(2);
  EXPECT_TRUE(order.empty());
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST_F(RuntimeTest, PinnedMemoryIsReadWhenTheCopyRunsAndPageableAtTheCall) {
  void *device, *pinned;
  CUDA_CHECK(cudaMalloc(&device, 8));
  CUDA_CHECK(cudaMallocHost(&pinned, 4));
  int pageable = 1, y[2];
  *static_cast<int*>(pinned) = 1;
  CUDA_CHECK(cudaMemcpyAsync(device, &pageable, 4, cudaMemcpyHostToDevice, stream_));
  CUDA_CHECK(
      cudaMemcpyAsync(static_cast<char*>(device) + 4, pinned, 4, cudaMemcpyHostToDevice, stream_));
  pageable = 2;
  *static_cast<int*>(pinned) = 2;  // too early: a bug that shows
  CUDA_CHECK(cudaMemcpyAsync(y, device, 8, cudaMemcpyDeviceToHost, stream_));
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 2);
  CUDA_CHECK(cudaFreeHost(pinned));
  CUDA_CHECK(cudaFree(device));
}

TEST_F(RuntimeTest, TheNthAllocationFailsWhenAsked) {
  void* p[3];
  cuda_emu::FailAllocation(2);
  EXPECT_EQ(cudaMalloc(&p[0], 16), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&p[1], 16), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&p[2], 16), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  CUDA_CHECK(cudaFree(p[0]));
  CUDA_CHECK(cudaFree(p[2]));
}

TEST_F(RuntimeTest, AFailedKernelFailsEveryCallBehindIt) {
  cuda_emu::FailLaunch(2);
  int ran = 0;
  for (int i = 0; i < 3; ++i) {
    CUDA_CHECK(cuda_emu::Launch(1, 1, 0, stream_, [&] { ++ran; }));
  }
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(cuda_emu::Launch(1, 1, 0, stream_, [] {}), cudaErrorLaunchFailure);
}

// A captured stream runs nothing; its graph runs all of it, as often as it is launched, in the
// order of the stream it is launched on.
TEST_F(RuntimeTest, AGraphRunsWhatWasCapturedEachTimeItIsLaunched) {
  std::string ran;
  const auto put = [&](char c) {
    CUDA_CHECK(cuda_emu::Launch(1, 1, 0, stream_, [&ran, c] { ran += c; }));
  };
  const cuda_emu::Counters before = cuda_emu::counters();
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  put('a');
  put('b');
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(ran, "");
  put('x');
  CUDA_CHECK(cudaGraphLaunch(exec, stream_));
  put('y');
  CUDA_CHECK(cudaGraphLaunch(exec, stream_));
  CUDA_CHECK(cudaGraphExecDestroy(exec));  // what is queued already needs it no more
  EXPECT_EQ(ran, "");
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(ran, "xabyab");
  const cuda_emu::Counters after = cuda_emu::counters();
  EXPECT_EQ(after.launches - before.launches, 2);
  EXPECT_EQ(after.graphs - before.graphs, 1);
  EXPECT_EQ(after.graph_kernels - before.graph_kernels, 2);
  EXPECT_EQ(after.graph_launches - before.graph_launches, 2);
  EXPECT_EQ(cuda_emu::LiveGraphs(), 0);
}

TEST_F(RuntimeTest, AKernelThatIsFirstLaunchedWhileACaptureRunsIsCounted) {
  const int kernels[2] = {};
  const auto launch = [&](int k) {
    CUDA_CHECK(cuda_emu::Launch(
        1, 1, 0, stream_, [] {}, &kernels[k]));
  };
  const auto loaded = [] { return cuda_emu::counters().loaded_in_capture; };
  cuda_emu::ForgetKernels();
  launch(0);
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  launch(0);
  EXPECT_EQ(loaded(), 0);
  launch(1);
  launch(1);
  EXPECT_EQ(loaded(), 1);
  cuda_emu::ForgetKernels();
  launch(0);
  EXPECT_EQ(loaded(), 1);
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  CUDA_CHECK(cudaGraphDestroy(graph));
  cuda_emu::ForgetKernels();
}

TEST_F(RuntimeTest, WhatACaptureMayNotDoFailsAndSpoilsIt) {
  void* p = nullptr;
  const std::function<cudaError_t()> kIllegal[] = {
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaMalloc(&p, 16); },
      [&] { return cudaMallocHost(&p, 16); },
  };
  for (const auto& illegal : kIllegal) {
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    CUDA_CHECK(cuda_emu::Launch(1, 1, 0, stream_, [] {}));
    EXPECT_EQ(illegal(), cudaErrorStreamCaptureUnsupported);
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    cudaGetLastError();
    CUDA_CHECK(cudaStreamSynchronize(stream_));  // it is an ordinary stream again
  }
}

TEST_F(RuntimeTest, AKernelOfAGraphCanFailLikeAnyOther) {
  int ran = 0;
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 3; ++i) CUDA_CHECK(cuda_emu::Launch(1, 1, 0, stream_, [&] { ++ran; }));
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cuda_emu::FailLaunch(5);  // the second of the second launch
  CUDA_CHECK(cudaGraphLaunch(exec, stream_));
  CUDA_CHECK(cudaGraphLaunch(exec, stream_));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorLaunchFailure);
  EXPECT_EQ(ran, 4);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaErrorLaunchFailure);
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace sensorium::cuda
