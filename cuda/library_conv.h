// Convolutions over frames by cuDNN, for `Determinism::kFast`: its graph API, which is the one that
// stays (the calls of cudnn_cnn.h are deprecated).
//
// What it guarantees: one engine for each shape, the first of cuDNN's own ranking that it can build
// a plan for, chosen when the shape is first seen (at start: an encoder's shapes never change) and
// kept; never one that cuDNN calls nondeterministic, and for float32 none that computes in less
// than float32 or by a Winograd or Fourier transform. So the bits of a window depend on that window
// and the library's version. They are not conv1d.cu's bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/device_memory.h"
#include "cuda/kernels/conv1d.h"
#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

struct LibraryConvProblem {
  ConstRows x;    // [seqs * shape.frames, shape.in], of `type`, 16-byte aligned
  const void* w;  // [out, shape.kernel, shape.in] of `type`, contiguous, 16-byte aligned
  void* sums;     // [seqs * shape.frames_out, out], contiguous, 16-byte aligned: without bias
  int64_t seqs, out;
  Conv1dShape shape;
  Type type;
};

class LibraryConv {
 public:
  // Works in `workspace`, which nobody else uses at the same time. null when this was built without
  // cuDNN (SENSORIUM_CUDNN=OFF). Throws when the library fails: a CudaError of
  // cudaErrorMemoryAllocation where it finds no memory.
  static std::unique_ptr<LibraryConv> Create(CudaBuffer& workspace, Queue& queue);
  virtual ~LibraryConv() = default;

  // What `sums` are made in: float32, or `type` where cuDNN has no engine that adds up bfloat16
  // into float32. nullptr: it has none at all for this shape, which the log says once. REQUIRES:
  // nothing of x, w and sums is looked at.
  virtual const Type* SumsType(const LibraryConvProblem& problem) = 0;
  // sums = x * w, queued. Takes memory of the host where the shape or the addresses are new.
  // REQUIRES: SumsType is not null.
  virtual void Run(const LibraryConvProblem& problem) = 0;
};

}  // namespace sensorium::cuda
