// What the row kernels need beside gemm_vector.h's vectors: loads and stores by element type,
// tails, sums and maxima over a vector in one fixed order, e^x. Only for kernel sources, which are
// compiled once per level; all of it has internal linkage.
#pragma once

#include "runtime/cpu/gemm_vector.h"
#include "runtime/cpu/kernels.h"

namespace {

using sensorium::DType;

// The values of tensor.h's DType, which kernel sources cannot include; kernels.cc checks them.
constexpr DType kFloat32 = static_cast<DType>(0);
constexpr DType kBFloat16 = static_cast<DType>(1);
constexpr DType kFloat16 = static_cast<DType>(2);

constexpr int64_t SizeOf(DType t) { return t == kFloat32 ? 4 : 2; }

// IEEE binary16 -> binary32, exactly. Denormals by a multiplication with 2^112, which moves the
// exponent's bias from 15 to 127 for every finite value.
inline F WidenFloat16(const void* p) {
  const U h = __builtin_convertvector(*static_cast<const HAny*>(p), U);
  const U magnitude = h & 0x7fffu;
  const F finite = reinterpret_cast<F>(magnitude << 13) * 0x1p112f;
  const U bits =
      magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : reinterpret_cast<U>(finite);
  return reinterpret_cast<F>(bits | (h >> 15 << 31));
}

// kWidth elements of type T from p.
template <DType T>
inline F LoadAs(const void* p) {
  if constexpr (T == kFloat32) return Load(p);
  if constexpr (T == kBFloat16) return WidenBFloat16(p);
  return WidenFloat16(p);
}

template <DType T>
inline void StoreAs(void* p, F v) {
  if constexpr (T == kFloat32) {
    Store(p, v);
  } else {
    StoreBFloat16(p, v);
  }
}

// The first n < kWidth elements; the rest of the vector is zeros.
template <DType T>
inline F LoadTail(const void* p, int64_t n) {
  alignas(64) char from[kWidth * 4] = {};
  __builtin_memcpy(from, p, n * SizeOf(T));
  return LoadAs<T>(from);
}

template <DType T>
inline void StoreTail(void* p, F v, int64_t n) {
  alignas(64) char to[kWidth * 4];
  StoreAs<T>(to, v);
  __builtin_memcpy(p, to, n * SizeOf(T));
}

// Calls f(i, load, store) for each vector of a row of n elements. `load(type tag, base)` and
// `store` reach elements [i, i + kWidth) of any row, or fewer at the tail, where missing ones read
// as zero.
struct Whole {
  int64_t i;
  template <DType T>
  inline F Get(const void* row) const {
    return LoadAs<T>(static_cast<const char*>(row) + i * SizeOf(T));
  }
  template <DType T>
  inline void Put(void* row, F v) const {
    StoreAs<T>(static_cast<char*>(row) + i * SizeOf(T), v);
  }
};
struct Tail {
  int64_t i, n;
  template <DType T>
  inline F Get(const void* row) const {
    return LoadTail<T>(static_cast<const char*>(row) + i * SizeOf(T), n);
  }
  template <DType T>
  inline void Put(void* row, F v) const {
    StoreTail<T>(static_cast<char*>(row) + i * SizeOf(T), v, n);
  }
};
template <typename Body>
inline __attribute__((always_inline)) void ForEachVector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(Whole{i});
  if (i < n) body(Tail{i, n - i});
}

// Calls f.template operator()<T>() for the type at run time: float32 or bfloat16.
template <typename Body>
inline auto WithType(DType t, Body f) {
  return t == kFloat32 ? f.template operator()<kFloat32>() : f.template operator()<kBFloat16>();
}

inline F RoundThroughBFloat16(F v) { return reinterpret_cast<F>(RoundToBFloat16(v) << 16); }

// Over a vector by halves: lane i with lane i + half. The same tree at every call.
inline float Sum(F v) {
  float x[kWidth];
  Store(x, v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

inline float Max(F v) {
  float x[kWidth];
  Store(x, v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

inline I Iota() {
  I v;
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

// e^x for x <= 0: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2 (Cody & Waite 1980: ln 2 in two
// parts), e^r by its Taylor series to r^7 (truncation 5e-9). About 1 ulp; 0 below -87, where floats
// lose their precision. A NaN stays.
inline F Exp(F x) {
  const F bounded = x < -87.f ? Set(-87.f) : x;
  constexpr float kShift =
      12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  const F shifted = MulAdd(bounded, Set(1.44269504f), Set(kShift));
  const F n = shifted - kShift;
  const F r = MulAdd(n, Set(-1.42860677e-6f), MulAdd(n, Set(-0.693145752f), bounded));
  F p = MulAdd(r, Set(1.f / 5040), Set(1.f / 720));
  p = MulAdd(p, r, Set(1.f / 120));
  p = MulAdd(p, r, Set(1.f / 24));
  p = MulAdd(p, r, Set(1.f / 6));
  p = MulAdd(p, r, Set(0.5f));
  p = MulAdd(p, r, Set(1.f));
  p = MulAdd(p, r, Set(1.f));
  const U exponent = (reinterpret_cast<U>(shifted) + 127u) << 23;  // shifted's low bits are n
  const F e = p * reinterpret_cast<F>(exponent);
  return x < -87.f ? F{} : e;
}

}  // namespace
