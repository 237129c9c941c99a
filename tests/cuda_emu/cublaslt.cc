// The one product of cuBLASLt that the backend asks for: D = A^T B, column-major, float32 sums,
// queued like a kernel. An algorithm stands for the shapes it was chosen for and refuses all
// others.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <set>
#include <vector>

#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/include/cublasLt.h"

namespace cuda_emu {

struct Library {};
struct Product {
  cublasOperation_t a = CUBLAS_OP_N;
};
struct Layout {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t ld;
};
struct Preference {
  size_t workspace_bytes = 0;
};

namespace {

// Nearly all of it is used, so that too small a workspace shows.
constexpr size_t kWorkspaceBytes = 1 << 20;

float At(const void* p, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(p)[i];
  return std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(p)[i]} << 16);
}

using Numbers = std::array<uint64_t, 8>;
// Kernels of their own, by what they were chosen for.
const void* CodeOf(const cublasLtMatmulAlgo_t& algorithm) {
  static std::set<Numbers> known;
  Numbers numbers;
  std::copy(std::begin(algorithm.data), std::end(algorithm.data), numbers.begin());
  return &*known.insert(numbers).first;
}

cublasLtMatmulAlgo_t AlgorithmFor(const Product& p, const Layout& a, const Layout& b,
                                  const Layout& d) {
  return {{static_cast<uint64_t>(p.a), static_cast<uint64_t>(a.type), a.rows, a.columns, b.columns,
           static_cast<uint64_t>(d.type), 0, 0}};
}

}  // namespace
}  // namespace cuda_emu

using cuda_emu::Layout;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (cuda_emu::NextAllocationFails()) return CUBLAS_STATUS_ALLOC_FAILED;
  *handle = new cuda_emu::Library;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t,
                                        cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *product = new cuda_emu::Product;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete product;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t, const void* value,
                                              size_t bytes) {
  if (bytes != sizeof(product->a)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&product->a, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  if (ld < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = new Layout{type, rows, columns, ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cuda_emu::Preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t,
                                                    const void* value, size_t bytes) {
  if (bytes != sizeof(preference->workspace_bytes)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&preference->workspace_bytes, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  if (wanted < 1 || preference->workspace_bytes < cuda_emu::kWorkspaceBytes) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  results[0] = {.algo = cuda_emu::AlgorithmFor(*product, *a, *b, *d),
                .workspaceSize = cuda_emu::kWorkspaceBytes,
                .state = CUBLAS_STATUS_SUCCESS,
                .wavesCount = 1,
                .reserved = {}};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
// The rows' bucket is the tile, so that a test can tell the choices apart.
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, size_t bytes, size_t* written) {
  uint32_t number = 0;
  if (bytes != sizeof(number)) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute == CUBLASLT_ALGO_CONFIG_ID) number = 21;
  if (attribute == CUBLASLT_ALGO_CONFIG_TILE_ID) number = static_cast<uint32_t>(algo->data[4]);
  if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) number = 1;
  std::memcpy(value, &number, bytes);
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void*,
                              cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  const sensorium::AllowedAllocation allowed;
  const Layout A = *a_layout, B = *b_layout, D = *d_layout;
  const cublasLtMatmulAlgo_t right = cuda_emu::AlgorithmFor(*product, A, B, D);
  // Nobody asked for algorithms that want less.
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 256 == 0; };
  if (product->a != CUBLAS_OP_T || *static_cast<const float*>(alpha) != 1.f ||
      *static_cast<const float*>(beta) != 0.f || D.type != CUDA_R_32F || A.type != B.type ||
      A.rows != B.rows || D.rows != A.columns || D.columns != B.columns ||
      std::memcmp(&right, algo, sizeof(right)) != 0 ||
      workspace_bytes < cuda_emu::kWorkspaceBytes || !aligned(a) || !aligned(b) || !aligned(d)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const cudaError_t queued = cuda_emu::Launch(
      1, 1, 0, stream,
      [=] {
        std::memset(workspace, 0xff, cuda_emu::kWorkspaceBytes);
        std::vector<float> x(A.rows);
        for (uint64_t n = 0; n < D.columns; ++n) {
          for (uint64_t k = 0; k < A.rows; ++k) x[k] = cuda_emu::At(b, B.type, n * B.ld + k);
          for (uint64_t m = 0; m < D.rows; ++m) {
            float sum = 0;
            for (uint64_t k = 0; k < A.rows; ++k)
              sum += x[k] * cuda_emu::At(a, A.type, m * A.ld + k);
            static_cast<float*>(d)[n * D.ld + m] = sum;
          }
        }
      },
      cuda_emu::CodeOf(right));
  return queued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
