// The truth of the matrix products, in double precision. Shapes as in runtime/backend/backend.h.
#pragma once

#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "tests/reference/array.h"

namespace sensorium::reference {

double Activate(Activation a, double v);
// y = act(x W^T + b): x [tokens, in], weight [out, in], bias [1, out].
Array Linear(const Array& x, const Array& weight, const Array& bias, Activation activation);
// weight [out, in * kernel], its columns in the checkpoint's order (in, kernel).
Array Conv1d(const Array& x, const Array& weight, const Array& bias, int64_t seqs, int64_t kernel,
             int64_t stride, Activation activation);

struct Route {
  std::vector<int32_t> ids;     // [tokens, k]
  std::vector<double> weights;  // [tokens, k]
};
Route MoeRoute(const Array& logits, int64_t k);

struct Expert {
  Array up_gate;  // [2 * ffn, hidden]: up above gate
  Array down;     // [hidden, ffn]
};
// y + sum over a row's k experts of weight * down(silu(gate x) * up x).
Array AddMoe(const Array& y, const Array& x, std::span<const int32_t> ids,
             std::span<const double> weights, std::span<const Expert> experts);

}  // namespace sensorium::reference
