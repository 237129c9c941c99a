// What the compiler made of each kernel, from what ptxas said: cuda/COSTS.md must say the same.
// Nothing is run here; elsewhere the kernels are executed by emulation.
#include <cuda_occupancy.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cuda/costs_file.h"

namespace sensorium {
namespace {

// NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
struct Target {
  const char* name;  // ptxas'
  int major, minor;
  int threads;                  // of a multiprocessor
  size_t shared, block_shared;  // KiB of a multiprocessor, of a block
};
constexpr Target kTargets[] = {{"sm_80", 8, 0, 2048, 164, 163},
                               {"sm_89", 8, 9, 1536, 100, 99},
                               {"sm_90a", 9, 0, 2048, 228, 227},
                               {"sm_100", 10, 0, 2048, 228, 227}};

// How the launchers of cuda/kernels launch them at their largest: threads, and bytes of shared
// memory.
struct Launch {
  const char* kernel;  // regular expression over the name without its namespace
  int threads, shared_bytes;
};
constexpr Launch kLaunches[] = {
    {"attention_mma_kernel<64>", 128, (64 + 4 * 64) * 72 * 2},
    {"attention_mma_kernel<128>", 128, (64 + 4 * 32) * 136 * 2},
    {"attention_plain_kernel", 128,
     (16 * 128 + 32 * 129 + 32 * 128 + 16 * 32) * 4},  // head_dim 128
    {"attention_merge_kernel", 128, 0},
    {"linear_bf16_kernel<.*, 64>", 128, 3 * (64 + 64) * 40 * 2},
    {"linear_bf16_kernel<.*, 16>", 128, 3 * (16 + 64) * 40 * 2},
    {"linear_float32_kernel<64>", 256, 16 * (68 + 68) * 4},
    {"linear_float32_kernel<16>", 256, 16 * (20 + 68) * 4},
    {"(rms|layer)_norm_kernel<.*>", 256, 128},
    {"log_mel_kernel<.*>", 128, 0},
    {"row_energies_kernel", 128, 16},
    {"greatest_energy_kernel", 256, 32},
    {"resize_(columns|rows)_kernel", 128, 0},
    {"cut_crop_kernel<.*>", 128, 0},
    {"moe_route_kernel", 32, 0},
    {"sort_pairs_kernel", 256, 0},
    {"(convert|pad|embed|gather|scatter_add|mean)_rows_kernel<.*>", 128, 0},
    {"(conv1d_windows|silu_mul|rope|store_kv)_kernel<.*>", 128, 0},
    {"add_experts_kernel|finish_linear_kernel<.*>", 128, 0},
    // Edits over 152064 ids
    {"choose_tokens_kernel", 512, 2048 * 8 + 32 * 8 + 128 * 8 + 32 + 2 * 4752 * 4},
};

const Launch* LaunchOf(const std::string& kernel) {
  for (const Launch& l : kLaunches) {
    if (std::regex_match(kernel, std::regex(l.kernel))) return &l;
  }
  return nullptr;
}

// "rms_norm_kernel<float, __nv_bfloat16>" of a mangled name.
std::string ShortName(const std::string& mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  for (const char* prefix : {"void ", "sensorium::cuda::", "(anonymous namespace)::"}) {
    if (name.starts_with(prefix)) name.erase(0, std::string(prefix).size());
  }
  int depth = 0;  // of template arguments: the first parenthesis outside begins the parameters
  for (size_t i = 0; i < name.size(); ++i) {
    depth += (name[i] == '<') - (name[i] == '>');
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

int BlocksPerMultiprocessor(const Target& t, const Launch& launch, int registers) {
  cudaOccDeviceProp device;
  device.computeMajor = t.major;
  device.computeMinor = t.minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = t.threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = t.shared * 1024;
  device.sharedMemPerBlockOptin = t.block_shared * 1024;
  device.reservedSharedMemPerBlock = 1024;
  device.numSms = 1;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = 0;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = t.block_shared * 1024;
  kernel.numBlockBarriers = 1;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
      &result, &device, &kernel, &state, launch.threads, launch.shared_bytes);
  EXPECT_EQ(error, CUDA_OCC_SUCCESS);
  return result.activeBlocksPerMultiprocessor;
}

// kernel -> target -> registers, from the files keep_ptxas_info.sh left beside the objects.
std::map<std::string, std::map<std::string, int>> Registers() {
  static const std::regex kEntry(R"(.*Compiling entry function '(\S+)' for '(\S+)'.*)");
  static const std::regex kUsed(R"(.*Used (\d+) registers.*)");
  std::map<std::string, std::map<std::string, int>> registers;
  for (const auto& file : std::filesystem::directory_iterator(SENSORIUM_PTXAS_INFO)) {
    if (file.path().extension() != ".ptxas") continue;
    std::ifstream lines(file.path());
    std::string line, kernel, target;
    while (std::getline(lines, line)) {
      std::smatch match;
      if (std::regex_match(line, match, kEntry)) {
        kernel = ShortName(match[1]), target = match[2];
      } else if (std::regex_match(line, match, kUsed)) {
        registers[kernel][target] = std::stoi(match[1]);
      }
    }
  }
  return registers;
}

std::string Table() {
  std::ostringstream out;
  out << "Compiled by CUDA " << CUDART_VERSION / 1000 << "." << CUDART_VERSION % 1000 / 10
      << ". No kernel spills or uses local memory: the build fails on either. Per target:\n"
         "registers of a thread / blocks on a multiprocessor / share of its threads.\n\n"
         "| kernel | threads | shared bytes |";
  for (const Target& t : kTargets) out << " " << t.name << " |";
  out << "\n|---|---|---|---|---|---|---|\n";
  for (const auto& [kernel, by_target] : Registers()) {
    const Launch* launch = LaunchOf(kernel);
    EXPECT_NE(launch, nullptr) << kernel << " has no row in kLaunches";
    if (launch == nullptr) continue;
    out << "| `" << kernel << "` | " << launch->threads << " | " << launch->shared_bytes << " |";
    for (const Target& t : kTargets) {
      const auto at = by_target.find(t.name);
      EXPECT_NE(at, by_target.end()) << kernel << " is not compiled for " << t.name;
      if (at == by_target.end()) continue;
      const int blocks = BlocksPerMultiprocessor(t, *launch, at->second);
      EXPECT_GE(blocks, 1) << kernel << " cannot be launched on " << t.name;
      out << " " << at->second << " / " << blocks << " / "
          << blocks * launch->threads * 100 / t.threads << " % |";
    }
    out << "\n";
  }
  return out.str();
}

// The line that names the compiler, which counts in its own way.
std::string CompilerOf(const std::string& table) {
  return table.substr(0, table.find(". No kernel"));
}

TEST(CostsTest, TheTableSaysWhatTheCompilerSaid) {
  const std::string title = "Registers, shared memory, occupancy";
  const std::string now = Table(), kept = CostsSection(title);
  EXPECT_GT(std::count(now.begin(), now.end(), '\n'), 40) << "in " << SENSORIUM_PTXAS_INFO;
  const bool update = std::getenv("SENSORIUM_UPDATE_COSTS") != nullptr;
  if (!update && !kept.empty() && CompilerOf(kept) != CompilerOf(now)) {
    GTEST_SKIP() << "another compiler counts differently: " << CompilerOf(now);
  }
  CheckCostsSection(title, now);
}

}  // namespace
}  // namespace sensorium
