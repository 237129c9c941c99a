// Rotary position embedding.  CPU twin: runtime/cpu/rope.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// Rotates the pairs (i, i + half) of each head by positions[t] * inv_freq[i], in place.
// x [tokens, heads, 2 * half]; positions [tokens]; inv_freq [half].
void Rope(Rows x, const int32_t* positions, const float* inv_freq, int64_t tokens, int64_t heads,
          int64_t half, Queue& queue);

}  // namespace sensorium::cuda
