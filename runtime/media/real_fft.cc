#include "runtime/media/real_fft.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

using Complex = RealFft::Complex;

Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
Complex operator*(double s, Complex a) { return {s * a.re, s * a.im}; }
Complex TimesMinusI(Complex a) { return {a.im, -a.re}; }

// exp(-2 pi i k / n)
Complex Root(int64_t k, int64_t n) {
  const double angle = -2 * std::numbers::pi * static_cast<double>(k % n) / static_cast<double>(n);
  return {std::cos(angle), std::sin(angle)};
}

// 4 first (it needs no multiplication), then 2, then odd primes as they are.
int32_t NextRadix(int32_t n) {
  if (n % 4 == 0) return 4;
  if (n % 2 == 0) return 2;
  for (int32_t r = 3; r * r <= n; r += 2) {
    if (n % r == 0) return r;
  }
  return n;
}

}  // namespace

RealFft::RealFft(int32_t n) : n_(n) {
  CHECK(n > 0 && n % 2 == 0) << "n is " << n;
  const int32_t half = n / 2;
  for (int32_t left = half, stride = 1; left > 1;) {
    Pass pass;
    pass.radix = NextRadix(left);
    pass.groups = left / pass.radix;
    pass.stride = stride;
    pass.twiddles_at = twiddles_.size();
    for (int32_t p = 0; p < pass.groups; ++p) {
      for (int32_t j = 0; j < pass.radix; ++j) twiddles_.push_back(Root(int64_t{p} * j, left));
    }
    pass.roots_at = twiddles_.size();
    for (int32_t j = 0; j < pass.radix; ++j) twiddles_.push_back(Root(j, pass.radix));
    passes_.push_back(pass);
    left = pass.groups;
    stride *= pass.radix;
  }
  for (int32_t k = 0; k <= half; ++k) split_.push_back(Root(k, n));
}

// Stockham's autosort, decimation in frequency:
//   out[q + s (r p + j)] = w^(p j) * sum_k in[q + s (p + m k)] exp(-2 pi i j k / r)
// with s = stride, r = radix, m = groups. The result comes out in order, without bit reversal.
void RealFft::RunPass(const Pass& pass, const Complex* in, Complex* out) const {
  const int32_t s = pass.stride, r = pass.radix, m = pass.groups;
  const Complex* roots = &twiddles_[pass.roots_at];
  for (int32_t p = 0; p < m; ++p) {
    const Complex* w = &twiddles_[pass.twiddles_at + static_cast<size_t>(p) * r];
    for (int32_t q = 0; q < s; ++q) {
      const Complex* a = in + q + static_cast<int64_t>(s) * p;
      Complex* b = out + q + static_cast<int64_t>(s) * r * p;
      const int64_t step = static_cast<int64_t>(s) * m;
      if (r == 2) {
        b[0] = a[0] + a[step];
        b[s] = w[1] * (a[0] - a[step]);
      } else if (r == 4) {
        const Complex even = a[0] + a[2 * step], even_diff = a[0] - a[2 * step];
        const Complex odd = a[step] + a[3 * step];
        const Complex odd_diff = TimesMinusI(a[step] - a[3 * step]);
        b[0] = even + odd;
        b[s] = w[1] * (even_diff + odd_diff);
        b[2 * s] = w[2] * (even - odd);
        b[3 * s] = w[3] * (even_diff - odd_diff);
      } else {
        // Odd: terms k and r - k share a cosine and have opposite sines, so do outputs j and r - j.
        Complex sum = a[0];
        for (int32_t k = 1; k < r; ++k) sum = sum + a[k * step];
        b[0] = sum;
        for (int32_t j = 1; 2 * j < r; ++j) {
          Complex even = a[0], odd;
          for (int32_t k = 1; 2 * k < r; ++k) {
            const Complex root = roots[static_cast<int64_t>(j) * k % r];
            even = even + root.re * (a[k * step] + a[(r - k) * step]);
            odd = odd + -root.im * (a[k * step] - a[(r - k) * step]);
          }
          odd = TimesMinusI(odd);
          b[j * static_cast<int64_t>(s)] = w[j] * (even + odd);
          b[(r - j) * static_cast<int64_t>(s)] = w[r - j] * (even - odd);
        }
      }
    }
  }
}

// Source: Numerical Recipes, 12.3 (FFT of single real function): even samples as real parts, odd
// ones as imaginary parts of a sequence of half the length; its spectrum Z is then split,
//   X[k] = (Z[k] + conj Z[h - k]) / 2 - i / 2 * exp(-2 pi i k / n) * (Z[k] - conj Z[h - k]).
void RealFft::PowerSpectrum(std::span<const double> in, std::span<double> power,
                            std::span<Complex> scratch) const {
  const int32_t half = n_ / 2;
  CHECK_EQ(in.size(), static_cast<size_t>(n_));
  CHECK_EQ(power.size(), static_cast<size_t>(num_bins()));
  CHECK_GE(scratch.size(), scratch_size());
  Complex* from = scratch.data();
  Complex* to = from + half;
  for (int32_t k = 0; k < half; ++k) from[k] = {in[2 * k], in[2 * k + 1]};
  for (const Pass& pass : passes_) {
    RunPass(pass, from, to);
    std::swap(from, to);
  }
  for (int32_t k = 0; k <= half; ++k) {
    const Complex z = from[k == half ? 0 : k];
    const Complex mirrored = from[k == 0 ? 0 : half - k];
    const Complex conj = {mirrored.re, -mirrored.im};
    const Complex x = 0.5 * ((z + conj) + TimesMinusI(split_[k] * (z - conj)));
    power[k] = x.re * x.re + x.im * x.im;
  }
}

}  // namespace sensorium
