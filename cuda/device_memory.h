// Memory of the device and what moves the host's small arrays into it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/backend/backend.h"

namespace sensorium::cuda {

class CudaBuffer final : public DeviceBuffer {
 public:
  // null when the device has not that much; throws CudaError when it is broken.
  static std::unique_ptr<CudaBuffer> TryAllocate(size_t size_bytes);
  ~CudaBuffer() override;
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  std::byte* data() override { return data_; }
  size_t size_bytes() const override { return size_bytes_; }

 private:
  CudaBuffer(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

  std::byte* const data_;
  const size_t size_bytes_;
};

class Stream {
 public:
  Stream();  // throws CudaError
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Token ids, positions, block tables, task lists: arrays the host makes anew each step. They are
// copied through pinned memory into a buffer of the device and live until the stream was waited for
// (Recycle). The same bytes are sent once: every layer of a forward pass asks for the same arrays.
class Uploads {
 public:
  // null when pinned or device memory of that size is not to be had.
  static std::unique_ptr<Uploads> Create(size_t capacity_bytes, cudaStream_t stream);
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  size_t capacity_bytes() const { return device_->size_bytes(); }
  // Makes room for arrays of together this size (and kSlack each), waiting for the stream if it
  // must. All Puts of one op follow one Reserve: a wait in between would take away the first ones.
  void Reserve(size_t bytes);
  static constexpr size_t kSlack = 256;

  // The array's copy on the device, good until Recycle. REQUIRES: reserved.
  template <typename T>
  const std::remove_const_t<T>* Put(std::span<T> array) {
    return reinterpret_cast<const std::remove_const_t<T>*>(
        PutBytes(std::as_bytes(array), /*may_share=*/true));
  }
  // Bytes that nobody else sends: not compared with what is there.
  const std::byte* PutBytes(std::span<const std::byte> bytes, bool may_share);

  // Everything queued so far has run: the buffers are free again.
  void Recycle();

 private:
  struct Sent {
    size_t offset, bytes;
  };
  Uploads(std::byte* pinned, std::unique_ptr<CudaBuffer> device, cudaStream_t stream)
      : pinned_(pinned), device_(std::move(device)), stream_(stream) {}

  std::byte* const pinned_;  // as large as device_
  const std::unique_ptr<CudaBuffer> device_;
  const cudaStream_t stream_;
  size_t used_ = 0;
  std::vector<Sent> sent_;
};

}  // namespace sensorium::cuda
