#include "runtime/simulator/distribution.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sensorium {

uint64_t SimulationRandom::Bits() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double SimulationRandom::Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }

double SimulationRandom::Exponential() { return -std::log1p(-Uniform()); }

double SimulationRandom::Normal() {
  const double radius = std::sqrt(2 * Exponential());
  return radius * std::cos(2 * std::numbers::pi * Uniform());
}

int64_t Distribution::Draw(SimulationRandom& random) const {
  double value = a;
  switch (kind) {
    case Kind::kConstant:
      return std::llround(a);
    case Kind::kUniform:
      return std::llround(std::floor(a + random.Uniform() * (b - a + 1)));
    case Kind::kLognormal:
      value = a * std::exp(b * random.Normal());
      break;
    case Kind::kGeometric:  // on 1, 2, ...: the mean is 1 / p
      value = a <= 1 ? 1 : 1 + std::floor(-random.Exponential() / std::log1p(-1 / a));
      break;
  }
  return std::llround(std::clamp(value, 0.0, most));
}

double Distribution::Mean() const {
  switch (kind) {
    case Kind::kConstant:
    case Kind::kGeometric:
      return a;
    case Kind::kUniform:
      return (a + b) / 2;
    case Kind::kLognormal:
      return a * std::exp(b * b / 2);
  }
  return a;
}

absl::StatusOr<Distribution> Distribution::Parse(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text,
                     "' is no distribution; there are 120, uniform:1:13, lognormal:200:0.8[:most] "
                     "and geometric:64[:most]"));
  };
  std::vector<double> numbers;
  const size_t first = parts.size() > 1 ? 1 : 0;
  for (size_t i = first; i < parts.size(); ++i) {
    double& number = numbers.emplace_back();
    if (!absl::SimpleAtod(parts[i], &number) || !(number >= 0 && number <= 1e9)) return wrong();
  }
  Distribution d;
  if (first == 0) {
    d = {.kind = Kind::kConstant, .a = numbers[0]};
  } else if (parts[0] == "uniform" && numbers.size() == 2 && numbers[0] <= numbers[1]) {
    d = {.kind = Kind::kUniform, .a = numbers[0], .b = numbers[1]};
  } else if (parts[0] == "lognormal" && (numbers.size() == 2 || numbers.size() == 3) &&
             numbers[1] <= 10) {
    d = {.kind = Kind::kLognormal, .a = numbers[0], .b = numbers[1]};
    if (numbers.size() == 3) d.most = numbers[2];
  } else if (parts[0] == "geometric" && (numbers.size() == 1 || numbers.size() == 2)) {
    d = {.kind = Kind::kGeometric, .a = numbers[0]};
    if (numbers.size() == 2) d.most = numbers[1];
  } else {
    return wrong();
  }
  return d;
}

}  // namespace sensorium
