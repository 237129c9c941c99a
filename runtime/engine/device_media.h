// Media whose model input the device makes: what a job keeps on the host until then, and its work
// as encode units, so that the scheduler can stop between two and no step has more of it than its
// budget. Made by preparation; then engine thread only, and takes nothing from the heap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/backend/media_ops.h"
#include "runtime/media/image.h"
#include "runtime/media/molmo_image.h"

namespace sensorium {

// What a unit of resizing sends up at most, where a picture's row is not larger than that; a unit
// of listening (30 s of samples) is half of it.
inline constexpr size_t kMediaUnitBytes = size_t{4} << 20;

// A recording. Every frame of its spectrogram depends on the loudest one, so all of it is listened
// to before the first window is made.
class DeviceRecording {
 public:
  // A unit of listening is `unit_frames` frames: as much as one window has. `tables` outlive it.
  DeviceRecording(std::vector<float> samples, int64_t zeros_after, const LogMelTables& tables,
                  int64_t unit_frames);

  std::span<const float> samples() const { return samples_; }
  int64_t frames() const { return recording().frames(tables_->hop()); }
  int32_t units_left() const;
  // The next units. REQUIRES: so many are left. `state`: kStateBytes of the device's, which must
  // keep what is there until the device is waited for, and until then must the recording stay where
  // it is.
  void Listen(MediaOps& ops, int32_t units, std::byte* state);
  // y act [rows, mels]: frames [begin, begin + frames), zeros behind them. REQUIRES: none is left;
  // the device was waited for since Listen, or `state` is what it had.
  void LogMel(MediaOps& ops, TensorView y, int64_t begin, int64_t frames, std::byte* state) const;
  static constexpr size_t kStateBytes = 64;

 private:
  Recording recording() const { return {.samples = samples_, .zeros_after = zeros_after_}; }

  std::vector<float> samples_;
  int64_t zeros_after_;
  const LogMelTables* tables_;
  int64_t unit_frames_;
  int64_t heard_;            // frames that are not silence
  int64_t listened_ = 0;     // of them
  GreatestEnergy greatest_;  // its place on the device is the caller's
};

// A picture. Its rows are resized onto the two canvases that its crops are then cut from; these lie
// in `state` on the device, float32, StateBytes() of it.
class DevicePicture {
 public:
  // `config` outlives it.
  DevicePicture(RgbImage image, const MolmoImageLayout& layout, const MolmoImageConfig& config);
  static size_t StateBytes(const MolmoImageConfig& config);
  // What it takes of the host's memory beside the pixels, at most.
  static size_t FilterBytes(int32_t width, int32_t height, const MolmoImageLayout& layout,
                            const MolmoImageConfig& config);

  const RgbImage& image() const { return image_; }
  // A unit of resizing is a strip of a few MiB of pixels.
  int32_t units() const;
  // Units [begin, end), in order from 0.
  void Resize(MediaOps& ops, int32_t begin, int32_t end, std::byte* state) const;
  // pixels act [n * patches, patch_dim]: crops [begin, begin + n). REQUIRES: all units are done.
  void CutCrops(MediaOps& ops, int32_t begin, const std::byte* state, TensorView pixels) const;

 private:
  struct OnCanvas {
    MolmoCanvas canvas;
    ResizeFilter columns, rows;
    size_t at;  // bytes into the state

    ConstTensorView picture(const std::byte* state) const;
    ResizeTarget target(std::byte* state) const;
  };
  static OnCanvas Place(const MolmoCanvas& canvas, const RgbImage& image, size_t at);

  RgbImage image_;
  const MolmoImageConfig* config_;
  std::vector<MolmoCrop> crops_;
  OnCanvas global_, tiles_;
  int32_t strip_rows_;
};

}  // namespace sensorium
