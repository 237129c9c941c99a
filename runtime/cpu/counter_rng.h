// Random numbers that are a function of where they are used, not of what was drawn before: the same
// (seed, stream, position) gives the same number in any batch, after any preemption, on any device.
//
// Source    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011:
//           Philox 4x32 with 10 rounds, checked against the paper's known-answer vectors.
#pragma once

#include <array>
#include <cstdint>

namespace sensorium {

// One block of Philox 4x32-10: a keyed bijection of the 128-bit counter.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  constexpr uint64_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;    // table 2 of the paper
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;  // golden ratio, sqrt(3) - 1
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMul0 * counter[0], p1 = kMul1 * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// In [0, 1), a multiple of 2^-24 so that every value is a float. Key: the seed. Counter: position
// in the low half, stream (which of a request's sequences) in the high half.
constexpr float Uniform(uint64_t seed, uint64_t stream, uint64_t position) {
  const auto block =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(block[0] >> 8) * 0x1p-24f;
}

}  // namespace sensorium
