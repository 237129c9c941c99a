#include "cuda/library_gemm.h"

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"
#include "runtime/base/check.h"
#include "spdlog/spdlog.h"

namespace sensorium::cuda {
namespace {

void CheckLibrary(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string failed =
      std::string(what) + ": cuBLASLt status " + std::to_string(static_cast<int>(status));
  // The library's own memory: the device is as full as where cudaMalloc says so.
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw CudaError(cudaErrorMemoryAllocation, failed);
  throw std::runtime_error(failed);
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

std::unique_ptr<LibraryGemm> LibraryGemm::Create(CudaBuffer& workspace, Queue& queue) {
  CHECK_EQ(workspace.size_bytes(), kWorkspaceBytes);
  cublasLtHandle_t handle;
  LIBRARY_CHECK(cublasLtCreate(&handle));
  return std::unique_ptr<LibraryGemm>(new LibraryGemm(handle, workspace, queue));
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
  const auto read = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto* value) {
    size_t written = 0;
    LIBRARY_CHECK(cublasLtMatmulAlgoConfigGetAttribute(&plan.algorithm, attribute, value,
                                                       sizeof(*value), &written));
  };
  read(CUBLASLT_ALGO_CONFIG_ID, &plan.chosen.id);
  read(CUBLASLT_ALGO_CONFIG_TILE_ID, &plan.chosen.tile);
  read(CUBLASLT_ALGO_CONFIG_STAGES_ID, &plan.chosen.stages);
  read(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &plan.chosen.split_k);
  read(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &plan.chosen.reduction);
  plan.chosen.workspace_bytes = best.workspaceSize;
}

void LibraryGemm::Pin(Type type, int64_t in, int64_t out) {
  if (plans_.contains(Shape(type, kLeastBucket, in, out))) return;
  const char* name = type == Type::kFloat32 ? "float32" : "bfloat16";
  std::string ids;
  for (int64_t bucket = kLeastBucket; bucket <= kMostBucket; bucket *= 2) {
    Plan& plan = plans_[Shape(type, bucket, in, out)];
    MakePlan(plan, type, bucket, in, out);
    const Algorithm& a = plan.chosen;
    spdlog::debug(
        "cuBLASLt: {} [{}, {}], {} rows: algorithm {}, tile {}, stages {}, split {}, reduction {}, "
        "{} bytes of workspace",
        name, out, in, bucket, a.id, a.tile, a.stages, a.split_k, a.reduction, a.workspace_bytes);
    absl::StrAppend(&ids, " ", bucket, ":", a.id, "/", a.tile);
  }
  spdlog::info("cuBLASLt: {} [{}, {}] pinned, rows:algorithm/tile{}", name, out, in, ids);
}

const LibraryGemm::Algorithm& LibraryGemm::PinnedFor(Type type, int64_t bucket, int64_t in,
                                                     int64_t out) const {
  return Find(type, bucket, in, out).chosen;
}

const LibraryGemm::Plan& LibraryGemm::Find(Type type, int64_t bucket, int64_t in,
                                           int64_t out) const {
  const auto at = plans_.find(Shape(type, bucket, in, out));
  CHECK(at != plans_.end()) << "no plan for " << bucket << " x " << in << " x " << out;
  return at->second;
}

void LibraryGemm::Run(float* y, const void* x, const void* w, Type type, int64_t bucket, int64_t in,
                      int64_t out) {
  const Plan& plan = Find(type, bucket, in, out);
  for (const void* p : std::initializer_list<const void*>{y, x, w}) {
    CHECK_EQ(reinterpret_cast<uintptr_t>(p) % kAlignment, 0u);
  }
  const auto multiply = [&] {
    const float one = 1.f, zero = 0.f;
    LIBRARY_CHECK(cublasLtMatmul(handle_, plan.product, &one, w, plan.w, x, plan.x, &zero, y,
                                 plan.y, y, plan.y, &plan.algorithm, workspace_.data(),
                                 kWorkspaceBytes, queue_.stream()));
  };
  queue_.Do(multiply, &cublasLtMatmul, &plan, y, x, w);  // a plan never changes
}

}  // namespace sensorium::cuda
