// Keys and values into the panels that the matrix kernels read (packed_linear.h): Q K^T is a
// product with 32 keys as outputs, P V one with 32 dims as outputs.
//
// Traffic     each element read and written once, keys with a stride of 128 bytes.
#include "runtime/cpu/simd.h"

namespace sensorium::SENSORIUM_CPU_LEVEL {
namespace {

typedef uint16_t Half __attribute__((may_alias));
typedef uint32_t Word __attribute__((may_alias));

template <DType T>
inline uint32_t FloatBits(const char* p, int64_t i) {
  if constexpr (T == kFloat32) return static_cast<const UintAny*>(static_cast<const void*>(p))[i];
  return static_cast<uint32_t>(reinterpret_cast<const Half*>(p)[i]) << 16;
}

template <DType T>
inline uint16_t BFloat16Bits(const char* p, int64_t i) {
  if constexpr (T == kBFloat16) return reinterpret_cast<const Half*>(p)[i];
  const uint32_t bits = FloatBits<T>(p, i);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace

void PackKeys(void* panel, DType panel_type, int64_t first_lane, const void* k, DType k_type,
              int64_t k_stride, int64_t n, int64_t dims) {
  WithType(k_type, [&]<DType K>() {
    const char* rows = static_cast<const char*>(k);
    const int64_t stride = k_stride * SizeOf(K);
    Word* out = static_cast<Word*>(panel) + first_lane;
    if (panel_type == kFloat32) {
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t i = 0; i < n; ++i) out[d * 32 + i] = FloatBits<K>(rows + i * stride, d);
      return;
    }
    for (int64_t d = 0; d < dims; d += 2) {
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t low = BFloat16Bits<K>(rows + i * stride, d);
        const uint32_t high = d + 1 < dims ? BFloat16Bits<K>(rows + i * stride, d + 1) : 0;
        out[d / 2 * 32 + i] = low | high << 16;
      }
    }
  });
}

void PackValues(void* panels, int64_t panel_stride, DType panel_type, int64_t first_key,
                const void* v, DType v_type, int64_t v_stride, int64_t n, int64_t dims) {
  WithType(v_type, [&]<DType V>() {
    for (int64_t begin = 0; begin < dims; begin += 32) {
      char* panel = static_cast<char*>(panels) + begin / 32 * panel_stride;
      const int64_t width = dims - begin < 32 ? dims - begin : 32;
      for (int64_t i = 0; i < n; ++i) {
        const char* row = static_cast<const char*>(v) + (i * v_stride + begin) * SizeOf(V);
        const int64_t key = first_key + i;
        if (panel_type == kFloat32) {
          Word* out = reinterpret_cast<Word*>(panel) + key * 32;
          for (int64_t d = 0; d < width; ++d) out[d] = FloatBits<V>(row, d);
        } else {
          Half* out = reinterpret_cast<Half*>(panel) + key / 2 * 64 + key % 2;
          for (int64_t d = 0; d < width; ++d) out[2 * d] = BFloat16Bits<V>(row, d);
        }
      }
    }
  });
}

}  // namespace sensorium::SENSORIUM_CPU_LEVEL
