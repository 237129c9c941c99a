// What an op has to move and to do at the least: its inputs once, its outputs once. Bytes of device
// memory and floating-point operations (a multiply-add is two), as the headers of cuda/kernels
// state them. Elements are `x`, `y` and `w` bytes wide: 4 for float, 2 for bfloat16.
#pragma once

namespace sensorium {

struct KernelCost {
  double bytes = 0, flops = 0;
  KernelCost& operator+=(const KernelCost& o) {
    bytes += o.bytes, flops += o.flops;
    return *this;
  }
  KernelCost operator*(double n) const { return {bytes * n, flops * n}; }
};

inline KernelCost ElementwiseCost(double elements, double bytes_each, double flops_each) {
  return {elements * bytes_each, elements * flops_each};
}
inline KernelCost RmsNormCost(double rows, double columns, double x, double y) {
  return {rows * columns * (x + y) + 4 * columns, 4 * rows * columns};
}
inline KernelCost LayerNormCost(double rows, double columns, double x, double y) {
  return {rows * columns * (x + y) + 8 * columns, 8 * rows * columns};
}
inline KernelCost SiluMulCost(double elements, double x, double y) {
  return ElementwiseCost(elements, 2 * x + y, 6);
}
inline KernelCost RopeCost(double tokens, double heads, double head_dim, double x) {
  return {tokens * heads * head_dim * 2 * x + 4 * tokens + 2 * head_dim,
          3 * tokens * heads * head_dim};
}
inline KernelCost StoreKvCost(double tokens, double kv_heads, double head_dim, double x, double y) {
  return {tokens * (2 * kv_heads * head_dim * (x + y) + 8), 0};
}
inline KernelCost LinearCost(double rows, double in, double out, double x, double y, double w) {
  return {in * out * w + 4 * out + rows * (in * x + out * y), 2 * rows * in * out};
}
// `seen`: keys that a query sees, summed over the queries of a head; `keys` lie in memory.
inline KernelCost AttentionCost(double queries, double keys, double seen, double heads,
                                double kv_heads, double head_dim, double x, double kv) {
  return {2 * queries * heads * head_dim * x + 2 * keys * kv_heads * head_dim * kv,
          4 * seen * heads * head_dim};
}
// Greedy: a maximum, and one exponential of each logit.
inline KernelCost ChooseTokensCost(double choices, double vocab) {
  return {choices * vocab * 4, choices * vocab * 3};
}

}  // namespace sensorium
