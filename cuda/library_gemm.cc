#include "cuda/library_gemm.h"

#include <string>
#include <utility>

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {
namespace {

void CheckLibrary(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(what) + ": cuBLASLt status " +
                           std::to_string(static_cast<int>(status)));
}
#define LIBRARY_CHECK(call) CheckLibrary((call), #call)

cudaDataType_t DataType(Type type) { return type == Type::kFloat32 ? CUDA_R_32F : CUDA_R_16BF; }

}  // namespace

int64_t LibraryGemm::BucketFor(int64_t rows) {
  CHECK_LE(rows, kMostBucket);
  int64_t bucket = kLeastBucket;
  while (bucket < rows) bucket *= 2;
  return bucket;
}

std::unique_ptr<LibraryGemm> LibraryGemm::Create(cudaStream_t stream) {
  std::unique_ptr<CudaBuffer> workspace = CudaBuffer::TryAllocate(kWorkspaceBytes);
  if (workspace == nullptr) return nullptr;
  cublasLtHandle_t handle;
  LIBRARY_CHECK(cublasLtCreate(&handle));
  return std::unique_ptr<LibraryGemm>(new LibraryGemm(handle, std::move(workspace), stream));
}

LibraryGemm::~LibraryGemm() {
  for (auto& [shape, plan] : plans_) {
    cublasLtMatrixLayoutDestroy(plan.w);
    cublasLtMatrixLayoutDestroy(plan.x);
    cublasLtMatrixLayoutDestroy(plan.y);
    cublasLtMatmulDescDestroy(plan.product);
  }
  cublasLtDestroy(handle_);
}

// The library's matrices are column-major: y^T [out, bucket] = W [out, in] x^T [in, bucket], where
// our row-major W is its transposed [in, out].
void LibraryGemm::MakePlan(Plan& plan, Type type, int64_t bucket, int64_t in, int64_t out) {
  LIBRARY_CHECK(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  LIBRARY_CHECK(cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA,
                                               &transposed, sizeof(transposed)));
  LIBRARY_CHECK(cublasLtMatrixLayoutCreate(&plan.w, DataType(type), in, out, in));
  LIBRARY_CHECK(cublasLtMatrixLayoutCreate(&plan.x, DataType(type), in, bucket, in));
  LIBRARY_CHECK(cublasLtMatrixLayoutCreate(&plan.y, CUDA_R_32F, out, bucket, out));

  cublasLtMatmulPreference_t preference;
  LIBRARY_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const size_t workspace_bytes = kWorkspaceBytes;
  LIBRARY_CHECK(cublasLtMatmulPreferenceSetAttribute(preference,
                                                     CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &workspace_bytes, sizeof(workspace_bytes)));
  cublasLtMatmulHeuristicResult_t best = {};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan.product, plan.w, plan.x, plan.y, plan.y,
                                     preference, /*requestedAlgoCount=*/1, &best, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  CheckLibrary(status, "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0) CheckLibrary(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic");
  plan.algorithm = best.algo;
}

void LibraryGemm::Pin(Type type, int64_t in, int64_t out) {
  for (int64_t bucket = kLeastBucket; bucket <= kMostBucket; bucket *= 2) {
    const auto [at, is_new] = plans_.try_emplace(Shape(type, bucket, in, out));
    if (is_new) MakePlan(at->second, type, bucket, in, out);
  }
}

void LibraryGemm::Run(float* y, const void* x, const void* w, Type type, int64_t bucket, int64_t in,
                      int64_t out) {
  const auto at = plans_.find(Shape(type, bucket, in, out));
  CHECK(at != plans_.end()) << "no plan for " << bucket << " x " << in << " x " << out;
  const Plan& plan = at->second;
  const float one = 1.f, zero = 0.f;
  LIBRARY_CHECK(cublasLtMatmul(handle_, plan.product, &one, w, plan.w, x, plan.x, &zero, y, plan.y,
                               y, plan.y, &plan.algorithm, workspace_->data(), kWorkspaceBytes,
                               stream_));
}

}  // namespace sensorium::cuda
