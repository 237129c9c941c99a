// MediaOps of the CUDA backend: a recording's spectra and a picture's patches, a piece at a time
// through the backend's upload buffer and scratch.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/device_memory.h"
#include "cuda/device_weights.h"
#include "cuda/kernels/log_mel.h"
#include "runtime/backend/media_ops.h"

namespace sensorium {

class CudaMedia final : public MediaOps {
 public:
  explicit CudaMedia(CudaBackend& backend) : be_(backend) {}  // which owns it

 private:
  class Tables;

  std::unique_ptr<LogMelTables> DoMakeLogMel(const LogMelSource& source) override;
  void DoListen(GreatestEnergy& greatest, const LogMelTables& tables, const Recording& recording,
                int64_t begin, int64_t end) override;
  void DoLogMel(TensorView y, const LogMelTables& tables, const Recording& recording, int64_t begin,
                int64_t frames, const GreatestEnergy& greatest) override;
  void DoResize(std::span<const ResizeTarget> targets, std::span<const uint8_t> pixels,
                int64_t width, int64_t first_row) override;
  void DoCutCrop(TensorView y, ConstTensorView picture, int32_t x, int32_t y0,
                 const PatchShape& shape) override;

  // Frames that one piece may have: what its samples and, behind `extra_bytes` a frame, its spectra
  // fit into.
  int64_t MostFrames(const Tables& tables, size_t extra_bytes) const;
  // Spectra float [end - begin, 2 * bins] of frames [begin, end), into `spectra` on the device.
  void Transform(float* spectra, const Tables& tables, const Recording& recording, int64_t begin,
                 int64_t end);

  CudaBackend& be_;
  std::vector<float> samples_;  // of a piece at an end of its recording; taken by MakeLogMel
};

}  // namespace sensorium
