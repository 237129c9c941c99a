#include "cuda/device_memory.h"

#include <cstdint>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {
namespace {

constexpr size_t kAlignment = 256;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::string Mib(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

const char* Name(MemoryUse use) {
  switch (use) {
    case MemoryUse::kWeights:
      return "weights";
    case MemoryUse::kBuffers:
      return "KV blocks and activations";
    case MemoryUse::kWorkspace:
      return "workspace";
  }
  return "?";
}

// null when the device has not that much.
std::byte* Malloc(size_t size_bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, size_bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is answered here
    return nullptr;
  }
  Check(error, "cudaMalloc");
  return static_cast<std::byte*>(data);
}

}  // namespace

CudaBuffer::~CudaBuffer() { memory_.Free(*this); }

std::unique_ptr<DeviceMemory> DeviceMemory::Create(double arena_share) {
  CHECK(arena_share >= 0 && arena_share <= 1) << arena_share;
  std::byte* arena = nullptr;
  size_t bytes = 0;
  if (arena_share > 0) {
    size_t free_bytes = 0, total_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    bytes = static_cast<size_t>(arena_share * static_cast<double>(free_bytes)) / kAlignment *
            kAlignment;
    arena = bytes == 0 ? nullptr : Malloc(bytes);
    if (arena == nullptr) return nullptr;
  }
  return std::unique_ptr<DeviceMemory>(new DeviceMemory(arena, bytes));
}

DeviceMemory::~DeviceMemory() {
  for (const size_t bytes : taken_) CHECK_EQ(bytes, 0u) << "a buffer outlives its memory";
  cudaFree(arena_);  // a device that broke has said so already
}

std::byte* DeviceMemory::TakeFromArena(size_t size_bytes) {
  size_t begin = 0;
  for (const auto& [used_begin, used_end] : used_) {
    if (begin + size_bytes <= used_begin) break;
    begin = used_end;
  }
  if (size_bytes > arena_bytes_ || begin > arena_bytes_ - size_bytes) return nullptr;
  used_[begin] = begin + size_bytes;
  return arena_ + begin;
}

std::unique_ptr<CudaBuffer> DeviceMemory::TryAllocate(size_t size_bytes, MemoryUse use) {
  std::byte* data = nullptr;
  if (size_bytes > 0) {
    if (size_bytes > SIZE_MAX - kAlignment) return nullptr;
    data = arena_ != nullptr ? TakeFromArena(Aligned(size_bytes)) : Malloc(size_bytes);
    if (data == nullptr) return nullptr;
  }
  taken_[static_cast<size_t>(use)] += size_bytes;
  return std::unique_ptr<CudaBuffer>(new CudaBuffer(*this, use, data, size_bytes));
}

std::unique_ptr<CudaBuffer> DeviceMemory::Allocate(size_t size_bytes, MemoryUse use) {
  std::unique_ptr<CudaBuffer> buffer = TryAllocate(size_bytes, use);
  if (buffer == nullptr) throw CudaError(cudaErrorMemoryAllocation, Plan(size_bytes, use));
  return buffer;
}

void DeviceMemory::Free(const CudaBuffer& buffer) {
  taken_[static_cast<size_t>(buffer.use_)] -= buffer.size_bytes_;
  if (buffer.size_bytes_ == 0) return;
  if (arena_ != nullptr) {
    used_.erase(static_cast<size_t>(buffer.data_ - arena_));
  } else {
    cudaFree(buffer.data_);
  }
}

std::string DeviceMemory::Plan(size_t wanted_bytes, MemoryUse wanted_for) const {
  std::string plan = absl::StrCat(Mib(wanted_bytes), " wanted for ", Name(wanted_for), "; taken: ");
  for (const MemoryUse use : {MemoryUse::kWeights, MemoryUse::kBuffers, MemoryUse::kWorkspace}) {
    absl::StrAppend(&plan, Name(use), " ", Mib(taken_bytes(use)), ", ");
  }
  if (arena_ != nullptr) {
    size_t used = 0;
    for (const auto& [begin, end] : used_) used += end - begin;
    absl::StrAppend(&plan, "free ", Mib(arena_bytes_ - used), " of the ", Mib(arena_bytes_),
                    " taken at start");
    return plan;
  }
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  absl::StrAppend(&plan, "free ", Mib(free_bytes), " of ", Mib(total_bytes));
  return plan;
}

std::unique_ptr<PinnedBuffer> PinnedBuffer::TryAllocate(size_t size_bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, size_bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is answered here
    return nullptr;
  }
  Check(error, "cudaMallocHost");
  return std::unique_ptr<PinnedBuffer>(new PinnedBuffer(static_cast<std::byte*>(data), size_bytes));
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

}  // namespace sensorium::cuda
