// Power spectrum of real input: the one transform that the audio front end needs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sensorium {

// Mixed-radix FFT of a fixed even length n (Whisper's is 400 = 2 * 200, 200 = 4 * 2 * 5 * 5).
// In double: of a loud frame the quiet bands lie 80 dB below, where float32's rounding would show.
// Constant after construction: one object serves any number of threads.
class RealFft {
 public:
  struct Complex {
    double re = 0;
    double im = 0;
  };

  explicit RealFft(int32_t n);  // REQUIRES: n is even and positive

  int32_t size() const { return n_; }
  int32_t num_bins() const { return n_ / 2 + 1; }
  size_t scratch_size() const { return static_cast<size_t>(n_); }

  // power [num_bins()] = |DFT(in)|^2 for bins 0 to n/2; in [n]; scratch [scratch_size()] is
  // written.
  void PowerSpectrum(std::span<const double> in, std::span<double> power,
                     std::span<Complex> scratch) const;

 private:
  // One radix-r step of the Stockham recursion over the half-length sequence.
  struct Pass {
    int32_t radix = 0;
    int32_t groups = 0;      // butterflies with twiddles of their own: n' / radix, n' = length left
    int32_t stride = 0;      // product of the radices before
    size_t twiddles_at = 0;  // [groups, radix] in twiddles_
    size_t roots_at = 0;     // [radix] radix-th roots of one in twiddles_
  };
  void RunPass(const Pass& pass, const Complex* in, Complex* out) const;

  int32_t n_;
  std::vector<Pass> passes_;
  std::vector<Complex> twiddles_;
  std::vector<Complex> split_;  // [n / 2 + 1] exp(-2 pi i k / n)
};

}  // namespace sensorium
