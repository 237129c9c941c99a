// What this machine gives right now: the denominators of ops_bench's ratios. Clock, neighbours and
// memory bandwidth move within minutes, so they are measured in the same run.
#pragma once

#include <cstddef>

#include "runtime/backend/tensor.h"
#include "runtime/cpu/cpu_level.h"
#include "runtime/cpu/thread_pool.h"

namespace sensorium {

// 1e9 operations (a multiply-add is two) per second of this level's matrix instruction for that
// storage, on all threads, from registers alone; the best of eight runs of about 10 ms.
double PeakGflops(ThreadPool& pool, CpuLevel level, DType storage);

// GB/s of one pass in which all threads together read `buffer`, which must be several times the
// last-level cache to say anything about memory.
double ReadBandwidth(ThreadPool& pool, const std::byte* buffer, size_t size_bytes);

}  // namespace sensorium
