// The table of matrix kernels of each level, gathered from the sources compiled once per level.
#include "runtime/cpu/gemm_kernels.h"

#include "runtime/backend/backend.h"
#include "runtime/base/check.h"
#include "runtime/cpu/cpu_level.h"

namespace sensorium {

// gemm_epilogue.cc knows the activations by number.
static_assert(static_cast<int>(Activation::kNone) == 0);
static_assert(static_cast<int>(Activation::kGelu) == 1);
static_assert(static_cast<int>(Activation::kQuickGelu) == 2);

#define SENSORIUM_GEMM_LEVEL(level)                                                        \
  namespace level {                                                                        \
  extern const GemmKernelSet kGemmFloat32, kGemmBFloat16;                                  \
  void GemmFinishRows(const GemmFinish& f);                                                \
  void GemmConvert(void* y, GemmInput input, const void* x, bool x_is_bfloat16, int64_t n, \
                   int64_t padded);                                                        \
  void GemmWiden(float* y, const void* panel, int64_t steps);                              \
  void GemmSiluMul(float* y, const float* up, const float* gate, int64_t n);               \
  constexpr GemmKernels kGemmTable = {&kGemmFloat32, &kGemmBFloat16, GemmFinishRows,       \
                                      GemmConvert,   GemmWiden,      GemmSiluMul};         \
  }

SENSORIUM_GEMM_LEVEL(portable)
#if defined(__x86_64__)
SENSORIUM_GEMM_LEVEL(avx2)
SENSORIUM_GEMM_LEVEL(avx512)
SENSORIUM_GEMM_LEVEL(avx512_bf16)
#endif

const GemmKernels& GemmKernelsFor(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable:
      return portable::kGemmTable;
#if defined(__x86_64__)
    case CpuLevel::kAvx2:
      return avx2::kGemmTable;
    case CpuLevel::kAvx512:
      return avx512::kGemmTable;
    case CpuLevel::kAvx512Bf16:
      return avx512_bf16::kGemmTable;
#else
    default:
      break;
#endif
  }
  CHECK(false) << "this build has no CPU level " << Name(level);
  return portable::kGemmTable;
}

}  // namespace sensorium
