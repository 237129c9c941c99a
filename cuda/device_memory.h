// Memory of the device, and of the host where the device reads and writes it.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "runtime/backend/backend.h"

namespace sensorium::cuda {

// What a piece of the device's memory is for: the lines of the plan of memory.
enum class MemoryUse {
  kWeights,
  kBuffers,    // what Backend::Allocate gives out: KV blocks, image features, workspace, logits
  kWorkspace,  // the backend's own: uploads, scratch, cuBLASLt's
};

class DeviceMemory;

class CudaBuffer final : public DeviceBuffer {
 public:
  ~CudaBuffer() override;
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  std::byte* data() override { return data_; }
  size_t size_bytes() const override { return size_bytes_; }

 private:
  friend class DeviceMemory;
  CudaBuffer(DeviceMemory& memory, MemoryUse use, std::byte* data, size_t size_bytes)
      : memory_(memory), use_(use), data_(data), size_bytes_(size_bytes) {}

  DeviceMemory& memory_;  // outlives it
  const MemoryUse use_;
  std::byte* const data_;
  const size_t size_bytes_;
};

// All of the device's memory that we have. With an arena every buffer is a part of one allocation
// made by Create, so that nothing is asked of the driver behind it and nobody else can take what
// the plan counts on. Without one each buffer is an allocation of its own, whose end a sanitizer
// sees. Engine thread only.
class DeviceMemory {
 public:
  // arena_share: of what is free now, 0: no arena. null when the device has not that much after
  // all; throws CudaError when it is broken.
  static std::unique_ptr<DeviceMemory> Create(double arena_share);
  ~DeviceMemory();  // after all buffers
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // 256-byte aligned. null when there is not that much; throws CudaError when the device is broken.
  std::unique_ptr<CudaBuffer> TryAllocate(size_t size_bytes, MemoryUse use);
  // The same, or a CudaError that tells the plan.
  std::unique_ptr<CudaBuffer> Allocate(size_t size_bytes, MemoryUse use);

  // What is taken for each use, and what is free, beside what was wanted and could not be had.
  std::string Plan(size_t wanted_bytes, MemoryUse wanted_for) const;
  size_t taken_bytes(MemoryUse use) const { return taken_[static_cast<size_t>(use)]; }

 private:
  friend class CudaBuffer;
  DeviceMemory(std::byte* arena, size_t arena_bytes) : arena_(arena), arena_bytes_(arena_bytes) {}
  void Free(const CudaBuffer& buffer);
  // First fit; null when no gap is large enough.
  std::byte* TakeFromArena(size_t size_bytes);

  std::byte* const arena_;  // null: none
  const size_t arena_bytes_;
  std::map<size_t, size_t> used_;  // of the arena: [begin, end) by begin
  std::array<size_t, 3> taken_{};  // by MemoryUse
};

// Host memory that the device reads and writes by itself.
class PinnedBuffer {
 public:
  // null: the host has not that much to pin; throws CudaError when the device is broken.
  static std::unique_ptr<PinnedBuffer> TryAllocate(size_t size_bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 private:
  PinnedBuffer(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

  std::byte* const data_;
  const size_t size_bytes_;
};

}  // namespace sensorium::cuda
