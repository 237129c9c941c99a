#include "runtime/cpu/cpu_backend.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {

const bool kModelBackendIsEmulated = false;

std::unique_ptr<Backend> MakeModelBackend(DType dtype) {
  auto backend = CpuBackend::Create({.dtype = dtype, .level = {}});
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

}  // namespace sensorium
