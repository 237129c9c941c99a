// The truth of the ops on media, in double precision. Shapes as in runtime/backend/media_ops.h.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/backend/media_ops.h"
#include "tests/reference/array.h"

namespace sensorium::reference {

// [frames, mels]: the energy in each band, before the logarithm.
// Source: openai/whisper, audio.py, log_mel_spectrogram; torch.stft with center=True.
Array MelEnergies(const Recording& recording, const LogMelSource& source);
// (max(log10(max(energy, 1e-10)), loudest - 8) + 4) / 4 of each.
Array LogMel(const Array& energies, double loudest);
// log10 of the greatest energy, at least -10.
double Loudest(const Array& energies);
// How far a value made by a float32 transform may be from that. Every bin gets noise of some
// roundings of the frame's loudest amplitude, so a band that lies `depth` (log10 of power) below
// the loudest one gets so much more of it relatively; the values span 2. Measured for chains of 400
// products, beyond 1e-6: 1.4e-8 10^(depth / 2) beside a pure tone; on a spoken sentence 3e-9 of
// it, 1.8e-5 at a depth of 7.6. The reference implementation's own float32 transform is up to
// 5.3e-5 off.
double LogMelTolerance(double depth);

// pixels uint8 [height, width, 3] -> [rows.outputs(), columns.outputs() * 3].
Array Resize(std::span<const uint8_t> pixels, int64_t width, const ResizeAxis& columns,
             const ResizeAxis& rows);
// picture [height, width * 3] -> [per_side^2, size^2 * 3].
Array CutCrop(const Array& picture, int64_t x, int64_t y, const PatchShape& shape);

}  // namespace sensorium::reference
