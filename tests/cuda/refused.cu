// What must not compile with the flags of cuda/: one kernel for each macro.
__global__ void refused_kernel(float* y, const float* x, int n) {
#if defined(SPILLS)  // more live values than registers
  float v[400];
#pragma unroll
  for (int i = 0; i < 400; ++i) v[i] = x[i * n];
#pragma unroll
  for (int i = 0; i < 400; ++i) y[i * n] = v[399 - i] * v[i * 7 % 400];
#elif defined(LOCAL_ARRAY)  // an array of registers cannot be indexed
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[i];
  for (int i = 0; i < n; ++i) v[i * n % 64] += v[i % 64];
  for (int i = 0; i < 64; ++i) y[i] = v[i];
#elif defined(WARNS)
  int unused = n;
#endif
}
