#include "server/backend_factory.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/cpu_level.h"

namespace sensorium {

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options) {
  CpuBackendOptions cpu;
  if (options.dtype == "float32") {
    cpu.dtype = DType::kFloat32;
  } else if (options.dtype == "bfloat16") {
    cpu.dtype = DType::kBFloat16;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype is '", options.dtype, "'; there are float32 and bfloat16"));
  }
  if (options.device == "cuda") {
    return absl::FailedPreconditionError("device is 'cuda'; this build has the CPU backend only");
  }
  if (options.device != "cpu" && options.device != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("device is '", options.device, "'; there are cpu and auto"));
  }
  if (options.cpu_level != "auto") {
    ASSIGN_OR_RETURN(cpu.level, ParseCpuLevel(options.cpu_level));
  }
  cpu.threads = options.threads;
  cpu.pin_threads = options.pin_threads;
  return CpuBackend::Create(cpu);
}

}  // namespace sensorium
