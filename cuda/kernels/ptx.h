// All inline PTX, as small functions. Every one has a body for the emulated device, so that the
// kernels above them are executed in CI. Names and operand orders follow the PTX ISA, 9.7.
//
// Fragment layouts of mma.m16n8k16 (PTX ISA, figures of 9.7.14.5.8), g = lane / 4, t = lane % 4:
//   a[0..3]  rows g, g + 8, g, g + 8; columns 2t, 2t + 1 (+ 8 for a[2], a[3])   [16, 16]
//   b[0..1]  rows (k) 2t, 2t + 1 (+ 8 for b[1]); column (n) g                   [16, 8]
//   c[0..3]  rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1            [16, 8]
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if !defined(__CUDACC__)
#include <bit>
#include <cstring>
#endif

namespace sensorium::cuda {

#if defined(__CUDACC__)

// 16 bytes from global to shared memory, the first `source_bytes` of them read, zeros behind.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int source_bytes) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global),
               "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Until at most kLeft of this thread's groups are pending. A barrier must follow before other
// threads read what landed.
template <int kLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i,
// 16-byte aligned. Register i holds row lane / 4, columns 2 (lane % 4) and + 1 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// The same matrices transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// c += a b, in float32.
__device__ __forceinline__ void mma_bf16_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

inline void cp_async_16(void* shared, const void* global, int source_bytes) {
  cuda_emu::AsyncCopy(shared, global, 16, static_cast<size_t>(source_bytes));
}
inline void cp_async_commit() { cuda_emu::AsyncCommit(); }
template <int kLeft>
void cp_async_wait() {
  cuda_emu::AsyncWait(kLeft);
}

namespace emulated {

constexpr uint32_t kWholeWarp = 0xffffffffu;

struct Fragment {
  uint32_t r[4];
};

// What lane brings to slot `lane` of a rendezvous.
template <typename T>
T FromSlot(const std::byte* in, int lane) {
  T value;
  std::memcpy(&value, in + lane * cuda_emu::kSlotBytes, sizeof(T));
  return value;
}
template <typename T>
void ToSlot(std::byte* out, int lane, const T& value) {
  std::memcpy(out + lane * cuda_emu::kSlotBytes, &value, sizeof(T));
}

// Both forms of ldmatrix, done by the lane that comes last.
template <bool kTranspose>
void LoadMatrices(const std::byte* in, std::byte* out) {
  const uint16_t* rows[32];
  for (int i = 0; i < 32; ++i) {
    rows[i] = FromSlot<const uint16_t*>(in, i);
    if (reinterpret_cast<uintptr_t>(rows[i]) % 16 != 0) cuda_emu::Fail("ldmatrix: unaligned row");
  }
  for (int lane = 0; lane < 32; ++lane) {
    Fragment f;
    for (int i = 0; i < 4; ++i) {
      const int g = lane / 4, t = lane % 4 * 2;
      const uint16_t low = kTranspose ? rows[8 * i + t][g] : rows[8 * i + g][t];
      const uint16_t high = kTranspose ? rows[8 * i + t + 1][g] : rows[8 * i + g][t + 1];
      f.r[i] = low | uint32_t{high} << 16;
    }
    ToSlot(out, lane, f);
  }
}

inline float LowBf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float HighBf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

struct MmaOperands {
  float c[4];
  uint32_t a[4], b[2];
};
struct MmaResult {
  float c[4];
};

// In ascending k onto c; the hardware's order within one instruction is its own, but it too is the
// same for every row.
inline void Mma16816(const std::byte* in, std::byte* out) {
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

}  // namespace emulated

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const auto f = cuda_emu::WarpCombine<const void*, emulated::Fragment>(
      emulated::kWholeWarp, "ldmatrix", row, emulated::LoadMatrices<false>);
  std::memcpy(r, f.r, sizeof(r));
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const auto f = cuda_emu::WarpCombine<const void*, emulated::Fragment>(
      emulated::kWholeWarp, "ldmatrix.trans", row, emulated::LoadMatrices<true>);
  std::memcpy(r, f.r, sizeof(r));
}

inline void mma_bf16_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const emulated::MmaOperands o = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto result = cuda_emu::WarpCombine<emulated::MmaOperands, emulated::MmaResult>(
      emulated::kWholeWarp, "mma", o, emulated::Mma16816);
  std::memcpy(c, result.c, sizeof(c));
}

#endif

}  // namespace sensorium::cuda
