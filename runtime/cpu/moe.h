// A mixture of experts: the router's choice and the chosen experts' MLPs. Shapes as in backend.h.
#pragma once

#include <span>

#include "runtime/backend/backend.h"
#include "runtime/cpu/packed_linear.h"

namespace sensorium {

// Softmax over the experts in float32 (minimum of roundings: maximum subtracted, one division),
// then the k highest, highest first, the lowest id on ties; not renormalised. ids [tokens, k]
// int32, weights [tokens, k] float32, logits [tokens, experts] float32.
void RunMoeRoute(ThreadPool& pool, TensorView ids, TensorView weights, ConstTensorView logits);

// y += sum over a row's experts, in ascending id, of weight * down(silu(gate x) * up x).
// y float32 [tokens, hidden]; x float32 or bfloat16 [tokens, hidden]; ids int32 and weights float32
// [tokens, k]. Rows are grouped by expert, so each expert's weights are read once. The product
// silu(gate) * up is rounded to the storage type where `down` reads it, nowhere before.
// REQUIRES: the experts' weights are PackedLinear of one storage; a row's ids are distinct.
void RunAddMoe(ThreadPool& pool, GemmScratch& scratch, TensorView y, ConstTensorView x,
               ConstTensorView ids, ConstTensorView weights,
               std::span<const ExpertWeights> experts);

}  // namespace sensorium
