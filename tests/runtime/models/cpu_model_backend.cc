#include "runtime/cpu/cpu_backend.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {

const bool kModelBackendIsEmulated = false;

std::vector<std::string> ModelBackendVariants() {
  std::vector<std::string> levels;
  for (const CpuLevel level : AvailableCpuLevels()) levels.emplace_back(Name(level));
  return levels;
}

std::unique_ptr<Backend> MakeModelBackend(DType dtype, const std::string& variant) {
  CpuBackendOptions options = {.dtype = dtype, .level = {}};
  for (const CpuLevel level : AvailableCpuLevels()) {
    if (Name(level) == variant) options.level = level;
  }
  auto backend = CpuBackend::Create(options);
  CHECK(backend.ok()) << backend.status();
  return *std::move(backend);
}

}  // namespace sensorium
