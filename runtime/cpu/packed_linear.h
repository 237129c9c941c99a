// y = act(x W^T + b): the weights of a linear, packed once at load, and the product itself.
//
// Layout. Outputs are cut into panels of 32 (the last one padded with zeros). A panel is a sequence
// of steps of 128 bytes: for float32 one input of all 32 outputs, for bfloat16 a pair of inputs
// (2k, 2k+1) of all 32 outputs, interleaved. A kernel thus reads a panel front to back in whole
// cache lines, whatever the number of rows: one layout for prefill and decode.
//
// Batch invariance. Each (row, output) is one chain of multiply-adds over the inputs in ascending
// order, kept in float32, whichever kernel runs it; work is split over outputs first and rows
// second, never over inputs. So a row's result is the same bits with any neighbours, at any place.
//
// Numerics. float32 storage: float32 products and sums. bfloat16 storage: x is rounded to bfloat16
// (nearest, ties to even), products are exact, sums float32. Level avx512_bf16 adds a pair's two
// products in vdpbf16ps (which flushes denormals); the other levels widen the weights to float32
// and add the even input's product first, so that levels differ in the last bits of a sum only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "runtime/backend/backend.h"
#include "runtime/cpu/aligned_buffer.h"
#include "runtime/cpu/cpu_level.h"
#include "runtime/cpu/thread_pool.h"
#include "runtime/cpu/weight_slabs.h"

namespace sensorium {

class PackedLinear : public LinearWeight {
 public:
  static constexpr int64_t kPanel = 32;  // outputs per panel

  // Stacks `parts` along the outputs; sources are float32, bfloat16 or float16 with any row stride
  // and alignment (they are read straight from the mapped file, each byte once) and are not kept.
  // REQUIRES: storage float32 or bfloat16; equal in_features.
  static std::unique_ptr<PackedLinear> Pack(std::span<const LinearSource> parts, DType storage,
                                            CpuLevel level, ThreadPool& pool, WeightSlabs& slabs);
  // A convolution's weight [out, in, kernel] for RunConv1d (conv1d.h). Inputs are ordered tap by
  // tap, each tap padded to whole steps.
  static std::unique_ptr<PackedLinear> PackConv1d(ConstTensorView weight, ConstTensorView bias,
                                                  DType storage, CpuLevel level, ThreadPool& pool,
                                                  WeightSlabs& slabs);

  int64_t in_features() const override { return in_; }  // of one tap
  int64_t out_features() const override { return out_; }
  size_t size_bytes() const override { return num_panels() * panel_bytes() + bias_.size_bytes(); }

  int64_t taps() const { return taps_; }  // 1, or a convolution's kernel width
  DType storage() const { return storage_; }
  CpuLevel level() const { return level_; }

  // What the kernels read.
  int64_t num_panels() const { return (out_ + kPanel - 1) / kPanel; }
  int64_t steps_per_tap() const { return storage_ == DType::kBFloat16 ? (in_ + 1) / 2 : in_; }
  int64_t panel_bytes() const { return taps_ * steps_per_tap() * 128; }
  const std::byte* panel(int64_t p) const { return panels_.get() + p * panel_bytes(); }
  // float32 [num_panels * 32]; zeros where there is no bias.
  const float* bias() const { return reinterpret_cast<const float*>(bias_.data()); }

 private:
  PackedLinear() = default;
  static std::unique_ptr<PackedLinear> PackTaps(std::span<const LinearSource> parts, int64_t taps,
                                                DType storage, CpuLevel level, ThreadPool& pool,
                                                WeightSlabs& slabs);

  // Constant after Pack.
  int64_t in_ = 0, out_ = 0, taps_ = 1;
  DType storage_ = DType::kFloat32;
  CpuLevel level_ = CpuLevel::kPortable;
  std::shared_ptr<std::byte> panels_;  // [num_panels, taps, steps_per_tap, 128 bytes]
  AlignedBuffer bias_;
};

// Buffers that the matrix products need beside their operands. Each grows to the largest call it
// has seen and stays. One caller at a time.
struct GemmScratch {
  AlignedBuffer activations;  // x in the compute type, rows padded against cache set conflicts
  AlignedBuffer sums;         // float32 partial sums, one region per thread
  AlignedBuffer gathered;     // AddMoe: rows grouped by expert
  AlignedBuffer hidden;       // AddMoe: up and gate, then their product
  AlignedBuffer expert_out;   // AddMoe: float32 [tokens * k, hidden]
  AlignedBuffer order;        // AddMoe: which row goes where
};

// y = act(x W^T + b), or y += x W^T + b when `add`. x [rows, in], y [rows, out], each float32 or
// bfloat16 with any row stride; x and y must not overlap.
// REQUIRES: w.taps() == 1; with `add`, y float32 and no activation.
void RunLinear(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
               ConstTensorView x, Activation activation, bool add);

}  // namespace sensorium
