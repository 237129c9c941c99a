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
  cuda_emu::AsyncCopy(shared, global, static_cast<size_t>(source_bytes));
}
inline void cp_async_commit() { cuda_emu::AsyncCommit(); }
template <int kLeft>
void cp_async_wait() {
  cuda_emu::AsyncWait(kLeft);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  cuda_emu::LoadMatrices(r, row, /*transposed=*/false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  cuda_emu::LoadMatrices(r, row, /*transposed=*/true);
}
inline void mma_bf16_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cuda_emu::MultiplyMatrices(c, a, b0, b1);
}

#endif

}  // namespace sensorium::cuda
