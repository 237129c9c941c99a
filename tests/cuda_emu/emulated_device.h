// The knobs and counters of the emulated device, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_emu {

struct Counters {
  int64_t launches = 0;                   // of kernels, outside graphs
  int64_t graphs = 0, graph_kernels = 0;  // instantiated, and the kernels in them
  int64_t graph_launches = 0, launched_graph_kernels = 0;
  int64_t copies_to_device = 0, copied_to_device_bytes = 0;
  int64_t copies_to_host = 0, copied_to_host_bytes = 0;
  int64_t loaded_in_capture = 0;  // kernels whose first launch was captured, since ForgetKernels
  int64_t synchronisations = 0;
  int64_t device_allocations = 0, pinned_allocations = 0;  // ever made
};
Counters counters();

// As in a new process: every kernel is loaded at its next launch.
void ForgetKernels();

struct LaunchShape {
  int threads;          // of a block
  size_t shared_bytes;  // dynamic
};
// From now on each launch is added to `to`, which is the caller's; null: none is.
void RecordLaunches(std::vector<LaunchShape>* to);

// The n-th allocation of device or pinned memory from now on fails, n >= 1; 0: none does. A
// library's handle is one.
void FailAllocation(int n);
// Whether the allocation that a stand-in makes now is the one that fails: it counts.
bool NextAllocationFails();
// What cudaMemGetInfo says is free and there; an allocation of more fails.
void SetDeviceMemory(size_t bytes);
size_t AllocatedBytes();  // device memory not yet freed
int LiveGraphs();         // captured or instantiated, and not yet destroyed
// 0: a machine without a GPU.
void SetDeviceCount(int count);
// The n-th launch from now on fails when it runs, and everything behind it; 0: none does. Each
// kernel of a graph that is launched counts.
void FailLaunch(int n);
// The n-th launch from now on is refused, as one of too many threads is; 0: none is. A graph counts
// once.
void RefuseLaunch(int n);

// What cuDNN can do: how many of its six engines it has (the sixth is the only one for float32, the
// third for bfloat16), and whether bfloat16 can be added up into float32.
struct CudnnLimits {
  int engines = 6;
  bool no_wider_sums = false;
};
void LimitCudnn(const CudnnLimits& to);

// A program of its own is told by its environment: CUDA_EMU_MEMORY_MIB is SetDeviceMemory, and
// every launch fails when it runs once there is a file of the name CUDA_EMU_BREAK_FILE.

}  // namespace cuda_emu
