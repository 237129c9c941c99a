#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/runtime/backend/ops_fixture.h"

namespace sensorium {

// The suite on the emulated device, executed by emulation: three shuffled orders of the threads
// (seed 0 would be the ascending one, which hides what an order can break). The suite reads results
// where they are, so each op waits; small buffers make ops work in pieces.
std::vector<BackendUnderTest> BackendsUnderTest() {
  std::vector<uint64_t> seeds = {1, 2, 3};
  if (kSanitized) seeds = {1};  // they see what one order does
  std::vector<BackendUnderTest> backends;
  const auto open = [](uint64_t seed, Determinism determinism) {
    return [=](DType dtype, int) {
      cuda_emu::SetSeed(seed);
      // Less than a real cuDNN may have.
      cuda_emu::LimitCudnn({.no_wider_sums = true});
      auto backend = CudaBackend::Create({.dtype = dtype,
                                          .determinism = determinism,
                                          .upload_bytes = size_t{1} << 18,
                                          .scratch_bytes = size_t{1} << 20,
                                          .wait_after_each_op = true});
      CHECK(backend.ok()) << backend.status().ToString();
      return std::move(backend).value();
    };
  };
  for (const uint64_t seed : seeds) {
    backends.push_back(
        {absl::StrCat("cuda_emulated_seed", seed), open(seed, Determinism::kStrict)});
  }
  // The stand-ins' products and convolutions, and the kernels before and behind them.
  backends.push_back({.name = "cuda_emulated_fast",
                      .make = open(1, Determinism::kFast),
                      .fast = true,
                      .products_only = true});
  return backends;
}

}  // namespace sensorium
