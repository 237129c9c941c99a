// The vector type of the level being compiled, as GCC vector extensions: + - * / and comparisons
// work on it as on a float. Only for gemm_*.cc; all of it has internal linkage.
#pragma once

#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float F __attribute__((vector_size(kWidth * 4)));
typedef int32_t I __attribute__((vector_size(kWidth * 4)));
typedef uint32_t U __attribute__((vector_size(kWidth * 4)));
typedef uint16_t H __attribute__((vector_size(kWidth * 2)));  // bfloat16 bits
// The same at any address, over any type's bytes.
typedef float FAny __attribute__((vector_size(kWidth * 4), aligned(1), may_alias));
typedef uint32_t UAny __attribute__((vector_size(kWidth * 4), aligned(1), may_alias));
typedef uint16_t HAny __attribute__((vector_size(kWidth * 2), aligned(1), may_alias));
typedef float FloatAny __attribute__((aligned(1), may_alias));
typedef uint32_t UintAny __attribute__((aligned(1), may_alias));

inline F Load(const void* p) { return *static_cast<const FAny*>(p); }
inline U LoadBits(const void* p) { return *static_cast<const UAny*>(p); }
inline void Store(void* p, F v) { *static_cast<FAny*>(p) = v; }
inline F Set(float v) { return v - F{}; }  // v - 0 is v, -0 too
inline F Broadcast(const void* p) { return Set(*static_cast<const FloatAny*>(p)); }

// a * b + c, in one rounding where the level has it. (-ffp-contract=off keeps all else as written.)
inline F MulAdd(F a, F b, F c) {
#if defined(__AVX512F__)
  return reinterpret_cast<F>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<F>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

inline F WidenBFloat16(const void* p) {
  return reinterpret_cast<F>(__builtin_convertvector(*static_cast<const HAny*>(p), U) << 16);
}

// To bfloat16 bits in the low halves: nearest, ties to even; a NaN stays a (quiet) NaN.
inline U RoundToBFloat16(F v) {
  const U bits = reinterpret_cast<U>(v);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return v == v ? rounded : (bits >> 16) | 0x40u;
}

inline void StoreBFloat16(void* p, F v) {
  *static_cast<HAny*>(p) = __builtin_convertvector(RoundToBFloat16(v), H);
}

}  // namespace
