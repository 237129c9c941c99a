// What the tests of the CUDA backend's host side share: an emulated device that is whole again, and
// has all its memory back, behind each test.
#pragma once

#include <memory>
#include <random>
#include <utility>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/runtime/cpu/random_matrix.h"

namespace sensorium {

inline constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16;

inline std::unique_ptr<Backend> Open(CudaBackendOptions options = {}) {
  auto backend = CudaBackend::Create(options);
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

class CudaBackendTest : public testing::Test {
 protected:
  void TearDown() override {
    cuda_emu::SetSeed(0);
    cuda_emu::FailLaunch(0);
    cuda_emu::RefuseLaunch(0);
    cuda_emu::FailAllocation(0);
    cuda_emu::SetDeviceCount(1);
    cuda_emu::SetDeviceMemory(size_t{4} << 30);
    EXPECT_EQ(cuda_emu::AllocatedBytes(), 0u);
  }
  std::mt19937 rng_{11};
};

}  // namespace sensorium
