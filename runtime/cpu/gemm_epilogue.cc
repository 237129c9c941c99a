// What happens to a tile's sums (bias, activation, residual, rounding) and to x before a product.
// Vector code over the level's width; nothing here depends on where an element lies.
#include "runtime/cpu/gemm_kernels.h"
#include "runtime/cpu/gemm_vector.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {

// What gemm_kernels.cc puts into this level's table.
void GemmFinishRows(const GemmFinish& f);
void GemmConvert(void* y, GemmInput input, const void* x, bool x_is_bfloat16, int64_t n,
                 int64_t padded);
void GemmWiden(float* y, const void* panel, int64_t steps);
void GemmSiluMul(float* y, const float* up, const float* gate, int64_t n);

namespace {

// The values of backend.h's Activation, which this file cannot include; gemm_kernels.cc checks
// them.
constexpr auto kGelu = static_cast<Activation>(1);
constexpr auto kQuickGelu = static_cast<Activation>(2);

// e^x for x in [-87, 0]: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2 (Cody & Waite 1980, ln 2
// in two parts), Taylor to r^7 (truncation 5e-9). About 1 ulp. Below -87 it is e^-87.
inline F ExpOfNegative(F x) {
  x = x < -87.f ? Set(-87.f) : x;  // a NaN stays
  constexpr float kShift =
      12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const F shifted = x * 1.44269504f + kShift;
  const F n = shifted - kShift;
  const F r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  F p = r * (1.f / 5040) + (1.f / 720);
  p = p * r + (1.f / 120);
  p = p * r + (1.f / 24);
  p = p * r + (1.f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const U exponent = (reinterpret_cast<U>(shifted) + 127u)
                     << 23;  // the low bits of `shifted` are n
  return p * reinterpret_cast<F>(exponent);
}

inline F Abs(F x) { return reinterpret_cast<F>(reinterpret_cast<U>(x) & 0x7fffffffu); }

// 1 / (1 + e^-x), without cancellation or overflow on either side.
inline F Sigmoid(F x) {
  const F e = ExpOfNegative(-Abs(x));
  return (x < 0.f ? e : Set(1.f)) / (e + 1.f);
}

// x/2 (1 + erf(x / sqrt 2)) as x Phi(x), so that the negative side does not cancel.
// |x| < 1: Phi = 1/2 + x P(x^2), Taylor to x^15 (Abramowitz & Stegun 26.2.10).
// Else by erfc: with t = |x| / sqrt 2, u = 3 / (t + 3) and s = 1 - 2u, erfc(t) = e^(-t^2) u R(s),
// the change of variable of Shepherd & Laframboise 1981 (Math. Comp. 36). R is a Chebyshev
// interpolant of degree 9, our own fit on t in [0, 9.5]: relative error of erfc 4e-9 before
// rounding. Against double (packed_linear_test.cc): within 3 ulp of the result for x >= -1, the
// worst where 1/2 - |x| P cancels, which is below 1 ulp of erf itself; relative error 2e-6 in [-13,
// -1], where it is the rounding of t^2 in the exponent.
inline F Gelu(F x) {
  const F square = x * x;
  F p = square * (-1.f / 9676800) + (1.f / 599040);
  p = p * square - (1.f / 42240);
  p = p * square + (1.f / 3456);
  p = p * square - (1.f / 336);
  p = p * square + (1.f / 40);
  p = p * square - (1.f / 6);
  p = p * square + 1.f;
  const F near = (x * 0.398942280f) * p + 0.5f;  // 1 / sqrt(2 pi)

  const F t = Abs(x) * 0.707106781f;
  const F u = 3.f / (t + 3.f);
  const F s = 1.f - 2.f * u;
  F r = s * -1.116715189e-04f + -1.675928369e-04f;
  r = r * s + 1.024868746e-03f;
  r = r * s + -4.056726570e-04f;
  r = r * s + -8.945084574e-03f;
  r = r * s + 3.984255082e-02f;
  r = r * s + -1.034889162e-01f;
  r = r * s + 1.967427910e-01f;
  r = r * s + -2.944648195e-01f;
  r = r * s + 3.580023023e-01f;
  const F half_erfc = ExpOfNegative(square * -0.5f) * (u * r) * 0.5f;
  const F far = x < 0.f ? half_erfc : 1.f - half_erfc;
  return x * (Abs(x) < 1.f ? near : far);
}

template <Activation kActivation>
inline F Activate(F v) {
  if constexpr (kActivation == kGelu) return Gelu(v);
  if constexpr (kActivation == kQuickGelu) return v * Sigmoid(v * 1.702f);
  return v;
}

template <Activation kActivation>
void FinishRows(const GemmFinish& f) {
  for (int64_t row = 0; row < f.rows; ++row) {
    const float* c = f.c + row * f.c_stride;
    float* y = static_cast<float*>(f.y) + row * f.y_stride;
    uint16_t* y16 = static_cast<uint16_t*>(f.y) + row * f.y_stride;
    for (int64_t n = 0; n < f.columns; n += kWidth) {
      F v = Load(c + n) + Load(f.bias + n);
      v = Activate<kActivation>(v);
      const int64_t left = f.columns - n;
      if (left >= kWidth) {
        if (f.y_is_bfloat16) {
          StoreBFloat16(y16 + n, v);
        } else {
          Store(y + n, f.add ? Load(y + n) + v : v);
        }
        continue;
      }
      float tail[kWidth];
      uint16_t tail16[kWidth];
      Store(tail, v);
      StoreBFloat16(tail16, v);
      for (int64_t i = 0; i < left; ++i) {
        if (f.y_is_bfloat16) {
          y16[n + i] = tail16[i];
        } else {
          y[n + i] = f.add ? y[n + i] + tail[i] : tail[i];
        }
      }
    }
  }
}

}  // namespace

void GemmFinishRows(const GemmFinish& f) {
  if (f.activation == kGelu) return FinishRows<kGelu>(f);
  if (f.activation == kQuickGelu) return FinishRows<kQuickGelu>(f);
  FinishRows<static_cast<Activation>(0)>(f);
}

namespace {

inline void StoreInput(char* y, GemmInput input, int64_t i, F v) {
  switch (input) {
    case GemmInput::kFloat32:
      Store(y + i * 4, v);
      break;
    case GemmInput::kBFloat16:
      StoreBFloat16(y + i * 2, v);
      break;
    case GemmInput::kRoundedFloat32:
      Store(y + i * 4, reinterpret_cast<F>(RoundToBFloat16(v) << 16));
      break;
  }
}

}  // namespace

void GemmConvert(void* y, GemmInput input, const void* x, bool x_is_bfloat16, int64_t n,
                 int64_t padded) {
  const char* in = static_cast<const char*>(x);
  char* out = static_cast<char*>(y);
  const int in_bytes = x_is_bfloat16 ? 2 : 4, out_bytes = input == GemmInput::kBFloat16 ? 2 : 4;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    StoreInput(out, input, i, x_is_bfloat16 ? WidenBFloat16(in + i * 2) : Load(in + i * 4));
  }
  // The tail and the padding go through a vector of zeros, so that every element sees one code.
  for (; i < padded; i += kWidth) {
    alignas(64) char from[kWidth * 4] = {}, to[kWidth * 4];
    const int64_t have = n - i < 0 ? 0 : n - i < kWidth ? n - i : kWidth;
    const int64_t want = padded - i < kWidth ? padded - i : kWidth;
    __builtin_memcpy(from, in + i * in_bytes, have * in_bytes);
    StoreInput(to, input, 0, x_is_bfloat16 ? WidenBFloat16(from) : Load(from));
    __builtin_memcpy(out + i * out_bytes, to, want * out_bytes);
  }
}

void GemmWiden(float* y, const void* panel, int64_t steps) {
  const char* in = static_cast<const char*>(panel);
  for (int64_t step = 0; step < steps; ++step) {
    for (int n = 0; n < kGemmPanel; n += kWidth) {
      const U pair = LoadBits(in + step * kGemmStepBytes + n * 4);
      Store(y + (2 * step) * kGemmPanel + n, reinterpret_cast<F>(pair << 16));
      Store(y + (2 * step + 1) * kGemmPanel + n, reinterpret_cast<F>(pair & 0xffff0000u));
    }
  }
}

// silu(gate) * up; Shazeer 2020 (arXiv:2002.05202), SwiGLU.
void GemmSiluMul(float* y, const float* up, const float* gate, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const F g = Load(gate + i);
    Store(y + i, g * Sigmoid(g) * Load(up + i));
  }
  if (i == n) return;
  float tail_up[kWidth] = {}, tail_gate[kWidth] = {};
  __builtin_memcpy(tail_up, up + i, (n - i) * sizeof(float));
  __builtin_memcpy(tail_gate, gate + i, (n - i) * sizeof(float));
  const F g = Load(tail_gate);
  Store(tail_up, g * Sigmoid(g) * Load(tail_up));
  __builtin_memcpy(y + i, tail_up, (n - i) * sizeof(float));
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
