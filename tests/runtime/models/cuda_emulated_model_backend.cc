// Models on the emulated device: all of the CUDA path, executed by emulation.
#include "cuda/cuda_backend.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {

const bool kModelBackendIsEmulated = true;

std::vector<std::string> ModelBackendVariants() { return {}; }

// Streams run only when waited for, and threads in a shuffled order: what holds here does not hang
// on either.
std::unique_ptr<Backend> MakeModelBackend(DType dtype, const std::string&) {
  cuda_emu::SetSeed(1);
  auto backend = CudaBackend::Create({.dtype = dtype});
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

}  // namespace sensorium
