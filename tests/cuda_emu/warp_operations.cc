#include "tests/cuda_emu/warp_operations.h"

#include <bit>

namespace cuda_emu {
namespace {

// What lane brings to slot `lane` of a rendezvous.
template <typename T>
T FromSlot(const std::byte* in, int lane) {
  T value;
  std::memcpy(&value, in + lane * kSlotBytes, sizeof(T));
  return value;
}
template <typename T>
void ToSlot(std::byte* out, int lane, const T& value) {
  std::memcpy(out + lane * kSlotBytes, &value, sizeof(T));
}

struct Row {
  uint16_t of[8];
};
struct Fragment {
  uint32_t r[4];
};
struct MmaOperands {
  float c[4];
  uint32_t a[4], b[2];
};
struct MmaResult {
  float c[4];
};
static_assert(sizeof(MmaOperands) <= kSlotBytes);

void Any(const std::byte* in, std::byte* out) {
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any |= FromSlot<bool>(in, lane);
  for (int lane = 0; lane < 32; ++lane) ToSlot(out, lane, any);
}

// Both forms of ldmatrix.
template <bool kTranspose>
void LoadRows(const std::byte* in, std::byte* out) {
  Row rows[32];
  for (int i = 0; i < 32; ++i) rows[i] = FromSlot<Row>(in, i);
  for (int lane = 0; lane < 32; ++lane) {
    Fragment f;
    for (int i = 0; i < 4; ++i) {
      const int g = lane / 4, t = lane % 4 * 2;
      const uint16_t low = kTranspose ? rows[8 * i + t].of[g] : rows[8 * i + g].of[t];
      const uint16_t high = kTranspose ? rows[8 * i + t + 1].of[g] : rows[8 * i + g].of[t + 1];
      f.r[i] = low | uint32_t{high} << 16;
    }
    ToSlot(out, lane, f);
  }
}

float LowBf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float HighBf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

// In ascending k onto c; the hardware's order within one instruction is its own, but it too is the
// same for every row.
void Mma16816(const std::byte* in, std::byte* out) {
  float a[16][16], b[16][8], c[16][8];  // b [k, n]
  for (int lane = 0; lane < 32; ++lane) {
    const auto o = FromSlot<MmaOperands>(in, lane);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = t + i / 2 * 8;
      a[row][column] = LowBf16(o.a[i]);
      a[row][column + 1] = HighBf16(o.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[t + i * 8][g] = LowBf16(o.b[i]);
      b[t + i * 8 + 1][g] = HighBf16(o.b[i]);
    }
    c[g][t] = o.c[0], c[g][t + 1] = o.c[1], c[g + 8][t] = o.c[2], c[g + 8][t + 1] = o.c[3];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4 * 2;
    ToSlot(out, lane, MmaResult{{c[g][t], c[g][t + 1], c[g + 8][t], c[g + 8][t + 1]}});
  }
}

}  // namespace

bool AnyLane(bool value) {
  return FromSlot<bool>(CombineSlots("__any_sync", &value, sizeof(value), Any), 0);
}

void CombineRows(uint32_t (&r)[4], uint64_t low, uint64_t high, bool transposed) {
  const uint64_t row[2] = {low, high};
  std::memcpy(r,
              transposed ? CombineSlots("ldmatrix.trans", row, sizeof(row), LoadRows<true>)
                         : CombineSlots("ldmatrix", row, sizeof(row), LoadRows<false>),
              sizeof(r));
}

void MultiplyMatrices(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const MmaOperands o = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  std::memcpy(c, CombineSlots("mma", &o, sizeof(o), Mma16816), sizeof(c));
}

}  // namespace cuda_emu
