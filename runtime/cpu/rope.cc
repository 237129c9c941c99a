// Rotates the pairs (i, i + half) of each head of one token.
//
// Source      Su et al. 2021 (arXiv:2104.09864), eq. 34, in the half-rotation form of GPT-NeoX.
// Traffic     x once in, once out; cosines and sines stay in L1 from head to head. Memory-bound.
// Numerics    each product rounded, then their sum: q * cos + rotate_half(q) * sin as the reference
//             computes it (transformers, apply_rotary_pos_emb), so float32 gives its bits.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {

void RopeRow(void* x, DType type, int64_t heads, int64_t half, const float* cosines,
             const float* sines) {
  WithType(type, [&]<DType T>() {
    for (int64_t h = 0; h < heads; ++h) {
      char* low = static_cast<char*>(x) + h * 2 * half * SizeOf(T);
      char* high = low + half * SizeOf(T);
      ForEachVector(half, [&](auto at) {
        const F a = at.template Get<T>(low), b = at.template Get<T>(high);
        const F c = at.template Get<kFloat32>(cosines), s = at.template Get<kFloat32>(sines);
        at.template Put<T>(low, a * c - b * s);
        at.template Put<T>(high, b * c + a * s);
      });
    }
  });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
