#include "runtime/cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/cpu/gemm.h"
#include "runtime/cpu/gemm_kernels.h"

namespace sensorium {
namespace {

const PackedLinear& Packed(const std::unique_ptr<LinearWeight>& w) {
  const auto* packed = dynamic_cast<const PackedLinear*>(w.get());
  CHECK(packed != nullptr) << "an expert's weights were packed by another backend";
  return *packed;
}

}  // namespace

void RunMoeRoute(ThreadPool& pool, TensorView ids, TensorView weights, ConstTensorView logits) {
  const int64_t tokens = logits.rows(), experts = logits.dim(1), k = ids.dim(1);
  CHECK(ids.dtype() == DType::kInt32 && weights.dtype() == DType::kFloat32 &&
        logits.dtype() == DType::kFloat32);
  CHECK(ids.SameShape(weights) && ids.rows() == tokens && k >= 1 && k <= experts);
  pool.ParallelFor(tokens, [&](int64_t t) {
    const float* in = logits.as<const float>() + t * logits.row_stride();
    int32_t* id = ids.as<int32_t>() + t * ids.row_stride();
    float* weight = weights.as<float>() + t * weights.row_stride();
    // Insertion into the k best so far; strictly greater, so the lower id wins a tie. A NaN is
    // never greater, so ids are always valid.
    for (int64_t have = 0, e = 0; e < experts; ++e) {
      int64_t at = have;
      while (at > 0 && in[e] > in[id[at - 1]]) --at;
      if (at == k) continue;
      have = std::min(have + 1, k);
      for (int64_t i = have - 1; i > at; --i) id[i] = id[i - 1];
      id[at] = static_cast<int32_t>(e);
    }
    const float max = in[id[0]];
    float sum = 0;
    for (int64_t e = 0; e < experts; ++e) sum += std::exp(in[e] - max);
    for (int64_t i = 0; i < k; ++i) weight[i] = std::exp(in[id[i]] - max) / sum;
  });
}

void RunAddMoe(ThreadPool& pool, GemmScratch& scratch, TensorView y, ConstTensorView x,
               ConstTensorView ids, ConstTensorView weights,
               std::span<const ExpertWeights> experts) {
  const int64_t tokens = x.rows(), hidden = x.dim(1), k = ids.dim(1);
  const int64_t num_experts = static_cast<int64_t>(experts.size());
  CHECK(y.SameShape(x) && y.dtype() == DType::kFloat32);
  CHECK(ids.SameShape(weights) && ids.rows() == tokens);
  CHECK(ids.dtype() == DType::kInt32 && weights.dtype() == DType::kFloat32 && num_experts > 0);
  if (tokens == 0 || k == 0) return;
  const PackedLinear& any_down = Packed(experts[0].down);
  const int64_t ffn = any_down.in_features();
  const GemmKernels& kernels = GemmKernelsFor(any_down.level());

  // Counting sort of the (token, choice) pairs by expert; stable, so tokens ascend within one.
  const int64_t pairs = tokens * k;
  int64_t* begin = reinterpret_cast<int64_t*>(
      scratch.order.Reserve((num_experts + 1) * sizeof(int64_t) + 2 * pairs * sizeof(int32_t)));
  int32_t* token_of = reinterpret_cast<int32_t*>(begin + num_experts + 1);  // [pairs] sorted
  int32_t* place_of = token_of + pairs;  // [tokens, k]: where a pair's row is
  std::fill_n(begin, num_experts + 1, 0);
  const auto id = [&](int64_t t, int64_t i) { return ids.as<const int32_t>()[t * ids.row_stride() + i]; };
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      CHECK(id(t, i) >= 0 && id(t, i) < num_experts) << id(t, i);
      ++begin[id(t, i) + 1];
    }
  }
  for (int64_t e = 0; e < num_experts; ++e) begin[e + 1] += begin[e];
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t place = begin[id(t, i)]++;  // begin[e] moves on to begin[e + 1]
      token_of[place] = static_cast<int32_t>(t);
      place_of[t * k + i] = static_cast<int32_t>(place);
    }
  }

  const int64_t x_bytes = static_cast<int64_t>(SizeOf(x.dtype()));
  std::byte* out = scratch.expert_out.Reserve(pairs * hidden * sizeof(float));
  // As if every token chose the same expert: what is taken depends on their number alone.
  std::byte* gathered = scratch.gathered.Reserve(tokens * hidden * x_bytes);
  std::byte* up = scratch.hidden.Reserve(tokens * 2 * ffn * sizeof(float));  // [rows, up | gate]
  scratch.activations.Reserve(
      tokens * std::max(SpreadStride(InputRowBytes(Packed(experts[0].up_gate))),
                        SpreadStride(InputRowBytes(any_down))));
  for (int64_t e = 0, first = 0; e < num_experts; ++e) {
    const int64_t rows = begin[e] - first;
    if (rows == 0) continue;
    const PackedLinear& up_gate = Packed(experts[e].up_gate);
    const PackedLinear& down = Packed(experts[e].down);
    CHECK(up_gate.in_features() == hidden && up_gate.out_features() == 2 * ffn &&
          down.in_features() == ffn && down.out_features() == hidden);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(gathered + r * hidden * x_bytes,
                  x.bytes() + token_of[first + r] * x.row_stride() * x_bytes, hidden * x_bytes);
    }
    const TensorView product(up, DType::kFloat32, {rows, 2 * ffn});
    RunLinear(up_gate, pool, scratch, product, {gathered, x.dtype(), {rows, hidden}},
              Activation::kNone, /*add=*/false);
    pool.ParallelFor(rows, [&](int64_t r) {  // over the place of up
      float* row = product.as<float>() + r * 2 * ffn;
      kernels.silu_mul(row, row, row + ffn, ffn);
    });
    RunLinear(down, pool, scratch,
              {out + first * hidden * static_cast<int64_t>(sizeof(float)),
               DType::kFloat32,
               {rows, hidden}},
              product.Columns(0, ffn), Activation::kNone, /*add=*/false);
    first = begin[e];
  }

  // Each token's experts in ascending id: places are sorted by expert, so ascending places.
  pool.ParallelFor(tokens, [&](int64_t t) {
    float* row = y.as<float>() + t * y.row_stride();
    const float* weight = weights.as<const float>() + t * weights.row_stride();
    int64_t last = -1;
    for (int64_t n = 0; n < k; ++n) {
      int64_t next = -1;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t place = place_of[t * k + i];
        if (place > last && (next < 0 || place < place_of[t * k + next])) next = i;
      }
      last = place_of[t * k + next];
      const float* from = reinterpret_cast<const float*>(out) + last * hidden;
      for (int64_t i = 0; i < hidden; ++i) row[i] += weight[next] * from[i];
    }
  });
}

}  // namespace sensorium
