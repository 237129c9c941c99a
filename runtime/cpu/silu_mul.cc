// y = gate / (1 + e^-gate) * up for one row.
//
// Source      Shazeer 2020 (arXiv:2002.05202), SwiGLU without its linear parts.
// Traffic     up, gate and y once. Memory-bound.
// Numerics    float32, one rounding at the store. The sigmoid from e^-|gate|: no overflow, and no
//             cancellation on the negative side.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

inline F Silu(F x) {
  const F magnitude = reinterpret_cast<F>(reinterpret_cast<U>(x) & 0x7fffffffu);
  const F e = Exp(-magnitude);
  return x * ((x < 0.f ? e : Set(1.f)) / (e + 1.f));
}

}  // namespace

void SiluMulRow(void* y, DType y_type, const void* up, DType up_type, const void* gate,
                DType gate_type, int64_t n) {
  WithType(y_type, [&]<DType Y>() {
    WithType(up_type, [&]<DType Up>() {
      WithType(gate_type, [&]<DType Gate>() {
        ForEachVector(n, [&](auto at) {
          const F g = at.template Get<Gate>(gate);
          at.template Put<Y>(y, Silu(g) * at.template Get<Up>(up));
        });
      });
    });
  });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
