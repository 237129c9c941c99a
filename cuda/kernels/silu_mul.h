// The gate of SwiGLU.  CPU twin: runtime/cpu/silu_mul.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// y = silu(gate) * up; all [rows, columns]. y may be either.
void SiluMul(Rows y, ConstRows up, ConstRows gate, int64_t rows, int64_t columns, Queue& queue);

}  // namespace sensorium::cuda
