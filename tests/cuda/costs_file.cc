#include "tests/cuda/costs_file.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

const std::string kPath = std::string(SENSORIUM_SOURCE_DIR) + "/cuda/COSTS.md";

std::string ReadCosts() {
  std::ostringstream text;
  text << std::ifstream(kPath).rdbuf();
  return text.str();
}

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
