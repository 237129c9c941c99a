// Opens the device that the config names.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/engine/engine.h"

namespace sensorium {

struct BackendOptions {
  std::string device = "auto";    // "cpu", "cuda", or "auto": a GPU if there is one, else the CPU
  std::string dtype = "float32";  // storage and arithmetic: "float32" (exact) or "bfloat16"
  // cuda: "strict" gives a request the same bits in every batch; "fast" leaves products of many
  // rows to cuBLASLt, whose last bits may change with the number of rows, and convolutions to
  // cuDNN.
  std::string determinism = "strict";
  double memory_share = 0.9;  // cuda: of the device's free memory, taken at start
  // cuda: units of pictures and sound that a step may bring (max_encode_units of each encoder
  // slot), for which it has room to send them at once; OpenEngine sets it.
  int32_t media_units = 0;
  bool cuda_graphs = true;         // cuda: decode steps are recorded at start and replayed
  std::string cpu_level = "auto";  // cpu: instructions used; "auto": the best this machine has
  int threads = 0;                 // cpu: 0 takes the cores this process may use
  bool pin_threads = false;        // cpu: bind each thread to a core
};

// INVALID_ARGUMENT names what is unknown and what there is; FAILED_PRECONDITION: the device is not
// there or this build has none of its kind.
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options);

// OpenBackend, then Engine::Create. A device that breaks while models load, or is full, is
// UNAVAILABLE with what it says: the op and its error, or the plan of memory against what is free.
absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const BackendOptions& options,
                                                   const EngineConfig& config,
                                                   Engine::Progress progress);

}  // namespace sensorium
