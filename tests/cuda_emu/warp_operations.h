// The operations of a whole warp that are more than an exchange: ldmatrix, mma, a vote.
#pragma once

#include <cstdint>

#include "tests/cuda_emu/emulator.h"

namespace cuda_emu {

// The values' logical or.
bool AnyLane(bool value);

// Registers of ldmatrix.x4 from the rows that the lanes bring, low and high 8 bytes each.
void CombineRows(uint32_t (&r)[4], uint64_t low, uint64_t high, bool transposed);

// ldmatrix.x4 (PTX ISA, 9.7.14.5.15). The row is read here, as part of the kernel, where the
// sanitizers look.
inline void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed) {
  using Word [[gnu::may_alias]] = uint64_t;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) Fail("ldmatrix: unaligned row");
  const auto* words = static_cast<const Word*>(row);
  CombineRows(r, words[0], words[1], transposed);
}

// c += a b of mma.m16n8k16, bfloat16 operands.
void MultiplyMatrices(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace cuda_emu
