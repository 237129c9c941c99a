#include "runtime/cpu/counter_rng.h"

#include <set>

#include "gtest/gtest.h"

namespace sensorium {
namespace {

// Table of known answers of the paper's own library (Random123, kat_vectors, philox4x32 10).
TEST(CounterRngTest, PhiloxGivesThePapersKnownAnswers) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRngTest, SeedStreamAndPositionEachMatter) {
  std::set<float> seen;
  for (uint64_t i : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    seen.insert(Uniform(7 + i, 3, 5));
    if (i) seen.insert(Uniform(7, 3 + i, 5));
    if (i) seen.insert(Uniform(7, 3, 5 + i));
  }
  EXPECT_EQ(seen.size(), 7u);
}

}  // namespace
}  // namespace sensorium
