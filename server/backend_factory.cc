#include "server/backend_factory.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/cpu_level.h"
#include "runtime/engine/device_media.h"
#include "spdlog/spdlog.h"
#ifdef SENSORIUM_CUDA
#include "cuda/cuda_backend.h"
#endif

namespace sensorium {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> OpenCpu(const BackendOptions& options, DType dtype) {
  CpuBackendOptions cpu;
  cpu.dtype = dtype;
  if (options.cpu_level != "auto") {
    ASSIGN_OR_RETURN(cpu.level, ParseCpuLevel(options.cpu_level));
  }
  cpu.threads = options.threads;
  cpu.pin_threads = options.pin_threads;
  return CpuBackend::Create(cpu);
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(const BackendOptions& options, DType dtype) {
#ifdef SENSORIUM_CUDA
  const bool fast = options.determinism == "fast";
  CudaBackendOptions cuda = {.dtype = dtype,
                             .determinism = fast ? Determinism::kFast : Determinism::kStrict,
                             .memory_share = options.memory_share,
                             .graphs = options.cuda_graphs};
  // Beside a step's small arrays, the media that it may bring: nothing waits for room then. What is
  // more than that many units waits, which is little against its way through an encoder.
  constexpr int32_t kMostUnits = 32;
  cuda.upload_bytes +=
      static_cast<size_t>(std::min(options.media_units, kMostUnits)) * kMediaUnitBytes;
  return CudaBackend::Create(cuda);
#else
  return absl::FailedPreconditionError("device is 'cuda'; this build has the CPU backend only");
#endif
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options) {
  DType dtype;
  if (options.dtype == "float32") {
    dtype = DType::kFloat32;
  } else if (options.dtype == "bfloat16") {
    dtype = DType::kBFloat16;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype is '", options.dtype, "'; there are float32 and bfloat16"));
  }
  if (options.determinism != "strict" && options.determinism != "fast") {
    return absl::InvalidArgumentError(
        absl::StrCat("determinism is '", options.determinism, "'; there are strict and fast"));
  }
  if (options.device == "cpu") return OpenCpu(options, dtype);
  if (options.device == "cuda") return OpenCuda(options, dtype);
  if (options.device != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("device is '", options.device, "'; there are cpu, cuda and auto"));
  }
  auto cuda = OpenCuda(options, dtype);
  // No GPU, or none that will do: the CPU is what there is. One that is full is somebody's mistake.
  if (cuda.status().code() != absl::StatusCode::kFailedPrecondition) return cuda;
#ifdef SENSORIUM_CUDA
  spdlog::warn("device 'auto': no GPU is used: {}", std::string(cuda.status().message()));
#endif
  return OpenCpu(options, dtype);
}

absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const BackendOptions& options,
                                                   const EngineConfig& config,
                                                   Engine::Progress progress) {
  BackendOptions sized = options;
  sized.media_units =
      config.media == MediaPlace::kHost ? 0 : config.max_encode_units * config.encoder_slots;
  ASSIGN_OR_RETURN(auto backend, OpenBackend(sized));
  try {
    return Engine::Create(config, std::move(backend), std::move(progress));
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("the device failed while loading: ", e.what()));
  }
}

}  // namespace sensorium
