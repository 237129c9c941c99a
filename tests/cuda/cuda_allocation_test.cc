// No step of the engine takes memory of the host on the CUDA backend either: the malloc of
// guarded_malloc.h under a mixed load. Executed by emulation, whose own memory is allowed
// (tests/cuda_emu/allowed_allocation.h).
#include <thread>
#include <vector>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/runtime/engine/engine_fixture.h"
#include "tests/runtime/engine/guarded_malloc.h"

namespace sensorium {
namespace {

class CudaAllocationTest : public ::testing::TestWithParam<Determinism> {
 protected:
  void SetUp() override {
    void* warm[1];
    backtrace(warm, 1);  // loads libgcc, with malloc
  }
};

TEST(CudaAllocationGuardTest, WhatIsNotTheEmulatedDevicesIsStillCaught) {
  cuda::Queue queue;
  void* place = nullptr;
  ASSERT_EQ(cudaMalloc(&place, 64), cudaSuccess);
  EXPECT_DEATH(
      {
        const NoAllocationScope scope;
        cudaMemcpyAsync(place, &place, sizeof(place), cudaMemcpyHostToDevice, queue.stream());
        std::vector<int> taken(100);
        static_cast<volatile int*>(taken.data())[1] = 5;
      },
      "a step asked for memory");
  cudaFree(place);
}

// Pictures and speech made on the device, several answers, edits, stop strings, many alternatives,
// a draw, prompts in chunks; recorded decodes, and steps that are no recorded ones.
TEST_P(CudaAllocationTest, NoStepOfAMixedLoadTakesMemory) {
  cuda_emu::SetSeed(2);
  EngineConfig config = SmallConfig();
  config.kv_cache_bytes = 32 << 20;
  config.max_batch_tokens = 64;
  config.max_batch_seqs = 12;
  config.max_encode_units = 2;
  config.calibrate = false;
  config.media = MediaPlace::kDevice;
  spdlog::set_level(spdlog::level::err);
  auto backend = CudaBackend::Create({.dtype = DType::kBFloat16, .determinism = GetParam()});
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto engine = Engine::Create(config, *std::move(backend));
  ASSERT_TRUE(engine.ok()) << engine.status();
  const int64_t replays = cuda_emu::counters().graph_launches;

  std::vector<std::shared_ptr<GenerateQueue>> answers;
  for (int i = 0; i < 5; ++i) {
    GenerateRequest g = Ask(i % 2 ? "Point to the blue square." : "How many red circles are there?",
                            i == 1 ? "shapes.png" : "", 4 + 3 * i);
    g.n = 1 + i % 2;
    g.logprobs = 5 * i;
    if (i == 2) g.stop = {" circle", ". "};
    if (i > 2) {
      g.sampling = EverySamplingOption(7);
    }
    answers.push_back((*engine)->Generate(std::move(g)));
  }
  TranscribeRequest t = Hear("question.wav");
  t.options.beam_size = 2;
  const auto transcript = (*engine)->Transcribe(std::move(t));
  std::vector<std::thread> readers;
  for (auto& queue : answers) {
    readers.emplace_back([&queue] {
      const auto answer = Collect(*queue);
      EXPECT_TRUE(answer.ok()) << answer.status();
    });
  }
  EXPECT_TRUE(Collect(*transcript).ok());
  for (std::thread& reader : readers) reader.join();
  EXPECT_GT((*engine)->Stats().steps, 10);
  EXPECT_GT(cuda_emu::counters().graph_launches, replays);
}

INSTANTIATE_TEST_SUITE_P(Ways, CudaAllocationTest,
                         ::testing::Values(Determinism::kStrict, Determinism::kFast),
                         [](const auto& info) {
                           return info.param == Determinism::kFast ? "fast" : "strict";
                         });

}  // namespace
}  // namespace sensorium
