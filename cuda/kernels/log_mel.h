// From spectra to log-mel rows, and to the loudest value among them.  Host twin:
// runtime/media/log_mel.cc
#pragma once

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// Triangles over the bins of a spectrum; device arrays.
struct MelBands {
  const int32_t* first_bin;   // [mels]
  const int32_t* weights_at;  // [mels + 1]
  const float* weights;       // band m's from weights_at[m] on, one for each bin from first_bin[m]
  int mels, bins;

  bool operator==(const MelBands&) const = default;
};

// y [rows, mels] of spectra float [heard, 2 * bins], the real parts of a row before its imaginary
// ones. Rows from `heard` on are of silence, rows from `frames` on are zeros; neither is read. The
// floor is the greatest energy's: of the device's *greatest where that is not null, else of
// `known`.
void LogMel(Rows y, const float* spectra, const MelBands& bands, int64_t rows, int64_t heard,
            int64_t frames, const float* greatest, float known, Queue& queue);

// energies[r] = the greatest band of row r, before the logarithm.
void RowEnergies(float* energies, const float* spectra, const MelBands& bands, int64_t rows,
                 Queue& queue);
// *greatest = the greatest of energies [n], of `known` and, where `keep`, of itself.
void GreatestOf(float* greatest, const float* energies, int64_t n, float known, bool keep,
                Queue& queue);

}  // namespace sensorium::cuda
