#include "benchmarks/machine_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sensorium {
namespace {

double Seconds(const auto& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Loops of independent multiply-adds: as many chains as latency times units, operands in registers.
// The empty asm keeps the sums, and so the work, alive.
using Loop = void (*)(int64_t iterations);
typedef float Float4 __attribute__((vector_size(16)));

constexpr int kChains512 = 24, kChains256 = 12, kChains128 = 8;

void PortableLoop(int64_t iterations) {
  Float4 sum[kChains128] = {}, x = {1, 1, 1, 1};
  asm("" : "+x"(x));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains128; ++j) {
      Float4 product = x * x;
      asm("" : "+x"(product));  // else it is computed once
      sum[j] += product;
    }
  }
  for (Float4& s : sum) asm volatile("" : : "x"(s));
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void Avx2Loop(int64_t iterations) {
  __m256 sum[kChains256], x = _mm256_set1_ps(1e-9f);
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains256; ++j) sum[j] = _mm256_fmadd_ps(x, x, sum[j]);
  }
  for (__m256& s : sum) asm volatile("" : : "x"(s));
}

__attribute__((target("avx512f"))) void Avx512Loop(int64_t iterations) {
  __m512 sum[kChains512], x = _mm512_set1_ps(1e-9f);
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains512; ++j) sum[j] = _mm512_fmadd_ps(x, x, sum[j]);
  }
  for (__m512& s : sum) asm volatile("" : : "v"(s));
}

__attribute__((target("avx512f,avx512bf16"))) void Avx512Bf16Loop(int64_t iterations) {
  __m512 sum[kChains512];
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3080);  // 2^-30
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains512; ++j) sum[j] = _mm512_dpbf16_ps(sum[j], x, x);
  }
  for (__m512& s : sum) asm volatile("" : : "v"(s));
}
#endif

struct PeakLoop {
  Loop run;
  double operations;  // per iteration
};

PeakLoop LoopOf(CpuLevel level, DType storage) {
#if defined(__x86_64__)
  if (level == CpuLevel::kAvx512Bf16 && storage == DType::kBFloat16) {
    return {Avx512Bf16Loop, kChains512 * 32 * 2.0};
  }
  if (level >= CpuLevel::kAvx512) return {Avx512Loop, kChains512 * 16 * 2.0};
  if (level == CpuLevel::kAvx2) return {Avx2Loop, kChains256 * 8 * 2.0};
#endif
  return {PortableLoop, kChains128 * 4 * 2.0};
}

// Reads `size_bytes` (a multiple of 64) front to back.
void ReadChunk(const std::byte* p, size_t size_bytes) {
  typedef uint64_t U64x2 __attribute__((vector_size(16), may_alias));
  U64x2 sum[4] = {};
  for (size_t i = 0; i < size_bytes; i += 64) {
    __builtin_prefetch(p + i + 2048);
    for (size_t k = 0; k < 4; ++k) sum[k] += *reinterpret_cast<const U64x2*>(p + i + k * 16);
  }
  for (U64x2& s : sum) asm volatile("" : : "x"(s));
}

}  // namespace

double PeakGflops(ThreadPool& pool, CpuLevel level, DType storage) {
  const PeakLoop loop = LoopOf(level, storage);
  int64_t iterations = 10000;
  double best = 0;
  for (int run = 0; run < 8;) {
    const double seconds =
        Seconds([&] { pool.ParallelFor(pool.threads(), [&](int64_t) { loop.run(iterations); }); });
    if (seconds < 0.008) {  // too short to trust; it also wakes threads and clocks
      iterations *= 2;
      continue;
    }
    best = std::max(best, loop.operations * iterations * pool.threads() / seconds / 1e9);
    ++run;
  }
  return best;
}

double ReadBandwidth(ThreadPool& pool, const std::byte* buffer, size_t size_bytes) {
  constexpr size_t kChunk = size_t{1} << 20;
  const size_t chunks = size_bytes / kChunk;
  const double seconds = Seconds([&] {
    pool.ParallelFor(chunks, [&](int64_t c) { ReadChunk(buffer + c * kChunk, kChunk); });
  });
  return chunks * kChunk / seconds / 1e9;
}

}  // namespace sensorium
