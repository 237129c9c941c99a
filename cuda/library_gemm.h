// Matrix products by cuBLASLt, for `Determinism::kFast`.
//
// What it guarantees: one algorithm for each weight shape and bucket of rows, asked for when the
// weight is loaded and kept, and the rows padded with zeros to the bucket. So a row's bits depend
// on the row, on its place among the rows and on its bucket, but not on what else is in it: an
// algorithm may cut the sums of one tile of rows elsewhere than those of another (stream-K). A row
// that moves, or whose bucket changes because its neighbours became more, may change its last bits.
// That is less than linear.cu guarantees.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "cuda/device_memory.h"
#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

class LibraryGemm {
 public:
  // Rows per product: the powers of two between these. Fewer rows are linear.cu's skinny tile.
  static constexpr int64_t kLeastBucket = 32, kMostBucket = 2048;
  static int64_t BucketFor(int64_t rows);  // REQUIRES: rows <= kMostBucket
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  // What an algorithm may count on, as cuBLASLt's CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_*_BYTES have
  // it where nobody sets them.
  static constexpr uintptr_t kAlignment = 256;

  // Works in `workspace` of kWorkspaceBytes, which nobody else uses at the same time. Throws when
  // the library fails: a CudaError of cudaErrorMemoryAllocation where it finds no memory.
  static std::unique_ptr<LibraryGemm> Create(CudaBuffer& workspace, Queue& queue);
  ~LibraryGemm();
  LibraryGemm(const LibraryGemm&) = delete;
  LibraryGemm& operator=(const LibraryGemm&) = delete;

  // What was chosen for one weight shape and bucket: numbers of cuBLASLt's own
  // (CUBLASLT_ALGO_CONFIG_*), which name it to whoever compares two machines.
  struct Algorithm {
    int32_t id = 0, split_k = 0;
    uint32_t tile = 0, stages = 0, reduction = 0;
    size_t workspace_bytes = 0;
  };
  // Chooses the algorithm of every bucket for weights of this shape and type; once for each, and
  // logs it: a line for the shape, one at debug level for each bucket.
  void Pin(Type type, int64_t in, int64_t out);
  // REQUIRES: pinned.
  const Algorithm& PinnedFor(Type type, int64_t bucket, int64_t in, int64_t out) const;

  // y = x W^T, queued: y float32 [bucket, out], x [bucket, in], w [out, in], all contiguous, x and
  // w of `type`. REQUIRES: pinned; y, x and w are aligned to kAlignment.
  void Run(float* y, const void* x, const void* w, Type type, int64_t bucket, int64_t in,
           int64_t out);

 private:
  struct Plan {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
    Algorithm chosen;
  };
  using Shape = std::tuple<Type, int64_t, int64_t, int64_t>;  // type, bucket, in, out

  LibraryGemm(cublasLtHandle_t handle, CudaBuffer& workspace, Queue& queue)
      : handle_(handle), workspace_(workspace), queue_(queue) {}
  const Plan& Find(Type type, int64_t bucket, int64_t in, int64_t out) const;
  void MakePlan(Plan& plan, Type type, int64_t bucket, int64_t in, int64_t out);

  const cublasLtHandle_t handle_;  // owned
  CudaBuffer& workspace_;
  Queue& queue_;
  std::map<Shape, Plan> plans_;
};

}  // namespace sensorium::cuda
