// Whisper's audio front end: 16 kHz samples -> log-mel spectrogram.
// Source: openai/whisper, audio.py, log_mel_spectrogram.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/stop.h"
#include "runtime/media/real_fft.h"

namespace sensorium {

// data: [frames, mels] float32, frame-major: one frame's bands lie together.
struct MelSpectrogram {
  int32_t mels = 0;
  int64_t frames = 0;
  std::vector<float> data;
};

// The triangular filters of librosa.filters.mel (slaney scale and norm, 0 Hz to 8 kHz) for bins of
// 16000 / n_fft Hz. Returns [num_mels, n_fft / 2 + 1], computed in double and rounded to float32:
// within 4e-9 of the mel_filters.npz that Whisper ships.
std::vector<float> SlaneyMelFilters(int32_t num_mels, int32_t n_fft);

// Constant after construction: one extractor serves any number of threads.
class LogMelExtractor {
 public:
  // num_mels is 80, or 128 from large-v3 on. REQUIRES: n_fft even; all positive.
  explicit LogMelExtractor(int32_t num_mels, int32_t n_fft = 400, int32_t hop = 160);

  // The spectrogram of `samples` followed by `zeros_after` zero samples, which are never stored:
  //   frames = (samples + zeros_after) / hop  (the reference drops the last frame of its STFT)
  //   out    = (max(log10(max(mel, 1e-10)), loudest - 8) + 4) / 4
  // `loudest` being the greatest log10 of the whole spectrogram, so one loud burst lifts the floor
  // under all of it. Any length will do: input too short to reflect is padded with zeros first.
  // No frames when `stop`, asked every 64 of them, said so.
  MelSpectrogram Compute(std::span<const float> samples, int64_t zeros_after = 0,
                         const Stop& stop = {}) const;

  int32_t num_mels() const { return num_mels_; }
  int32_t hop() const { return hop_; }
  std::span<const float> window() const { return window_; }  // [n_fft]

 private:
  // A triangle touches few bins, so only those between its feet are kept.
  struct Band {
    int32_t first_bin = 0;
    int32_t num_bins = 0;
    int32_t weights_at = 0;  // into weights_
  };

  int32_t num_mels_;
  int32_t n_fft_;
  int32_t hop_;
  RealFft fft_;
  std::vector<float> window_;   // [n_fft] periodic Hann
  std::vector<Band> bands_;     // [num_mels]
  std::vector<float> weights_;  // the bands' weights, one after the other
};

}  // namespace sensorium
