// The folder list is the architecture: this test walks every #include of the product and names the
// first line that draws an arrow between folders which is not in the table below.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sensorium {
namespace {

// Who may include whom; a folder may always include itself. No arrow turns back, nobody sees
// server.
const std::map<std::string, std::set<std::string>> kArrows = {
    {"proto", {}},
    // base lies below everything and knows nothing: whoever passes an absl::Status on may see it.
    {"server", {"proto", "runtime/engine", "runtime/base"}},
    // Policy: never sees a device. The engine is where both columns meet.
    {"runtime/engine",
     {"runtime/scheduler", "runtime/kv_cache", "runtime/models", "runtime/sampling",
      "runtime/tokenizer", "runtime/weights", "runtime/media", "runtime/backend", "runtime/base"}},
    {"runtime/scheduler", {"runtime/kv_cache", "runtime/base"}},
    {"runtime/kv_cache", {"runtime/base"}},
    // The engine's policy without the engine: time is a number here.
    {"runtime/simulator", {"runtime/scheduler", "runtime/kv_cache", "runtime/base"}},
    // Arithmetic: never sees a request.
    {"runtime/models",
     {"runtime/tokenizer", "runtime/weights", "runtime/media", "runtime/backend", "runtime/base"}},
    {"runtime/sampling", {"runtime/backend", "runtime/base"}},
    {"runtime/tokenizer", {"runtime/base"}},
    {"runtime/media", {"runtime/base"}},
    {"runtime/weights", {"runtime/base"}},  // and one header of the seam, see below
    // The seam and its two sides.
    {"runtime/backend", {"runtime/base"}},
    {"runtime/cpu", {"runtime/backend", "runtime/base"}},
    {"cuda", {"runtime/backend", "runtime/base"}},
    {"runtime/base", {}},
};

// What single files may see beyond their folder: `from` and `to` are the beginnings of paths.
struct Exception {
  std::string_view from, to;
};
constexpr Exception kExceptions[] = {
    // A mapped weight file is a bag of tensor views; it knows no op.
    {"runtime/weights/", "runtime/backend/tensor.h"},
    // Wiring: who opens the device and hands it to the engine.
    {"server/main.cc", "runtime/cpu/"},
    {"server/main.cc", "runtime/backend/"},
    {"server/main.cc", "runtime/media/"},
    {"server/backend_factory.", "runtime/cpu/"},
    {"server/backend_factory.", "runtime/backend/"},
    {"server/backend_factory.", "cuda/"},
    // The command line: opens a device too, and draws the points it was given on the image.
    {"server/cli_", "runtime/cpu/"},
    {"server/cli_", "runtime/backend/"},
    {"server/cli_", "runtime/media/"},
    // `sensorium bench`: recorded and simulated schedules, without an engine.
    {"server/cli_bench", "runtime/scheduler/"},
    {"server/cli_bench", "runtime/simulator/"},
};

// Libraries that a part of the tree must not know of, by the path in the #include.
struct Ban {
  std::string_view where;  // beginning of the file's path
  const char* header;      // regular expression over the included path
  const char* why;
};
constexpr Ban kBans[] = {
    {"runtime/", R"((grpc|grpcpp|grpc\+\+)(/|\.h).*|google/(protobuf|rpc)/.*|.*\.(pb|grpc\.pb)\.h)",
     "the wire stays in server/"},
    {"runtime/",
     R"((.*/)?(cuda|cublas|cudnn|cufft|curand|cusparse|nccl|nvrtc|nvtx|nvToolsExt)[^/]*)",
     "devices stay in cuda/"},
    {"server/", R"((cuda|cublas|cudnn|nccl)[^/]*\.h)", "devices stay in cuda/"},
};

struct SourceFile {
  std::string path;  // from the repository's root
  std::string text;
};

// "runtime/cpu" of runtime/cpu/moe.h, "server" of server/main.cc; "" of a path that is not ours.
std::string FolderOf(const std::string& path) {
  static const std::set<std::string> kTop = {"proto", "server", "runtime",   "cuda",
                                             "tests", "config", "benchmarks"};
  const size_t first = path.find('/');
  if (first == path.npos || !kTop.contains(path.substr(0, first))) return "";
  if (path.substr(0, first) != "runtime") return path.substr(0, first);
  const size_t second = path.find('/', first + 1);
  return second == path.npos ? "runtime" : path.substr(0, second);
}

bool IsException(std::string_view from, std::string_view to) {
  return std::any_of(std::begin(kExceptions), std::end(kExceptions), [&](const Exception& e) {
    return from.starts_with(e.from) && to.starts_with(e.to);
  });
}

// What is wrong with one #include, if anything.
std::optional<std::string> WrongWith(const std::string& from, const std::string& to) {
  if (to.find("..") != to.npos) return "includes " + to + ": write the path from the root";
  for (const Ban& ban : kBans) {
    if (from.starts_with(ban.where) && std::regex_match(to, std::regex(ban.header))) {
      return "includes " + to + ": " + ban.why;
    }
  }
  const std::string source = FolderOf(from), target = FolderOf(to);
  if (target.empty() || target == source || IsException(from, to)) return std::nullopt;
  const auto row = kArrows.find(source);
  if (row == kArrows.end()) return source + " is a folder without a row in the table of arrows";
  if (row->second.contains(target)) return std::nullopt;
  return "includes " + to + ": there is no arrow " + source + " -> " + target;
}

// "file:line: what" for every line that breaks a rule.
std::vector<std::string> Violations(const std::vector<SourceFile>& files) {
  static const std::regex kInclude(R"re(\s*#\s*include\s*[<"]([^>"]+)[>"].*)re");
  static const std::regex kCudaIf(R"(\s*#\s*(el)?if.*CUDA.*)");
  std::vector<std::string> found;
  for (const SourceFile& file : files) {
    const bool may_ask_for_cuda =
        file.path.starts_with("cuda/") || file.path.starts_with("server/backend_factory.");
    std::istringstream lines(file.text);
    std::string line;
    for (int number = 1; std::getline(lines, line); ++number) {
      if (line.find('#') == line.npos) continue;
      const std::string place = file.path + ":" + std::to_string(number) + ": ";
      std::smatch match;
      if (std::regex_match(line, match, kInclude)) {
        if (const auto wrong = WrongWith(file.path, match[1])) found.push_back(place + *wrong);
      } else if (!may_ask_for_cuda && std::regex_match(line, kCudaIf)) {
        found.push_back(place + "asks for CUDA in shared code: " + line);
      }
    }
  }
  return found;
}

std::vector<SourceFile> ProductSources() {
  static const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh", ".inc", ".proto"};
  const std::filesystem::path root = SENSORIUM_SOURCE_DIR;
  std::vector<SourceFile> files;
  for (const char* top : {"runtime", "server", "cuda", "proto"}) {
    if (!std::filesystem::exists(root / top)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !kExtensions.contains(entry.path().extension())) continue;
      std::ostringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      files.push_back({entry.path().lexically_relative(root).generic_string(), text.str()});
    }
  }
  return files;
}

TEST(ArrowsTest, EveryIncludeFollowsADrawnArrow) {
  const std::vector<SourceFile> files = ProductSources();
  EXPECT_GT(files.size(), 20u) << "the walk lost its way in " << SENSORIUM_SOURCE_DIR;
  for (const std::string& violation : Violations(files)) ADD_FAILURE() << violation;
}

// A path on the arrows back to where it began would make the folders one.
TEST(ArrowsTest, TheTableItselfHasNoCycleAndNobodySeesTheServer) {
  std::map<std::string, std::set<std::string>> left = kArrows;
  while (!left.empty()) {  // takes away whoever sees nobody that is left
    const auto leaf = std::find_if(left.begin(), left.end(), [&](const auto& row) {
      return std::none_of(row.second.begin(), row.second.end(),
                          [&](const std::string& to) { return left.contains(to); });
    });
    ASSERT_NE(leaf, left.end()) << "a cycle through " << left.begin()->first;
    EXPECT_FALSE(leaf->second.contains("server"));
    left.erase(leaf);
  }
  for (const auto& [from, targets] : kArrows) {
    for (const std::string& to : targets) EXPECT_TRUE(kArrows.contains(to)) << from << " -> " << to;
  }
}

std::vector<std::string> WithLine(const std::string& path, const std::string& line) {
  return Violations({{path, "#pragma once\n#include <vector>\n" + line + "\n"}});
}

TEST(ArrowsTest, NamesFileLineAndArrowOfAPlantedInclude) {
  EXPECT_THAT(WithLine("runtime/scheduler/scheduler.h", "#include \"runtime/backend/tensor.h\""),
              testing::ElementsAre("runtime/scheduler/scheduler.h:3: includes "
                                   "runtime/backend/tensor.h: there is no arrow runtime/scheduler "
                                   "-> runtime/backend"));
}

TEST(ArrowsTest, RefusesEveryKindOfForbiddenLine) {
  const std::pair<const char*, const char*> kForbidden[] = {
      {"runtime/base/check.h", "#include \"runtime/kv_cache/block_allocator.h\""},
      {"runtime/models/molmo.cc", "#include \"runtime/engine/request.h\""},
      {"runtime/models/molmo.cc", "#include <runtime/cpu/thread_pool.h>"},
      {"runtime/weights/safetensors.cc", "#include \"runtime/backend/backend.h\""},
      {"runtime/engine/engine.cc", "#include \"server/config.h\""},
      {"runtime/engine/engine.cc", "#include \"cuda/cuda_backend.h\""},
      {"runtime/engine/engine.cc", "  #  include \"tests/reference/ops.h\""},
      {"runtime/surprise/x.cc", "#include \"runtime/base/check.h\""},
      {"runtime/cpu/moe.cc", "#include \"../engine/engine.h\""},
      {"runtime/backend/backend.h", "#include <cuda_runtime.h>"},
      {"runtime/backend/backend.h", "#include <cublasLt.h>"},
      {"runtime/engine/engine.h", "#include <grpcpp/grpcpp.h>"},
      {"runtime/engine/engine.h", "#include <google/protobuf/message.h>"},
      {"runtime/engine/engine.h", "#include \"sensorium/v1/sensorium.pb.h\""},
      {"runtime/backend/backend.cc", "#ifdef SENSORIUM_CUDA"},
      {"runtime/cpu/moe.cc", "#elif defined(__CUDA_ARCH__)"},
      {"server/service.cc", "#include \"runtime/scheduler/scheduler.h\""},
      {"server/service.cc", "#include \"runtime/media/image.h\""},
      {"server/main.cc", "#include \"runtime/scheduler/scheduler.h\""},
      {"server/cli_models.cc", "#include \"runtime/simulator/simulator.h\""},
      {"runtime/scheduler/replay.cc", "#include \"runtime/simulator/simulator.h\""},
      {"server/main.cc", "#include \"cuda/cuda_backend.h\""},
      {"server/main.cc", "#if SENSORIUM_WITH_CUDA"},
      {"server/cli_generate.cc", "#include <cuda_runtime.h>"},
      {"cuda/cuda_backend.cc", "#include \"runtime/cpu/packed_linear.h\""},
      {"proto/x.h", "#include \"runtime/base/check.h\""},
  };
  for (const auto& [path, line] : kForbidden) {
    EXPECT_THAT(WithLine(path, line), testing::SizeIs(1)) << path << ": " << line;
  }
}

TEST(ArrowsTest, AcceptsWhatIsDrawn) {
  const std::pair<const char*, const char*> kFine[] = {
      {"runtime/engine/request.h", "#include \"runtime/media/image.h\""},
      {"runtime/engine/request.h", "#include \"runtime/sampling/sampling_params.h\""},
      {"runtime/weights/safetensors.h", "#include \"runtime/backend/tensor.h\""},
      {"runtime/sampling/sampler.cc", "#include \"runtime/backend/backend.h\""},
      {"runtime/cpu/moe.cc", "#include \"runtime/cpu/thread_pool.h\""},
      {"runtime/media/image.cc", "#include <spng.h>"},
      {"runtime/base/check.h", "// see #include \"runtime/engine/engine.h\" and CUDA"},
      {"server/service.cc", "#include \"proto/sensorium/v1/sensorium.grpc.pb.h\""},
      {"server/service.cc", "#include \"runtime/engine/engine.h\""},
      {"server/convert.cc", "#include \"runtime/base/status_macros.h\""},
      {"server/service.cc", "#include <grpcpp/grpcpp.h>"},
      {"server/backend_factory.cc", "#include \"cuda/cuda_backend.h\""},
      {"server/backend_factory.cc", "#ifdef SENSORIUM_CUDA"},
      {"server/cli_generate.cc", "#include \"runtime/media/image.h\""},
      {"server/cli_bench.cc", "#include \"runtime/scheduler/replay.h\""},
      {"server/cli_bench_report.cc", "#include \"runtime/simulator/simulator.h\""},
      {"cuda/cuda_backend.cc", "#include <cuda_runtime.h>"},
      {"cuda/primitives.cuh", "#if __CUDA_ARCH__ >= 900"},
  };
  for (const auto& [path, line] : kFine) {
    EXPECT_THAT(WithLine(path, line), testing::IsEmpty()) << path << ": " << line;
  }
}

}  // namespace
}  // namespace sensorium
