// What the compiler made of each kernel, from what ptxas said: cuda/COSTS.md must say the same.
// Nothing is run here; elsewhere the kernels are executed by emulation.
#include <cuda_occupancy.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/check.h"
#include "tests/cuda/costs_file.h"
#include "tests/cuda/kernel_launches.h"

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

int BlocksPerMultiprocessor(const Target& t, const KernelLaunch& launch, int registers) {
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
  cudaOccResult result = {};
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
         "registers of a thread / blocks on a multiprocessor / share of its threads.\n"
         "Of sources "
      << KernelSources()
      << ".\n\n"
         "| kernel | threads | shared bytes |";
  for (const Target& t : kTargets) out << " " << t.name << " |";
  out << "\n|---|---|---|---|---|---|---|\n";
  for (const auto& [kernel, by_target] : Registers()) {
    const KernelLaunch* launch = LaunchOf(kernel);
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

// The first sentence, which names the compiler: each counts in its own way.
std::string CompilerOf(const std::string& table) { return table.substr(0, table.find(". ")); }

void CheckTable(const std::string& title, const std::string& now) {
  const std::string kept = CostsSection(title);
  EXPECT_GT(std::count(now.begin(), now.end(), '\n'), 40) << "in " << SENSORIUM_PTXAS_INFO;
  const bool update = std::getenv("SENSORIUM_UPDATE_COSTS") != nullptr;
  if (!update && !kept.empty() && CompilerOf(kept) != CompilerOf(now)) {
    GTEST_SKIP() << "another compiler counts differently: " << CompilerOf(now);
  }
  CheckCostsSection(title, now);
}

TEST(CostsTest, TheTableSaysWhatTheCompilerSaid) { CheckTable(kCompilerSection, Table()); }

#ifdef SENSORIUM_CUOBJDUMP
// What cuobjdump finds of one kernel in the machine code for one target.
struct MachineCode {
  int registers = 0, stack = 0;
  int instructions = 0, mma = 0, ldmatrix = 0, async_copies = 0, local = 0;
};
using MachineCodes = std::map<std::string, std::map<std::string, MachineCode>>;

std::string Dump(const std::string& option, const std::filesystem::path& object) {
  const std::string command =
      std::string(SENSORIUM_CUOBJDUMP) + " " + option + " '" + object.string() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  char part[1 << 16];
  for (size_t n = 0; pipe && (n = fread(part, 1, sizeof(part), pipe)) > 0;) text.append(part, n);
  EXPECT_EQ(pipe ? pclose(pipe) : -1, 0) << command;
  return text;
}

// "HMMA" of "  /*0a10*/  @!P0 HMMA.16816.F32.BF16 R4, ..."; "" of a line without an instruction.
std::string Opcode(const std::string& line) {
  const size_t begin = line.find_first_not_of(" \t"), end = line.find("*/");
  if (begin == line.npos || end == line.npos || line.compare(begin, 2, "/*") != 0) return "";
  std::istringstream words(line.substr(end + 2));
  std::string word;
  words >> word;
  if (word.starts_with("@")) words >> word;
  if (word.empty() || !std::isupper(static_cast<unsigned char>(word[0]))) return "";
  return word.substr(0, word.find_first_of(".;"));
}

// Every kernel of the objects that the build made.
MachineCodes ReadMachineCode() {
  static const std::regex kTarget(R"(\s*(?:arch = |code for )(sm_\w+)\s*)");
  static const std::regex kFunction(R"(\s*Function\s*:?\s*([^\s:]+):?\s*)");
  static const std::regex kUsage(R"(\s*REG:(\d+) STACK:(\d+).*)");
  MachineCodes codes;
  for (const auto& file : std::filesystem::directory_iterator(SENSORIUM_PTXAS_INFO)) {
    if (file.path().extension() != ".o") continue;
    for (const char* option : {"-res-usage", "-sass"}) {
      std::istringstream lines(Dump(option, file.path()));
      std::string line, target;
      MachineCode* code = nullptr;
      while (std::getline(lines, line)) {
        if (const std::string name = Opcode(line); !name.empty()) {
          CHECK(code != nullptr) << file.path() << ": " << line;
          code->instructions += name != "NOP";  // which fill the last lines
          code->mma += name == "HMMA";
          code->ldmatrix += name == "LDSM";
          code->async_copies += name == "LDGSTS";
          code->local += name == "LDL" || name == "STL";
          continue;
        }
        std::smatch match;
        if (line.find("/*") != line.npos) continue;  // the instruction's bits
        if (std::regex_match(line, match, kTarget)) {
          target = match[1], code = nullptr;
        } else if (std::regex_match(line, match, kFunction)) {
          code = &codes[ShortName(match[1])][target];
        } else if (code && std::regex_match(line, match, kUsage)) {
          code->registers = std::stoi(match[1]), code->stack = std::stoi(match[2]);
        }
      }
    }
  }
  return codes;
}

TEST(CostsTest, TheMachineCodeIsWhatTheCompilerAndTheHeadersSay) {
  const MachineCodes codes = ReadMachineCode();
  const auto registers = Registers();
  std::ostringstream out;
  out << "Compiled by CUDA " << CUDART_VERSION / 1000 << "." << CUDART_VERSION % 1000 / 10
      << ". Read from the objects by cuobjdump. Per target:\n"
         "instructions of the program / of them HMMA (mma.sync), LDSM (ldmatrix), LDGSTS "
         "(cp.async).\nOf sources "
      << KernelSources() << ".\n\n| kernel |";
  for (const Target& t : kTargets) out << " " << t.name << " |";
  out << "\n|---|---|---|---|---|\n";
  for (const auto& [kernel, by_target] : registers) {
    SCOPED_TRACE(kernel);
    const bool matrix_units =
        kernel.starts_with("linear_bf16_kernel") || kernel.starts_with("attention_mma_kernel");
    out << "| `" << kernel << "` |";
    for (const Target& t : kTargets) {
      SCOPED_TRACE(t.name);
      ASSERT_TRUE(codes.contains(kernel) && codes.at(kernel).contains(t.name));
      const MachineCode& code = codes.at(kernel).at(t.name);
      EXPECT_EQ(code.registers, by_target.at(t.name));
      EXPECT_EQ(code.stack, 0);
      EXPECT_EQ(code.local, 0);
      EXPECT_GT(code.instructions, 10);
      EXPECT_EQ(code.mma > 0, matrix_units);
      EXPECT_EQ(code.ldmatrix > 0, matrix_units);
      EXPECT_EQ(code.async_copies > 0, matrix_units);
      out << " " << code.instructions << " / " << code.mma << ", " << code.ldmatrix << ", "
          << code.async_copies << " |";
    }
    out << "\n";
  }
  CheckTable(kMachineCodeSection, out.str());
}
#endif  // SENSORIUM_CUOBJDUMP

// What a kernel's instructions are, in PTX for compute capability 8.0: its entry's body.
std::string PtxOf(const std::string& file, const std::string& kernel) {
  std::ifstream in(std::string(SENSORIUM_PTX) + "/" + file + ".ptx");
  std::string all, line;
  bool inside = false;
  while (std::getline(in, line)) {
    if (line.find(".entry") != line.npos) inside = line.find(kernel) != line.npos;
    if (inside) all += line + "\n";
    if (line == "}") inside = false;
  }
  return all;
}

TEST(CostsTest, TheInstructionsAreThoseThatTheHeadersClaim) {
  struct Claim {
    const char *file, *kernel;
    std::vector<std::string> instructions;
  };
  const std::vector<std::string> matrix_units = {
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16", "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
      "cp.async.cg.shared.global", "cp.async.wait_group"};
  for (const Claim& claim :
       {Claim{"linear", "linear_bf16_kernel", matrix_units},
        Claim{"attention", "attention_mma_kernel", matrix_units},
        Claim{"attention",
              "attention_mma_kernel",
              {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"}},
        // 16 bytes of a weight at once, and of it in shared memory.
        Claim{"linear",
              "linear_float32_kernel",
              {R"(ld(\.global(\.nc)?)?\.v4\.[fb]32)", R"(ld\.shared\.v4\.[fb]32)"}}}) {
    const std::string ptx = PtxOf(claim.file, claim.kernel);
    EXPECT_GT(ptx.size(), 1000u) << claim.kernel << " in " << SENSORIUM_PTX;
    for (const std::string& instruction : claim.instructions) {
      EXPECT_TRUE(std::regex_search(ptx, std::regex(instruction)))
          << claim.kernel << " has no " << instruction;
    }
  }
  EXPECT_EQ(PtxOf("linear", "linear_float32_kernel").find("mma.sync"), std::string::npos);
}

}  // namespace
}  // namespace sensorium
