#include "runtime/cpu/host_limits.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <istream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace sensorium {
namespace {

int AffinityCores() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// "max 100000" or "150000 100000": microseconds of CPU time per period (Linux, cgroup-v2.rst,
// cpu.max). 0 when there is no limit or no such file. Rounded up: a quota of 1.5 keeps 2 threads
// busy most of the time.
int CoresOf(const std::string& quota, const std::string& period) {
  try {
    const long long q = std::stoll(quota), p = std::stoll(period);
    return q > 0 && p > 0 ? static_cast<int>((q + p - 1) / p) : 0;
  } catch (const std::exception&) {  // "max"
    return 0;
  }
}

// Calls see(stream) with this file of each cgroup from this process's own to the root (version 2).
template <typename See>
void ForEachCgroupFile(const std::string& name, See see) {
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    if (line.rfind("0::", 0) != 0) continue;
    std::string path = line.substr(3);
    while (true) {
      std::ifstream file("/sys/fs/cgroup" + path + "/" + name);
      see(file);
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
}

// The tightest quota on the way to the root; 0 for none.
int QuotaCores() {
  int cores = 0;
  const auto see = [&cores](std::istream& quota_file, std::istream& period_file) {
    std::string quota, period;
    if (!(quota_file >> quota) || !(period_file >> period)) return;
    const int n = CoresOf(quota, period);
    if (n > 0) cores = cores == 0 ? n : std::min(cores, n);
  };
  ForEachCgroupFile("cpu.max", [&](std::istream& file) { see(file, file); });
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  see(v1_quota, v1_period);
  return cores;
}

}  // namespace

int UsableCores() {
  const int affinity = std::max(1, AffinityCores()), quota = QuotaCores();
  return quota > 0 ? std::min(affinity, quota) : affinity;
}

size_t AvailableMemoryBytes() {
  size_t available = SIZE_MAX;
  std::ifstream meminfo("/proc/meminfo");  // "MemAvailable:   12345 kB"
  for (std::string key, rest; meminfo >> key; std::getline(meminfo, rest)) {
    size_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) available = kib << 10;
  }
  ForEachCgroupFile("memory.max", [&](std::istream& file) {
    size_t bytes = 0;
    if (file >> bytes) available = std::min(available, bytes);  // else it says "max"
  });
  return available;
}

}  // namespace sensorium
