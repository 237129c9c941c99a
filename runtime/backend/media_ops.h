// Media into model input on the device: log-mel spectra of a recording, patches of a picture. Only
// a backend that gains by it has these (Backend::media_ops); runtime/media is the host's way to the
// same numbers, and says where the formulas come from.
//
// Samples and pixels are the host's and go up a bounded piece at a time, so that a recording of
// hours and a picture of any size take no more of the device's memory than short and small ones.
// How they are cut does not change a bit of any result.
//
// As in backend.h: public functions check, twins compute; engine thread only, in program order.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "runtime/backend/tensor.h"

namespace sensorium {

// What a spectrogram is made with.
struct LogMelSource {
  std::span<const float> window;   // [n_fft], n_fft even
  std::span<const float> filters;  // [mels, n_fft / 2 + 1]; not negative
  int64_t hop = 0;                 // samples from one frame's middle to the next one's
};

// The same on the device. Opaque.
class LogMelTables {
 public:
  LogMelTables(int64_t n_fft, int64_t hop, int64_t mels) : n_fft_(n_fft), hop_(hop), mels_(mels) {}
  virtual ~LogMelTables() = default;
  int64_t n_fft() const { return n_fft_; }
  int64_t hop() const { return hop_; }
  int64_t mels() const { return mels_; }

 private:
  const int64_t n_fft_, hop_, mels_;
};

// A recording and the zero samples taken to follow it, which are never stored.
struct Recording {
  std::span<const float> samples;
  int64_t zeros_after = 0;

  int64_t size() const { return static_cast<int64_t>(samples.size()) + zeros_after; }
  int64_t frames(int64_t hop) const { return size() / hop; }
  // Frames behind these have nothing but zeros in their window.
  int64_t heard_frames(int64_t n_fft, int64_t hop) const {
    const int64_t touched = (static_cast<int64_t>(samples.size()) + n_fft / 2 + hop - 1) / hop;
    return touched < frames(hop) ? touched : frames(hop);
  }
};

// The greatest mel energy of a recording so far, before the logarithm. The device has it at once,
// the host when it has waited; whoever keeps the device's place may give it away then.
struct GreatestEnergy {
  float* device = nullptr;  // float32 [1] of the device's memory
  // NaN from Listen until the device is waited for (Backend::Wait): then it is at `device` alone.
  // Must stay where it is until then.
  float host = 0;
};

// One axis of a resize: output k is the sum over i in [0, weights_at[k + 1] - weights_at[k]) of
// weights[weights_at[k] + i] * input[first[k] + i]. Neither first[k] nor where it ends decreases.
struct ResizeAxis {
  std::span<const int32_t> first;       // [outputs]
  std::span<const int32_t> weights_at;  // [outputs + 1]
  std::span<const float> weights;

  int64_t outputs() const { return static_cast<int64_t>(first.size()); }
};

// A resized picture in the making: float32 [rows.outputs(), columns.outputs() * 3], R G B.
struct ResizeTarget {
  TensorView picture;
  ResizeAxis columns, rows;
};

// How a crop is cut into patches, and what is done to its values.
struct PatchShape {
  int32_t per_side = 0;  // patches of a crop
  int32_t size = 0;      // pixels of a patch's side
  std::array<float, 3> mean{}, std{};
};

class MediaOps {
 public:
  virtual ~MediaOps() = default;

  // ---- Sound -----------------------------------------------------------------------------------
  // Load time.
  std::unique_ptr<LogMelTables> MakeLogMel(const LogMelSource& source);
  // Frames [begin, end) are heard, too: `greatest` becomes what it was, or one of theirs.
  void Listen(GreatestEnergy& greatest, const LogMelTables& tables, const Recording& recording,
              int64_t begin, int64_t end);
  // y act [rows, mels]: row r is frame begin + r,
  //   (max(log10(max(mel, 1e-10)), log10(max(greatest, 1e-10)) - 8) + 4) / 4,
  // as LogMelExtractor::Compute, and zeros from row `frames` on.
  void LogMel(TensorView y, const LogMelTables& tables, const Recording& recording, int64_t begin,
              int64_t frames, const GreatestEnergy& greatest);

  // ---- Pictures --------------------------------------------------------------------------------
  // Takes rows [first_row, first_row + n) of a picture, pixels uint8 [n, width, 3], into every
  // target: value / 255, resized, columns first. A target's row is whole when its last input row
  // was given. REQUIRES: input rows come in order from 0; what a target's memory held before does
  // not matter.
  void Resize(std::span<const ResizeTarget> targets, std::span<const uint8_t> pixels, int64_t width,
              int64_t first_row);
  // The crop whose upper left corner is at (x, y0) of a resized picture, which may lie outside it
  // on any side: y act [per_side^2, size^2 * 3], patches in raster order, a patch [y, x, rgb],
  // (value clipped to [0, 1] - mean) / std; the value is 0 outside the picture.
  void CutCrop(TensorView y, ConstTensorView picture, int32_t x, int32_t y0,
               const PatchShape& shape);

 private:
  virtual std::unique_ptr<LogMelTables> DoMakeLogMel(const LogMelSource& source) = 0;
  virtual void DoListen(GreatestEnergy& greatest, const LogMelTables& tables,
                        const Recording& recording, int64_t begin, int64_t end) = 0;
  virtual void DoLogMel(TensorView y, const LogMelTables& tables, const Recording& recording,
                        int64_t begin, int64_t frames, const GreatestEnergy& greatest) = 0;
  virtual void DoResize(std::span<const ResizeTarget> targets, std::span<const uint8_t> pixels,
                        int64_t width, int64_t first_row) = 0;
  virtual void DoCutCrop(TensorView y, ConstTensorView picture, int32_t x, int32_t y0,
                         const PatchShape& shape) = 0;
};

}  // namespace sensorium
