#include <cstdio>
#include <cstdlib>

#include "cuda/cuda_backend.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {

const bool kModelBackendIsEmulated = false;

std::vector<std::string> ModelBackendVariants() { return {}; }

std::unique_ptr<Backend> MakeModelBackend(DType dtype, const std::string&) {
  auto backend = CudaBackend::Create({.dtype = dtype});
  if (absl::IsFailedPrecondition(backend.status())) {
    std::printf("%s: nothing was tested\n", std::string(backend.status().message()).c_str());
    std::exit(77);  // ctest: skipped
  }
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

}  // namespace sensorium
