#include "cuda/uploads.h"

#include <algorithm>
#include <cstring>

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {
namespace {

size_t Slackened(size_t bytes) {
  return (bytes + Uploads::kSlack - 1) / Uploads::kSlack * Uploads::kSlack;
}

}  // namespace

size_t Uploads::PinnedBytes(size_t capacity_bytes, size_t range_bytes) {
  return Slackened(capacity_bytes) + range_bytes;
}

std::unique_ptr<Uploads> Uploads::Create(size_t capacity_bytes,
                                         std::unique_ptr<PinnedBuffer> pinned, DeviceMemory& memory,
                                         Queue& queue) {
  CHECK_GE(pinned->size_bytes(), Slackened(capacity_bytes));
  auto device = memory.TryAllocate(pinned->size_bytes(), MemoryUse::kWorkspace);
  if (device == nullptr) return nullptr;
  return std::unique_ptr<Uploads>(
      new Uploads(std::move(pinned), std::move(device), Slackened(capacity_bytes), queue));
}

Uploads::Uploads(std::unique_ptr<PinnedBuffer> pinned, std::unique_ptr<CudaBuffer> device,
                 size_t capacity_bytes, Queue& queue)
    : pinned_(std::move(pinned)),
      device_(std::move(device)),
      capacity_bytes_(capacity_bytes),
      queue_(queue) {
  own_.end = capacity_bytes;
  // An array takes kSlack at the least, so no more of them are ever remembered.
  own_.sent.reserve(capacity_bytes / kSlack);
  range_.sent.reserve(range_bytes() / kSlack);
}

void Uploads::Reserve(size_t bytes) {
  Region& r = *region_;
  r.asked = std::max(r.asked, r.used + bytes);
  if (r.used + bytes <= r.end - r.begin) return;
  if (region_ == &range_) return queue_.GiveUp("there is no room for its arrays");
  CHECK_LE(bytes, capacity_bytes()) << "arrays of one op, against the upload buffer";
  queue_.Wait();
  Recycle();
}

const std::byte* Uploads::PutBytes(std::span<const std::byte> bytes, const void* owner) {
  Region& r = *region_;
  if (bytes.empty()) return device_->data();
  if (region_ == &range_ && queue_.gave_up() != nullptr) return device_->data();  // nobody reads it
  if (owner != nullptr) {
    for (const Sent& s : r.sent) {
      if (s.owner == owner && s.bytes == bytes.size() &&
          std::memcmp(pinned_->data() + s.offset, bytes.data(), s.bytes) == 0) {
        return device_->data() + s.offset;
      }
    }
  }
  const size_t offset = r.begin + r.used;
  CHECK_LE(offset + bytes.size(), r.end) << "more than was reserved";
  std::memcpy(pinned_->data() + offset, bytes.data(), bytes.size());
  if (region_ == &own_) {
    CUDA_CHECK(cudaMemcpyAsync(device_->data() + offset, pinned_->data() + offset, bytes.size(),
                               cudaMemcpyHostToDevice, queue_.stream()));
  }
  r.used += Slackened(bytes.size());
  if (owner != nullptr) r.sent.push_back({owner, offset, bytes.size()});
  return device_->data() + offset;
}

void Uploads::Recycle() {
  own_.used = 0;
  own_.sent.clear();
}

void Uploads::EnterRange(size_t begin, size_t end) {
  CHECK(region_ == &own_) << "a pass within a pass";
  CHECK(begin <= end && end <= range_bytes()) << end << " of " << range_bytes();
  range_.begin = capacity_bytes_ + begin;
  range_.end = capacity_bytes_ + end;
  range_.used = range_.asked = 0;
  range_.sent.clear();
  region_ = &range_;
}

size_t Uploads::LeaveRange() {
  region_ = &own_;
  return Slackened(range_.asked);
}

void Uploads::SendRange(size_t begin, size_t bytes) {
  if (bytes == 0) return;
  const size_t at = capacity_bytes_ + begin;
  CUDA_CHECK(cudaMemcpyAsync(device_->data() + at, pinned_->data() + at, bytes,
                             cudaMemcpyHostToDevice, queue_.stream()));
}

}  // namespace sensorium::cuda
