// Attention over the KV cache, for prefill chunks and decode rows of many sequences at once.
//
// Source      Vaswani et al. 2017 (arXiv:1706.03762), eq. 1; blocks as in Kwon et al. 2023
//             (arXiv:2309.06180); grouped queries as in Ainslie et al. 2023 (arXiv:2305.13245).
// Work        a task is a tile of query rows of one sequence and kv head. The query heads of a kv
//             head are rows of one tile, so that its keys and values are read once for all of them.
// Traffic     a decode row reads its sequence's K and V once: bound by memory. A prefill chunk
// reads
//             them from L2 for each tile of rows: bound by the multiply-adds.
#include <algorithm>

#include "runtime/cpu/attention_rows.h"
#include "runtime/cpu/cpu_backend.h"

namespace sensorium {

void CpuBackend::DoPagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv,
                                  int32_t layer, const AttentionBatch& batch, float scale,
                                  bool causal) {
  const KvLayout& layout = kv.layout;
  const int64_t dims = layout.head_dim, group = q.dim(1) / layout.kv_heads;
  const AttentionRows attention(level_, dtype(), q.dtype(), y.dtype(), dims, scale);
  const int64_t max_rows = attention.max_rows();
  const int32_t seqs = batch.seqs();

  // first_task[s]: a sequence has kv_heads * tiles tasks, the tiles of one kv head side by side.
  auto* first_task = reinterpret_cast<int64_t*>(tiles_.Reserve((seqs + 1) * sizeof(int64_t)));
  const auto rows_of = [&](int32_t s) {
    return (batch.query_start[s + 1] - batch.query_start[s]) * group;
  };
  first_task[0] = 0;
  int64_t longest = 0;
  for (int32_t s = 0; s < seqs; ++s) {
    const int64_t tiles = (rows_of(s) + max_rows - 1) / max_rows;
    first_task[s + 1] = first_task[s] + tiles * layout.kv_heads;
    if (tiles > 0) longest = std::max<int64_t>(longest, batch.context_len[s]);
  }
  const size_t scratch_bytes = attention.ScratchBytes(longest);
  // Here and not by the threads: who has a task this time is chance.
  for (int w = 0; w < pool_.threads(); ++w) worker_scratch_[w].Reserve(scratch_bytes);

  pool_.ParallelForWorkers(first_task[seqs], [&](int64_t task, int worker) {
    const auto s = static_cast<int32_t>(std::upper_bound(first_task, first_task + seqs + 1, task) -
                                        first_task - 1);
    const int64_t tiles = (first_task[s + 1] - first_task[s]) / layout.kv_heads;
    const int64_t kv_head = (task - first_task[s]) / tiles, tile = (task - first_task[s]) % tiles;
    const int64_t rows = rows_of(s), new_tokens = rows / group;
    const int64_t context = batch.context_len[s];

    QueryRow tile_rows[kGemmMaxRows];
    int count = 0;
    for (int64_t r = rows * tile / tiles; r < rows * (tile + 1) / tiles; ++r) {
      const int64_t i = r / group;  // of the sequence's new tokens
      const int64_t token = batch.query_start[s] + i, head = kv_head * group + r % group;
      const auto at = [&](const auto& v) {
        return v.bytes() +
               (token * v.row_stride() + head * dims) * static_cast<int64_t>(SizeOf(v.dtype()));
      };
      tile_rows[count++] = {
          .q = at(q), .y = at(y), .limit = causal ? context - new_tokens + i + 1 : context};
    }
    const KvHead keys = {.base = kv.arena + KvHeadOffset(layout, dtype(), layer, kv_head),
                         .table = batch.block_tables.data() + int64_t{s} * batch.max_blocks,
                         .block_stride_bytes = kv.block_stride_bytes,
                         .panels = BlockPanels(layout, dtype())};
    attention.Run(keys, {tile_rows, static_cast<size_t>(count)},
                  worker_scratch_[worker].data());
  });
}

}  // namespace sensorium
