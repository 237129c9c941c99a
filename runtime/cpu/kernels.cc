// The table of row kernels of each level, gathered from the sources compiled once per level.
#include "runtime/cpu/kernels.h"

#include "runtime/backend/tensor.h"
#include "runtime/base/check.h"
#include "runtime/cpu/cpu_level.h"

namespace sensorium {

// simd.h knows the types by number.
static_assert(static_cast<int>(DType::kFloat32) == 0);
static_assert(static_cast<int>(DType::kBFloat16) == 1);
static_assert(static_cast<int>(DType::kFloat16) == 2);

#define SENSORIUM_KERNEL_LEVEL(level)                                                             \
  namespace level {                                                                               \
  void ConvertRow(void* y, DType y_type, const void* x, DType x_type, int64_t n);                 \
  void EmbedRow(float* y, const void* x, DType x_type, bool round, bool add, int64_t n);          \
  void MeanOfRows(void* y, const void* x, int64_t x_stride, int64_t rows, DType type, int64_t n); \
  void RmsNormRow(const NormRow& row);                                                            \
  void LayerNormRow(const NormRow& row);                                                          \
  void SiluMulRow(void* y, DType y_type, const void* up, DType up_type, const void* gate,         \
                  DType gate_type, int64_t n);                                                    \
  void RopeRow(void* x, DType type, int64_t heads, int64_t half, const float* cosines,            \
               const float* sines);                                                               \
  float SoftmaxRow(float* s, int64_t n, float scale, GemmInput output);                           \
  void NormalizeRow(void* y, DType y_type, const float* acc, float sum, int64_t n);               \
  void PackKeys(void* panel, DType panel_type, int64_t first_lane, const void* k, DType k_type,   \
                int64_t k_stride, int64_t n, int64_t dims);                                       \
  void PackValues(void* panels, int64_t panel_stride, DType panel_type, int64_t first_key,        \
                  const void* v, DType v_type, int64_t v_stride, int64_t n, int64_t dims);        \
  constexpr Kernels kTable = {ConvertRow,   EmbedRow,   MeanOfRows, RmsNormRow,                   \
                              LayerNormRow, SiluMulRow, RopeRow,    SoftmaxRow,                   \
                              NormalizeRow, PackKeys,   PackValues};                              \
  }

SENSORIUM_KERNEL_LEVEL(portable)
#if defined(__x86_64__)
SENSORIUM_KERNEL_LEVEL(avx2)
SENSORIUM_KERNEL_LEVEL(avx512)
SENSORIUM_KERNEL_LEVEL(avx512_bf16)
#endif

const Kernels& KernelsFor(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable:
      return portable::kTable;
#if defined(__x86_64__)
    case CpuLevel::kAvx2:
      return avx2::kTable;
    case CpuLevel::kAvx512:
      return avx512::kTable;
    case CpuLevel::kAvx512Bf16:
      return avx512_bf16::kTable;
#else
    default:
      break;
#endif
  }
  CHECK(false) << "this build has no CPU level " << Name(level);
  return portable::kTable;
}

}  // namespace sensorium
