#include "tests/runtime/models/model_runner.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

namespace sensorium {

std::vector<float> Floats(Backend& backend, ConstTensorView x) {
  std::vector<float> y(x.elements());
  backend.CopyToHost(y, x);
  return y;
}

std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << "cannot read " << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

nlohmann::json ReadTestJson(const std::string& path) {
  return nlohmann::json::parse(ReadTestFile(path));
}

std::map<std::string, StageTensor> ReadStages(const std::string& path) {
  const std::string bytes = ReadTestFile(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, header_bytes));
  std::map<std::string, StageTensor> stages;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    CHECK(info["dtype"] == "F32") << name;
    StageTensor& stage = stages[name];
    stage.shape = info["shape"].get<std::vector<int64_t>>();
    const size_t begin = info["data_offsets"][0], end = info["data_offsets"][1];
    stage.data.resize((end - begin) / 4);
    std::memcpy(stage.data.data(), bytes.data() + 8 + header_bytes + begin, end - begin);
  }
  return stages;
}

double RelativeError(std::span<const float> got, std::span<const float> want) {
  CHECK_EQ(got.size(), want.size());
  double worst = 0, magnitude = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, std::abs(double{got[i]} - want[i]));
    magnitude = std::max(magnitude, std::abs(double{want[i]}));
  }
  return worst / magnitude;
}

}  // namespace sensorium
