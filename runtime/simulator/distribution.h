// Numbers drawn from distributions: the same on every machine.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace sensorium {

// SplitMix64 (Steele et al. 2014) and what is made of it: the C++ library's distributions differ
// between implementations.
class SimulationRandom {
 public:
  explicit SimulationRandom(uint64_t seed) : state_(seed) {}
  uint64_t Bits();
  double Uniform();      // [0, 1)
  double Exponential();  // of mean 1
  double Normal();       // Box-Muller
 private:
  uint64_t state_;
};

// Of whole numbers of at least 0.
struct Distribution {
  enum class Kind : uint8_t { kConstant, kUniform, kLognormal, kGeometric };
  Kind kind = Kind::kConstant;
  double a = 0;       // the constant; the least; the median; the mean
  double b = 0;       // -; the most, included; sigma of the logarithm; -
  double most = 1e9;  // of lognormal and geometric: cut to it

  int64_t Draw(SimulationRandom& random) const;
  double Mean() const;  // without the cut

  // "120", "uniform:1:13", "lognormal:200:0.8", "geometric:64"; the last two may end in ":most".
  static absl::StatusOr<Distribution> Parse(const std::string& text);
};

}  // namespace sensorium
