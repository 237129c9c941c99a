// Attention without mask and cache: ViT and Whisper encoders, the image pooling.
//
// Source      Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
// Work        a task is one head of one sequence (or a part of its queries, where there are fewer
//             heads than threads like): it packs the head's K and V into panels that stay in L2,
//             then runs tiles of query rows over them.
// Traffic     q, k, v, y once; panels from L2 for each tile. Bound by the multiply-adds and e^x.
#include <algorithm>

#include "runtime/cpu/attention_rows.h"
#include "runtime/cpu/cpu_backend.h"

namespace sensorium {

void CpuBackend::DoEncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k,
                                    ConstTensorView v, int64_t seqs, float scale) {
  const int64_t heads = q.dim(1), dims = q.dim(2);
  const int64_t q_len = q.rows() / seqs, kv_len = k.rows() / seqs;
  const AttentionRows attention(level_, dtype(), q.dtype(), y.dtype(), dims, scale);
  const int64_t tiles = (q_len + attention.max_rows() - 1) / attention.max_rows();
  const KvPanels panels = {dtype(), (kv_len + KvPanels::kLanes - 1) / KvPanels::kLanes * 32, dims};
  const size_t panel_bytes = panels.size_bytes();
  const size_t scratch_bytes = panel_bytes + attention.ScratchBytes(kv_len);
  // Some tasks for each thread, so that they end level; each packs K and V anew, which costs a few
  // percent of a part of 8 tiles.
  const int64_t wanted = pool_.threads() == 1 ? 1 : int64_t{8} * pool_.threads();
  const int64_t parts = std::clamp<int64_t>(wanted / (seqs * heads), 1, (tiles + 7) / 8);

  for (int w = 0; w < pool_.threads(); ++w) worker_scratch_[w].Reserve(scratch_bytes);
  pool_.ParallelForWorkers(seqs * heads * parts, [&](int64_t task, int worker) {
    const int64_t part = task % parts, head = task / parts % heads, s = task / parts / heads;
    const auto at = [&](const auto& x, int64_t row) {
      return x.bytes() +
             (row * x.row_stride() + head * dims) * static_cast<int64_t>(SizeOf(x.dtype()));
    };
    std::byte* packed = worker_scratch_[worker].data();
    for (int64_t first = 0; first < kv_len; first += KvPanels::kLanes) {
      kernels_.pack_keys(packed + first / KvPanels::kLanes * panels.key_panel_bytes(), dtype(), 0,
                         at(k, s * kv_len + first), k.dtype(), k.row_stride(),
                         std::min(KvPanels::kLanes, kv_len - first), dims);
    }
    kernels_.pack_values(packed + panels.values_offset(), panels.value_panel_bytes(), dtype(), 0,
                         at(v, s * kv_len), v.dtype(), v.row_stride(), kv_len, dims);
    const KvHead keys = {
        .base = packed, .table = nullptr, .block_stride_bytes = 0, .panels = panels};

    for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
      QueryRow rows[kGemmMaxRows];
      int count = 0;
      for (int64_t i = q_len * tile / tiles; i < q_len * (tile + 1) / tiles; ++i) {
        rows[count++] = {.q = at(q, s * q_len + i), .y = at(y, s * q_len + i), .limit = kv_len};
      }
      attention.Run(keys, {rows, static_cast<size_t>(count)}, packed + panel_bytes);
    }
  });
}

}  // namespace sensorium
