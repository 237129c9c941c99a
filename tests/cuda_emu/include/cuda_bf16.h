// Stands in for the toolkit's header of this name: bfloat16 as a pair of bytes, its conversions.
#pragma once

#include <stdint.h>

#include <bit>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h.bits) << 16);
}
// Nearest, ties to even; every NaN becomes the same one, as on the device.
inline __nv_bfloat16 __float2bfloat16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if (f != f) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16(x), __float2bfloat16(y)};
}
