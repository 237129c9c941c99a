// The windows of a convolution over frames as rows of a matrix product.  CPU twin:
// runtime/cpu/conv1d.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

struct Conv1dShape {
  int64_t frames, frames_out, in;  // per sequence
  int64_t kernel, stride;          // padding (kernel - 1) / 2
  bool operator==(const Conv1dShape&) const = default;
};

// y[i] for output rows [first, first + rows) of all sequences' frames_out: the `kernel` frames that
// output row sees, [kernel, in] side by side, zeros outside the sequence.
void Conv1dWindows(Rows y, ConstRows x, const Conv1dShape& shape, int64_t first, int64_t rows,
                   Queue& queue);

}  // namespace sensorium::cuda
