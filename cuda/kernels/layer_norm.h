// LayerNorm of rows.  CPU twin: runtime/cpu/layer_norm.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// y = (x - mean) / sqrt(variance + eps) * weight + bias per row, biased variance. y may be x.
void LayerNorm(Rows y, ConstRows x, const float* weight, const float* bias, float eps, int64_t rows,
               int64_t columns, Queue& queue);

}  // namespace sensorium::cuda
