// The calls of CUDA's runtime API that the backend makes, on host memory. A stream is a queue whose
// work runs when something waits for it and not before: a missing wait reads what was there before.
// A stream that captures puts its work into a graph instead, which queues all of it each time it is
// launched.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/include/cuda_runtime.h"

namespace cuda_emu {

struct Work {
  std::function<void()> run;
  bool is_kernel;
};
struct Graph {
  std::vector<Work> work;
};
struct GraphExec {
  std::vector<Work> work;
};
struct Stream {
  std::deque<std::function<void()>> queue;
  std::unique_ptr<Graph> capture;   // while it captures
  bool capture_is_invalid = false;  // something illegal was asked of it meanwhile
};

struct Event {
  std::optional<std::chrono::steady_clock::time_point> reached;  // by the stream
};

namespace {

size_t MemoryOfEnvironment() {
  const char* mib = std::getenv("CUDA_EMU_MEMORY_MIB");
  return static_cast<size_t>(mib == nullptr ? 4096 : std::atoi(mib)) << 20;
}

struct Device {
  Counters counters;
  int count = 1;
  size_t memory_bytes = MemoryOfEnvironment();
  const char* break_file = std::getenv("CUDA_EMU_BREAK_FILE");
  size_t allocated_bytes = 0;
  int fail_allocation = 0, fail_launch = 0, refuse_launch = 0;
  cudaError_t last_error = cudaSuccess;
  cudaError_t sticky = cudaSuccess;     // a failed kernel: every later call says so
  std::map<void*, size_t> allocations;  // device memory
  std::map<const std::byte*, size_t> pinned;
  std::set<Stream*> streams;
  int live_graphs = 0;  // of both kinds
  std::vector<LaunchShape>* launches = nullptr;
  std::set<const void*> loaded;  // kernels
};
Device device;

cudaError_t Report(cudaError_t error) {
  if (error != cudaSuccess) device.last_error = error;
  return error;
}

void Run(Stream& stream) {
  while (!stream.queue.empty()) {
    const std::function<void()> work = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (device.sticky == cudaSuccess) work();
  }
}

// What may wait or take memory is refused to a thread that captures, and spoils the capture.
bool Capturing() {
  bool any = false;
  for (Stream* stream : device.streams) {
    if (stream->capture == nullptr) continue;
    stream->capture_is_invalid = any = true;
  }
  return any;
}

void Queue(Stream& stream, std::function<void()> run, bool is_kernel) {
  if (stream.capture != nullptr) {
    stream.capture->work.push_back({std::move(run), is_kernel});
  } else {
    stream.queue.push_back(std::move(run));
  }
}

// What a kernel that is launched now does when the stream gets there.
std::function<void()> Launched(std::function<void()> run) {
  const bool fails = (device.fail_launch > 0 && --device.fail_launch == 0) ||
                     (device.break_file != nullptr && access(device.break_file, F_OK) == 0);
  if (fails) return [] { device.sticky = cudaErrorLaunchFailure; };
  return run;
}

bool Pinned(const void* p) {
  const auto* byte = static_cast<const std::byte*>(p);
  auto at = device.pinned.upper_bound(byte);
  if (at == device.pinned.begin()) return false;
  --at;
  return byte < at->first + at->second;
}

void CopyRows(std::byte* to, size_t to_pitch, const std::byte* from, size_t from_pitch,
              size_t row_bytes, size_t rows) {
  for (size_t r = 0; r < rows; ++r)
    std::memcpy(to + r * to_pitch, from + r * from_pitch, row_bytes);
}

}  // namespace

Counters counters() { return device.counters; }
void ForgetKernels() {
  device.loaded.clear();
  device.counters.loaded_in_capture = 0;
}
void RecordLaunches(std::vector<LaunchShape>* to) { device.launches = to; }
void FailAllocation(int n) { device.fail_allocation = n; }
bool NextAllocationFails() { return device.fail_allocation > 0 && --device.fail_allocation == 0; }
void SetDeviceMemory(size_t bytes) { device.memory_bytes = bytes; }
size_t AllocatedBytes() { return device.allocated_bytes; }
int LiveGraphs() { return device.live_graphs; }
void SetDeviceCount(int count) { device.count = count; }
void FailLaunch(int n) {
  device.fail_launch = n;
  device.sticky = device.last_error = cudaSuccess;
}

void RefuseLaunch(int n) {
  device.refuse_launch = n;
  device.last_error = cudaSuccess;
}

cudaError_t Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::function<void()> kernel, const void* code) {
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (device.refuse_launch > 0 && --device.refuse_launch == 0) {
    return Report(cudaErrorInvalidConfiguration);
  }
  if (device.launches != nullptr) {
    device.launches->push_back({static_cast<int>(block.x * block.y * block.z), shared_bytes});
  }
  if (code != nullptr && device.loaded.insert(code).second && stream->capture != nullptr) {
    ++device.counters.loaded_in_capture;
  }
  const auto run = [=, kernel = std::move(kernel)] { RunGrid(grid, block, shared_bytes, kernel); };
  if (stream->capture == nullptr) {
    ++device.counters.launches;
    Queue(*stream, Launched(run), /*is_kernel=*/true);
  } else {
    Queue(*stream, run, /*is_kernel=*/true);
  }
  return cudaSuccess;
}

}  // namespace cuda_emu

using cuda_emu::device;
using cuda_emu::Report;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
  }
  return "unknown error";
}

cudaError_t cudaGetLastError() { return std::exchange(device.last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device.count;
  return device.count == 0 ? Report(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "emulated device");
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = device.memory_bytes - device.allocated_bytes;
  *total_bytes = device.memory_bytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = nullptr;
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  if (cuda_emu::NextAllocationFails() || bytes > device.memory_bytes - device.allocated_bytes) {
    return Report(cudaErrorMemoryAllocation);
  }
  // Not more than asked for, so that AddressSanitizer sees the end; a multiple of 256 needs no
  // more.
  if (posix_memalign(p, 256, bytes) != 0) return Report(cudaErrorMemoryAllocation);
  std::memset(*p, 0xff, bytes);  // NaN in every float type
  device.allocations[*p] = bytes;
  device.allocated_bytes += bytes;
  ++device.counters.device_allocations;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  const auto at = device.allocations.find(p);
  if (at == device.allocations.end()) cuda_emu::Fail("cudaFree of memory that is not allocated");
  for (cuda_emu::Stream* stream : device.streams) cuda_emu::Run(*stream);  // cudaFree waits for all
  device.allocated_bytes -= at->second;
  device.allocations.erase(at);
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  if (cuda_emu::NextAllocationFails()) return Report(cudaErrorMemoryAllocation);
  if (posix_memalign(p, 4096, bytes) != 0) return Report(cudaErrorMemoryAllocation);
  std::memset(*p, 0xff, bytes);
  device.pinned[static_cast<std::byte*>(*p)] = bytes;
  ++device.counters.pinned_allocations;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  if (p == nullptr) return cudaSuccess;
  if (device.pinned.erase(static_cast<std::byte*>(p)) == 0) {
    cuda_emu::Fail("cudaFreeHost of memory that is not pinned");
  }
  std::free(p);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  // The first call that needs the driver's own memory on the device.
  if (device.allocated_bytes >= device.memory_bytes) return Report(cudaErrorMemoryAllocation);
  *stream = new cuda_emu::Stream;
  device.streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  device.streams.erase(stream);
  delete stream;  // what is still queued never runs: whoever needed it had to wait
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const sensorium::AllowedAllocation allowed;
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  ++device.counters.synchronisations;
  cuda_emu::Run(*stream);
  return Report(device.sticky);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new cuda_emu::Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const sensorium::AllowedAllocation allowed;
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (stream->capture != nullptr) cuda_emu::Fail("an event recorded in a graph has no time");
  event->reached.reset();
  stream->queue.push_back([event] { event->reached = std::chrono::steady_clock::now(); });
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (!from->reached || !to->reached) return Report(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(*to->reached - *from->reached).count();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

// Pinned host memory is read and written when the stream gets there; pageable memory is read before
// the call returns, and written before it returns.
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t row_bytes, size_t rows, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const sensorium::AllowedAllocation allowed;
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const auto bytes = static_cast<int64_t>(row_bytes * rows);
  if (kind == cudaMemcpyHostToDevice) {
    ++device.counters.copies_to_device;
    device.counters.copied_to_device_bytes += bytes;
    if (!cuda_emu::Pinned(from)) {
      if (stream->capture != nullptr) cuda_emu::Fail("a capture would read pageable memory later");
      std::vector<std::byte> staged(row_bytes * rows);
      cuda_emu::CopyRows(staged.data(), row_bytes, in, from_pitch, row_bytes, rows);
      cuda_emu::Queue(
          *stream,
          [=, staged = std::move(staged)] {
            cuda_emu::CopyRows(out, to_pitch, staged.data(), row_bytes, row_bytes, rows);
          },
          /*is_kernel=*/false);
      return cudaSuccess;
    }
  }
  if (kind == cudaMemcpyDeviceToHost) {
    ++device.counters.copies_to_host;
    device.counters.copied_to_host_bytes += bytes;
  }
  cuda_emu::Queue(
      *stream, [=] { cuda_emu::CopyRows(out, to_pitch, in, from_pitch, row_bytes, rows); },
      /*is_kernel=*/false);
  if (kind == cudaMemcpyDeviceToHost && !cuda_emu::Pinned(to)) return cudaStreamSynchronize(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (stream->capture != nullptr) cuda_emu::Fail("a capture within a capture");
  stream->capture = std::make_unique<cuda_emu::Graph>();
  stream->capture_is_invalid = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream->capture == nullptr) return Report(cudaErrorInvalidValue);
  const std::unique_ptr<cuda_emu::Graph> captured = std::move(stream->capture);
  if (stream->capture_is_invalid) return Report(cudaErrorStreamCaptureInvalidated);
  *graph = new cuda_emu::Graph(*captured);
  ++device.live_graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  *exec = new cuda_emu::GraphExec{graph->work};
  ++device.live_graphs;
  ++device.counters.graphs;
  for (const cuda_emu::Work& w : graph->work) device.counters.graph_kernels += w.is_kernel;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return Report(device.sticky); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const sensorium::AllowedAllocation allowed;
  if (device.sticky != cudaSuccess) return Report(device.sticky);
  if (cuda_emu::Capturing()) return Report(cudaErrorStreamCaptureUnsupported);
  if (device.refuse_launch > 0 && --device.refuse_launch == 0) {
    return Report(cudaErrorInvalidConfiguration);
  }
  ++device.counters.graph_launches;
  for (const cuda_emu::Work& w : exec->work) {
    device.counters.launched_graph_kernels += w.is_kernel;
    stream->queue.push_back(w.is_kernel ? cuda_emu::Launched(w.run) : w.run);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  --device.live_graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  --device.live_graphs;
  return cudaSuccess;
}
