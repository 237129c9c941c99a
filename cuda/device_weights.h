// Weights on the device, in the storage type: converted from the mapped checkpoint once, at load.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>

#include "cuda/device_memory.h"
#include "cuda/kernels/linear.h"
#include "runtime/backend/backend.h"

namespace sensorium::cuda {

// W [out, in] row-major, padded with zeros as linear.h wants it; b [out]. A convolution's inputs
// are (tap, in), taps outermost.
class CudaLinear final : public LinearWeight {
 public:
  // Throws CudaError; out of memory it tells the plan of memory. Waits.
  static std::unique_ptr<CudaLinear> Pack(std::span<const LinearSource> parts, DType storage,
                                          DeviceMemory& memory, cudaStream_t stream);
  static std::unique_ptr<CudaLinear> PackConv1d(ConstTensorView weight, ConstTensorView bias,
                                                DType storage, DeviceMemory& memory,
                                                cudaStream_t stream);

  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  size_t size_bytes() const override { return weight_->size_bytes() + bias_->size_bytes(); }

  int64_t taps() const { return taps_; }  // 1: not a convolution
  int64_t in_padded() const { return in_padded_; }
  int64_t out_padded() const { return CeilDiv(out_, kOutMultiple) * kOutMultiple; }
  LinearMatrix matrix() const {
    return {weight_->data(), reinterpret_cast<const float*>(bias_->data())};
  }

 private:
  CudaLinear() = default;
  static std::unique_ptr<CudaLinear> PackTaps(std::span<const LinearSource> parts, int64_t taps,
                                              DType storage, DeviceMemory& memory,
                                              cudaStream_t stream);

  int64_t in_ = 0, out_ = 0, taps_ = 1, in_padded_ = 0;
  std::unique_ptr<CudaBuffer> weight_, bias_;
};

// Rows to look up, in the storage type.
class CudaTable final : public TableWeight {
 public:
  CudaTable(std::span<const ConstTensorView> parts, DType storage, DeviceMemory& memory,
            cudaStream_t stream);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  size_t size_bytes() const override { return buffer_->size_bytes(); }
  const std::byte* data() const { return buffer_->data(); }

 private:
  int64_t rows_ = 0, columns_ = 0;
  std::unique_ptr<CudaBuffer> buffer_;
};

// A small array as float32. Waits.
std::unique_ptr<CudaBuffer> UploadFloat32(ConstTensorView source, DeviceMemory& memory,
                                          cudaStream_t stream);

}  // namespace sensorium::cuda
