// What the files of cuda/kernels and the tests of the emulated device must say of themselves: a
// kernel's source, shapes, launch, traffic and numerics; and that a test was executed by emulation.
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

namespace fs = std::filesystem;

std::string Read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The files under `folder` whose names match.
std::vector<fs::path> FilesOf(const std::string& folder, const std::string& name) {
  std::vector<fs::path> files;
  const std::regex pattern(name);
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(SENSORIUM_SOURCE_DIR) / folder)) {
    if (std::regex_match(entry.path().filename().string(), pattern)) files.push_back(entry.path());
  }
  return files;
}

// The comment at the head of a file: its lines up to the first that is none.
std::string HeaderOf(const std::string& text) {
  std::string header, line;
  std::istringstream lines(text);
  while (std::getline(lines, line) && line.starts_with("//")) header += line + "\n";
  return header;
}

// What is missing in a kernel file's text, a line each.
std::string Lacks(const std::string& text) {
  std::string lacks;
  const std::string header = HeaderOf(text);
  for (const char* field : {"Source", "Shapes", "Launch", "Traffic", "Numerics"}) {
    const std::regex at_line_start("(^|\n)// " + std::string(field) + " +[^ \n]");
    if (!std::regex_search(header, at_line_start)) lacks += std::string(field) + "\n";
    // Only there: a formatter that joins lines swallows a field into the one before.
    const std::regex swallowed("\n//[^\n]*[^ /\n][^\n]* " + std::string(field) + "   ");
    if (std::regex_search(header, swallowed)) lacks += std::string(field) + " (in a line)\n";
  }
  static const std::regex kKernel(R"(__global__[^;{]*?\b(\w+)_kernel\()");
  for (std::sregex_iterator at(text.begin(), text.end(), kKernel), end; at != end; ++at) {
    if (!std::regex_search(header, std::regex("\\b" + (*at)[1].str() + "\\b"))) {
      lacks += (*at)[1].str() + "\n";
    }
  }
  return lacks;
}

TEST(HeadersTest, EveryKernelsFileStatesItsFieldsAndNamesItsKernels) {
  const auto files = FilesOf("cuda/kernels", ".*\\.cu");
  EXPECT_GT(files.size(), 10u);
  size_t kernels = 0;
  for (const fs::path& file : files) {
    const std::string text = Read(file);
    EXPECT_EQ(Lacks(text), "") << file.filename() << "'s header lacks these";
    for (size_t at = 0; (at = text.find("__global__", at)) != text.npos; ++at) ++kernels;
  }
  EXPECT_GT(kernels, 25u);
}

TEST(HeadersTest, WhatIsMissingIsFound) {
  const std::string fields =
      "// a.cu: b.\n//\n// Source    c\n// Shapes    d\n// Launch    e\n// Traffic   f\n"
      "// Numerics  g\n";
  const std::string kernel = "\ntemplate <int n>\n__global__ __launch_bounds__(n) void b_kernel(";
  EXPECT_EQ(Lacks(fields + kernel), "");
  EXPECT_EQ(Lacks(fields + kernel + "){}\n__global__ void c2_kernel("), "c2\n");
  EXPECT_EQ(Lacks("// a.cu: b.\n// Source    c\n// Shapes    d\n// Launch    e. Traffic   f\n"
                  "// Numerics  g\n"),
            "Traffic\nTraffic (in a line)\n");
  EXPECT_EQ(Lacks(fields.substr(0, fields.find("// Numerics"))), "Numerics\n");
}

TEST(HeadersTest, EveryTestOfTheEmulatedDeviceSaysSo) {
  std::vector<fs::path> files;
  for (const auto& [folder, name] : {std::pair{"tests/cuda", ".*_test\\.cc"},
                                     {"tests/cuda_emu", ".*_test\\.cc"},
                                     {"tests/runtime", "cuda_emulated.*\\.cc"}}) {
    const auto some = FilesOf(folder, name);
    EXPECT_FALSE(some.empty()) << folder;
    files.insert(files.end(), some.begin(), some.end());
  }
  // The words may stand on two lines of a comment.
  const std::regex words("[Ee]xecuted\\s+(// )?by\\s+(// )?emulation");
  for (const fs::path& file : files) {
    EXPECT_TRUE(std::regex_search(Read(file), words))
        << file.filename() << " does not say \"executed by emulation\"";
  }
}

}  // namespace
}  // namespace sensorium
