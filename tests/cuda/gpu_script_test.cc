// benchmarks/gpu.sh on the emulated device: its steps, its table and its JSON. Executed by
// emulation.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace sensorium {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int exit_code = -1;
  std::string output;  // and errors
};

Outcome GpuScript(const std::string& arguments, const std::string& environment = "") {
  const std::string command =
      environment + " bash '" SENSORIUM_SOURCE_DIR "/benchmarks/gpu.sh' " + arguments + " 2>&1";
  Outcome run;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return run;
  std::array<char, 4096> part;
  while (const size_t n = fread(part.data(), 1, part.size(), pipe))
    run.output.append(part.data(), n);
  const int status = pclose(pipe);
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return run;
}

TEST(GpuScriptTest, RunsTheSuiteAndTellsEachOpInATableAndInJson) {
  const std::string path = ::testing::TempDir() + "/gpu_script_test.json";
  std::remove(path.c_str());
  const Outcome run = GpuScript("--emulated '" SENSORIUM_BUILD_DIR "' '" + path + "'");
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("100% tests passed"));
  EXPECT_THAT(run.output, HasSubstr("cuda_emulated_ops_test"));
  EXPECT_THAT(run.output, HasSubstr("executed by emulation, never timed"));
  EXPECT_THAT(run.output, HasSubstr("gpu: also written to " + path));

  const nlohmann::json json = nlohmann::json::parse(std::ifstream(path));
  EXPECT_EQ(json.at("device"), "cuda: emulated device (8.0), graphs");
  EXPECT_EQ(json.at("emulated"), true);
  std::set<std::string> names;
  int decodes = 0;
  for (const auto& row : json.at("ops")) {
    const std::string name = row.at("name");
    SCOPED_TRACE(name);
    EXPECT_TRUE(names.insert(name).second) << "twice";
    // Every line of the table begins with its name, in a column of its own.
    EXPECT_THAT(run.output, HasSubstr("\n" + name + " "));
    // Nothing that only a clock can tell.
    for (const char* key : {"us", "share_of_bandwidth", "share_of_flops", "tokens_per_second"}) {
      EXPECT_FALSE(row.contains(key)) << key;
    }
    if (name.find("decode of molmo-mini") == 0) {
      ++decodes;
      continue;
    }
    EXPECT_GT(row.at("bytes").get<double>(), 0);
    EXPECT_GT(row.at("flops").get<double>(), 0);
  }
  EXPECT_EQ(decodes, 4);
  for (const char* op : {"linear qkv, 1 rows",
                         "rms_norm",
                         "layer_norm",
                         "silu_mul",
                         "rope",
                         "paged_attention, decode of 1",
                         "paged_attention, prefill",
                         "encoder_attention, Whisper",
                         "moe, 1 rows",
                         "choose_tokens, greedy",
                         "choose_tokens, a draw",
                         "embed",
                         "gather_rows",
                         "scatter_add_rows",
                         "mean_rows",
                         "convert_rows",
                         "store_kv",
                         "conv1d",
                         "cross_attention, decode of 1",
                         "paged_attention, split and merged",
                         "linear qkv float32, 512 rows",
                         "linear qkv, 64 rows, fast",
                         "linear down, 512 rows, fast",
                         "conv1d, Whisper large's second, fast",
                         "listen",
                         "log_mel",
                         "resize",
                         "cut_crop"}) {
    EXPECT_THAT(names, ::testing::Contains(::testing::StartsWith(op)));
  }
}

TEST(GpuScriptTest, EndsAtTheFirstStepThatFails) {
  const Outcome no_build = GpuScript("--emulated /no/such/build");
  EXPECT_NE(no_build.exit_code, 0);
  EXPECT_THAT(no_build.output, Not(HasSubstr("also written")));
  // The device is full: the probe says so, and nothing is run.
  const Outcome full = GpuScript("--emulated '" SENSORIUM_BUILD_DIR "'", "CUDA_EMU_MEMORY_MIB=20");
  EXPECT_NE(full.exit_code, 0);
  EXPECT_THAT(full.output, HasSubstr("64.0 MiB wanted for workspace"));
  EXPECT_THAT(full.output, Not(HasSubstr("tests passed")));
  const Outcome unknown = GpuScript("--fast");
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.output, HasSubstr("unknown argument '--fast'"));
}

}  // namespace
}  // namespace sensorium
