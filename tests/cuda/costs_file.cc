#include "tests/cuda/costs_file.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kv_cache/content_hash.h"

namespace sensorium {
namespace {

const std::string kPath = std::string(SENSORIUM_SOURCE_DIR) + "/cuda/COSTS.md";

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}
std::string ReadCosts() { return ReadFile(kPath); }

// [begin, end) of a section's text; both npos when it is not there.
struct Range {
  size_t begin, end;
};
Range Find(const std::string& file, const std::string& title) {
  const std::string head = "## " + title + "\n\n";
  const size_t at = file.find(head);
  if (at == file.npos) return {at, at};
  const size_t next = file.find("\n## ", at + head.size());
  return {at + head.size(), next == file.npos ? file.size() : next};
}

}  // namespace

std::string CostsSection(const std::string& title) {
  const std::string file = ReadCosts();
  const auto [begin, end] = Find(file, title);
  return begin == file.npos ? "" : file.substr(begin, end - begin);
}

std::string CodeOf(const std::string& text) {
  std::string code, line;
  for (std::istringstream lines(text); std::getline(lines, line);) {
    std::istringstream words(line.substr(0, line.find("//")));
    for (std::string word; words >> word;) code += (code.empty() ? "" : " ") + word;
  }
  return code;
}

std::string KernelSources() {
  const std::string root = SENSORIUM_SOURCE_DIR;
  std::vector<std::string> files = {root + "/cuda/primitives.cuh"};
  for (const auto& file : std::filesystem::directory_iterator(root + "/cuda/kernels")) {
    files.push_back(file.path().string());
  }
  std::sort(files.begin(), files.end());
  ContentHasher hasher;
  for (const std::string& file : files) {
    hasher.Update(std::string_view(file).substr(root.size())).Update(CodeOf(ReadFile(file)));
  }
  // Flags and architectures.
  for (const char* file : {"/CMakeLists.txt", "/cuda/CMakeLists.txt"}) {
    std::istringstream lines(ReadFile(root + file));
    for (std::string line; std::getline(lines, line);) {
      if (std::regex_search(line, std::regex("CMAKE_CUDA|CUDA_FLAGS|-Xptxas"))) {
        hasher.Update(CodeOf(line));
      }
    }
  }
  return hasher.Finish().hex().substr(0, 16);
}

void CheckCostsSection(const std::string& title, const std::string& text) {
  if (std::getenv("SENSORIUM_UPDATE_COSTS") == nullptr) {
    EXPECT_EQ(CostsSection(title), text)
        << "cuda/COSTS.md is stale: run this with SENSORIUM_UPDATE_COSTS=1 and commit it";
    return;
  }
  std::string file = ReadCosts();
  const auto [begin, end] = Find(file, title);
  if (begin == file.npos) {
    file += "\n## " + title + "\n\n" + text;
  } else {
    file.replace(begin, end - begin, text);
  }
  std::ofstream(kPath) << file;
}

}  // namespace sensorium
