// RMSNorm of rows.  CPU twin: runtime/cpu/rms_norm.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// y = x / sqrt(mean(x^2) + eps) * weight per row, or y += that (y float32 then). y may be x.
void RmsNorm(Rows y, ConstRows x, const float* weight, float eps, bool add, int64_t rows,
             int64_t columns, Queue& queue);

}  // namespace sensorium::cuda
