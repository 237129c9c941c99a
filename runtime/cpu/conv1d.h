// Convolution over frames as a matrix product: Whisper's stem. No im2col: a tap's input rows are
// the activations shifted by that tap, so the product runs tap by tap over one zero-padded copy of
// x.
#pragma once

#include "runtime/backend/tensor.h"
#include "runtime/cpu/packed_linear.h"

namespace sensorium {

// y[s, f] = act(b + sum over taps t of W[:, :, t] x[s, f * stride + t - (kernel - 1) / 2]), rows
// outside the sequence being zeros. x [seqs * frames, in], y [seqs * frames_out, out], float32 or
// bfloat16, any row stride; frames_out = (frames - 1) / stride + 1. Batch invariant like RunLinear.
// REQUIRES: w from PackConv1d; stride >= 1.
void RunConv1d(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
               ConstTensorView x, int64_t seqs, int64_t stride, Activation activation);

}  // namespace sensorium
