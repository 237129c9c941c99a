// What brings the host's small arrays to the device.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/kernels/queue.h"

namespace sensorium::cuda {

// Token ids, positions, block tables, task lists: arrays the host makes anew each step. They are
// copied through pinned memory into a buffer of the device and live until the queue was waited for
// (Recycle). An array is sent once: every layer of a forward pass asks for the same ones.
//
// A recorded pass has a range of its own behind that, where its arrays lie at the same places each
// time: which share a place is a matter of whose they are, never of what happens to be in them.
// Nothing is copied until the whole range is (SendRange). Engine thread only.
class Uploads {
 public:
  // PinnedBytes(..) of `pinned` and as much of the device's memory: for `capacity_bytes`, and for
  // all ranges together what is left. null when the device has not that much.
  static std::unique_ptr<Uploads> Create(size_t capacity_bytes,
                                         std::unique_ptr<PinnedBuffer> pinned, DeviceMemory& memory,
                                         Queue& queue);
  static size_t PinnedBytes(size_t capacity_bytes, size_t range_bytes);
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  size_t capacity_bytes() const { return capacity_bytes_; }
  // Makes room for arrays of together this size (and kSlack each), waiting for the queue if it
  // must. All Puts of one op follow one Reserve: a wait in between would take away the first ones.
  // In a range that has not so much room the queue gives up (Queue::GiveUp), and Put does nothing.
  void Reserve(size_t bytes);
  static constexpr size_t kSlack = 256;

  // The array's copy on the device, good until Recycle. What has the same `owner` (the array itself
  // where there is none), size and content was sent before and is not sent again. REQUIRES:
  // reserved.
  template <typename T>
  const std::remove_const_t<T>* Put(std::span<T> array, const void* owner = nullptr) {
    return reinterpret_cast<const std::remove_const_t<T>*>(
        PutBytes(std::as_bytes(array), owner != nullptr ? owner : array.data()));
  }
  // owner null: bytes that nobody else sends.
  const std::byte* PutBytes(std::span<const std::byte> bytes, const void* owner);

  // Everything queued so far has run: the buffers are free again, but for ranges.
  void Recycle();

  // What Put gives out from EnterRange to LeaveRange lies in [begin, end) of the ranges' memory.
  // REQUIRES: what was sent from there before has arrived.
  void EnterRange(size_t begin, size_t end);
  // Returns how much of it was asked for, to a multiple of kSlack.
  size_t LeaveRange();
  size_t range_bytes() const { return device_->size_bytes() - capacity_bytes_; }
  // Queues one copy of the first `bytes` from `begin` on.
  void SendRange(size_t begin, size_t bytes);

 private:
  struct Sent {
    const void* owner;
    size_t offset, bytes;
  };
  struct Region {
    size_t begin = 0, end = 0;   // of the buffers
    size_t used = 0, asked = 0;  // from begin on; by Puts, by Reserve
    std::vector<Sent> sent;
  };
  Uploads(std::unique_ptr<PinnedBuffer> pinned, std::unique_ptr<CudaBuffer> device,
          size_t capacity_bytes, Queue& queue);

  const std::unique_ptr<PinnedBuffer> pinned_;  // as large as device_
  const std::unique_ptr<CudaBuffer> device_;
  const size_t capacity_bytes_;
  Queue& queue_;
  Region own_, range_;
  Region* region_ = &own_;  // where Put puts
};

}  // namespace sensorium::cuda
