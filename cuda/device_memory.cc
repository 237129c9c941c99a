#include "cuda/device_memory.h"

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {

std::unique_ptr<CudaBuffer> CudaBuffer::TryAllocate(size_t size_bytes) {
  void* data = nullptr;
  if (size_bytes > 0) {
    const cudaError_t error = cudaMalloc(&data, size_bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it is answered here
      return nullptr;
    }
    Check(error, "cudaMalloc");
  }
  return std::unique_ptr<CudaBuffer>(new CudaBuffer(static_cast<std::byte*>(data), size_bytes));
}

CudaBuffer::~CudaBuffer() {
  cudaFree(data_);  // a device that broke has said so already
}

Stream::Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }

Stream::~Stream() { cudaStreamDestroy(stream_); }

std::unique_ptr<Uploads> Uploads::Create(size_t capacity_bytes, cudaStream_t stream) {
  std::unique_ptr<CudaBuffer> device = CudaBuffer::TryAllocate(capacity_bytes);
  if (device == nullptr) return nullptr;
  void* pinned = nullptr;
  if (cudaMallocHost(&pinned, capacity_bytes) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return std::unique_ptr<Uploads>(
      new Uploads(static_cast<std::byte*>(pinned), std::move(device), stream));
}

Uploads::~Uploads() { cudaFreeHost(pinned_); }

void Uploads::Reserve(size_t bytes) {
  CHECK_LE(bytes, capacity_bytes()) << "arrays of one op, against the upload buffer";
  if (used_ + bytes <= capacity_bytes()) return;
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  Recycle();
}

const std::byte* Uploads::PutBytes(std::span<const std::byte> bytes, bool may_share) {
  if (bytes.empty()) return device_->data();
  if (may_share) {
    for (const Sent& s : sent_) {
      if (s.bytes == bytes.size() && std::memcmp(pinned_ + s.offset, bytes.data(), s.bytes) == 0) {
        return device_->data() + s.offset;
      }
    }
  }
  const size_t offset = used_;
  CHECK_LE(offset + bytes.size(), capacity_bytes()) << "more than was reserved";
  std::memcpy(pinned_ + offset, bytes.data(), bytes.size());
  CUDA_CHECK(cudaMemcpyAsync(device_->data() + offset, pinned_ + offset, bytes.size(),
                             cudaMemcpyHostToDevice, stream_));
  used_ = (offset + bytes.size() + kSlack - 1) / kSlack * kSlack;
  if (may_share) sent_.push_back({offset, bytes.size()});
  return device_->data() + offset;
}

void Uploads::Recycle() {
  used_ = 0;
  sent_.clear();
}

}  // namespace sensorium::cuda
