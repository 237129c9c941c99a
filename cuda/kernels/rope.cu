// rope.cu: rotates the pairs (i, i + half) of each head of one token, in place.
//
// Source    Su et al. 2021 (arXiv:2104.09864), eq. 34, in the half-rotation form of GPT-NeoX.
// Shapes    x [tokens, heads, 2 * half], any token stride, float or bfloat16; positions [tokens]
//           int32; inv_freq [half] float.
// Launch    grid tokens, up to 128 threads: thread i computes its angles' sines once for all heads.
// Traffic   x read and written once. Memory-bound.
// Numerics  the angle is rounded to fp32 first, as the published models do. Its sine and cosine:
//           the angle less the nearest multiple of pi/2 in double (sinf's own reduction of large
//           angles spills to local memory), then polynomials on [-pi/4, pi/4] from Cephes' sinf.c
//           (Moshier), within 2 ulp. Products and their sum in fp32.
#include "cuda/kernels/rope.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

__device__ __forceinline__ void SinCos(float angle, float* sine, float* cosine) {
  constexpr double kTwoOverPi = 0.63661977236758134308, kPiOverTwo = 1.57079632679489661923;
  // |angle| < 2^31 positions: the quotient fits an int, and one multiple of a double's pi/2 is
  // within 2^-22 of the angle's own ulp up to a million radians.
  const int quadrant = __double2int_rn(angle * kTwoOverPi);
  const float r = static_cast<float>(angle - quadrant * kPiOverTwo);
  const float z = r * r;
  const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
  const float c =
      1.f - 0.5f * z +
      z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const bool swapped = quadrant & 1;
  *sine = swapped ? c : s;
  *cosine = swapped ? s : c;
  if (quadrant & 2) *sine = -*sine;
  if ((quadrant + 1) & 2) *cosine = -*cosine;
}

template <typename T>
__global__ void rope_kernel(T* x, int64_t stride, const int32_t* positions, const float* inv_freq,
                            int64_t heads, int64_t half) {
  x += blockIdx.x * stride;
  const float position = static_cast<float>(positions[blockIdx.x]);
  for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
    float sine, cosine;
    SinCos(position * inv_freq[i], &sine, &cosine);
    for (int64_t h = 0; h < heads; ++h) {
      T* low = x + h * 2 * half + i;
      T* high = low + half;
      const float a = ToFloat(*low), b = ToFloat(*high);
      *low = FromFloat<T>(a * cosine - b * sine);
      *high = FromFloat<T>(b * cosine + a * sine);
    }
  }
}

}  // namespace

void Rope(Rows x, const int32_t* positions, const float* inv_freq, int64_t tokens, int64_t heads,
          int64_t half, Queue& queue) {
  if (tokens == 0 || heads == 0 || half == 0) return;
  WithType(x.type, [&]<typename T>() {
    launch(rope_kernel<T>, static_cast<unsigned>(tokens), ThreadsFor(half, 128), 0, queue,
           static_cast<T*>(x.data), x.stride, positions, inv_freq, heads, half);
  });
}

}  // namespace sensorium::cuda
