// log_mel.cu: power, mel bands, logarithm and floor of spectra that linear.cu has made: a frame's
// product with the windowed cosines and sines is its Fourier transform.
//
// Source    openai/whisper, audio.py, log_mel_spectrogram; librosa.filters.mel for the bands.
// Shapes    spectra float [rows, 2 * bins], real parts then imaginary ones; y [rows, mels] float or
//           bfloat16, any row stride; energies float [rows].
// Launch    log_mel and row_energies: a CTA of 128 threads a row, a thread a band: a band has few
//           bins and neighbours share them, so a row stays in L1. greatest_energy, of all rows: one
//           CTA of 256 threads. A row's greatest and theirs: 16 B and 32 B of shared memory, for
//           the warps'.
// Traffic   spectra once, y once; the bands' tables stay in cache. Memory-bound, and a tenth of
//           what the product before it moves.
// Numerics  fp32, a band's bins in ascending order. The greatest does not depend on order; it is of
//           the whole recording, not of a window, as whisper's whole-file path has it. -10 is exact
//           where the energy is at most 1e-10, whatever log10f would make of it.
#include "cuda/kernels/log_mel.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

constexpr unsigned kThreads = 128, kGreatestThreads = 256;

__device__ __forceinline__ float BandEnergy(const float* spectrum, const MelBands& b, int m) {
  const int begin = b.weights_at[m], n = b.weights_at[m + 1] - begin;
  const float* re = spectrum + b.first_bin[m];
  const float* im = re + b.bins;
  float energy = 0.f;
  for (int i = 0; i < n; ++i) energy += (re[i] * re[i] + im[i] * im[i]) * b.weights[begin + i];
  return energy;
}

template <typename Y>
__global__ void log_mel_kernel(Y* y, int64_t y_stride, const float* spectra, MelBands bands,
                               int64_t heard, int64_t frames, const float* greatest, float known) {
  const int64_t row = blockIdx.x;
  const float most = greatest != nullptr ? *greatest : known;
  const float loudest = most <= 1e-10f ? -10.f : log10f(most);
  for (int m = threadIdx.x; m < bands.mels; m += kThreads) {
    float v = 0.f;
    if (row < frames) {
      const float energy = row < heard ? BandEnergy(spectra + row * 2 * bands.bins, bands, m) : 0.f;
      const float log = energy <= 1e-10f ? -10.f : log10f(energy);
      v = (fmaxf(log, loudest - 8.f) + 4.f) * 0.25f;
    }
    y[row * y_stride + m] = FromFloat<Y>(v);
  }
}

// The greatest of every thread's `v`, for thread 0 of a block of kWarps warps.
template <int kWarps>
__device__ __forceinline__ float BlockGreatest(float v) {
  auto& of_warp = shared_memory<float[kWarps]>();
  v = WarpMax(v);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();  // every warp's is there
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) v = fmaxf(v, of_warp[w]);
  }
  return v;
}

__global__ void row_energies_kernel(float* energies, const float* spectra, MelBands bands) {
  const float* spectrum = spectra + int64_t{blockIdx.x} * 2 * bands.bins;
  float greatest = 0.f;  // no energy is less
  for (int m = threadIdx.x; m < bands.mels; m += kThreads) {
    greatest = fmaxf(greatest, BandEnergy(spectrum, bands, m));
  }
  greatest = BlockGreatest<kThreads / 32>(greatest);
  if (threadIdx.x == 0) energies[blockIdx.x] = greatest;
}

__global__ void greatest_energy_kernel(float* greatest, const float* energies, int64_t n,
                                       float known, bool keep) {
  float v = known;
  for (int64_t i = threadIdx.x; i < n; i += kGreatestThreads) v = fmaxf(v, energies[i]);
  v = BlockGreatest<kGreatestThreads / 32>(v);
  if (threadIdx.x == 0) *greatest = keep ? fmaxf(v, *greatest) : v;
}

}  // namespace

void LogMel(Rows y, const float* spectra, const MelBands& bands, int64_t rows, int64_t heard,
            int64_t frames, const float* greatest, float known, Queue& queue) {
  if (rows == 0 || bands.mels == 0) return;
  WithType(y.type, [&]<typename Y>() {
    launch(log_mel_kernel<Y>, static_cast<unsigned>(rows), kThreads, 0, queue,
           static_cast<Y*>(y.data), y.stride, spectra, bands, heard, frames, greatest, known);
  });
}

void RowEnergies(float* energies, const float* spectra, const MelBands& bands, int64_t rows,
                 Queue& queue) {
  if (rows == 0) return;
  launch(row_energies_kernel, static_cast<unsigned>(rows), kThreads, kThreads / 32 * sizeof(float),
         queue, energies, spectra, bands);
}

void GreatestOf(float* greatest, const float* energies, int64_t n, float known, bool keep,
                Queue& queue) {
  launch(greatest_energy_kernel, 1, kGreatestThreads, kGreatestThreads / 32 * sizeof(float), queue,
         greatest, energies, n, known, keep);
}

}  // namespace sensorium::cuda
