// CudaBackend's attention: rotary positions, the KV blocks, and the cutting of queries and keys
// into tasks whose bits do not depend on the batch.
#include <algorithm>
#include <utility>

#include "cuda/cuda_backend.h"
#include "cuda/kernels/rope.h"
#include "cuda/views.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

using cuda::CeilDiv;
using cuda::RowsOf;
using cuda::Uploads;

}  // namespace

void CudaBackend::DoRope(TensorView x, std::span<const int32_t> positions,
                         std::span<const float> inv_freq) {
  Op("Rope", [&] {
    uploads_->Reserve(positions.size_bytes() + inv_freq.size_bytes() + 2 * Uploads::kSlack);
    const int32_t* sent = uploads_->Put(positions);
    cuda::Rope(RowsOf(x), sent, uploads_->Put(inv_freq), x.rows(), x.dim(1), x.dim(2) / 2, queue_);
  });
}

cuda::KvLayer CudaBackend::Layer(const KvCacheView& kv, int32_t layer) const {
  const KvLayout& l = kv.layout;
  const size_t layer_bytes = KvBlockBytes(l) / l.layers;
  return {.data = kv.arena + layer * layer_bytes,
          .block_stride = static_cast<int64_t>(kv.block_stride_bytes / SizeOf(dtype())),
          .block_size = l.block_size,
          .kv_heads = l.kv_heads,
          .head_dim = l.head_dim,
          .type = type()};
}

void CudaBackend::DoStoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k,
                            ConstTensorView v, std::span<const int64_t> slot_mapping) {
  Op("StoreKv", [&] {
    uploads_->Reserve(slot_mapping.size_bytes());
    cuda::StoreKv(Layer(kv, layer), RowsOf(k), RowsOf(v), uploads_->Put(slot_mapping), k.rows(),
                  queue_);
  });
}

void CudaBackend::AddTasks(int32_t sequence, int32_t query_begin, int64_t rows, int64_t group,
                           int64_t first_limit, bool causal) {
  for (int64_t first = 0; first < rows; first += cuda::kTileRows) {
    const int64_t n = std::min<int64_t>(cuda::kTileRows, rows - first);
    const int64_t last_token = (first + n - 1) / group;
    tiles_.push_back({.rows = {.query_begin = query_begin,
                               .first_row = static_cast<int32_t>(first),
                               .num_rows = static_cast<int32_t>(n),
                               .first_limit = static_cast<int32_t>(first_limit),
                               .limit_step = causal ? 1 : 0,
                               .partial = -1},
                      .sequence = sequence,
                      .num_keys = static_cast<int32_t>(first_limit + (causal ? last_token : 0))});
  }
}

void CudaBackend::RunTasks(cuda::AttentionProblem problem, std::span<const BlockId> block_tables,
                           const void* owner, int64_t most_keys) {
  const size_t row_bytes = cuda::PartialBytes(1, problem.kv_heads, problem.head_dim);
  const auto most_rows = static_cast<int64_t>(scratch_->size_bytes() / row_bytes);
  const size_t table_bytes = block_tables.size_bytes() + Uploads::kSlack;
  CHECK_LT(table_bytes, uploads_->capacity_bytes()) << "block tables";
  const size_t task_room = uploads_->capacity_bytes() - table_bytes - 2 * Uploads::kSlack;
  const auto most_tasks =
      static_cast<int64_t>(task_room / (sizeof(cuda::AttentionTask) + sizeof(cuda::MergeTask)));
  problem.partials = reinterpret_cast<float*>(scratch_->data());

  // Of a recorded pass: lists as long as the longest, filled up with tasks of no rows. How long a
  // context is must not show in the launch.
  int64_t all_tasks = 0, all_merges = 0;
  if (!queue_.plain()) {
    const int64_t pieces = CeilDiv<int64_t>(most_keys, cuda::kSplitKeys);
    int64_t partial_rows = 0;
    for (const Tile& tile : tiles_) partial_rows += pieces > 1 ? pieces * tile.rows.num_rows : 0;
    all_tasks = pieces * static_cast<int64_t>(tiles_.size());
    all_merges = pieces > 1 ? static_cast<int64_t>(tiles_.size()) : 0;
    if (all_tasks > most_tasks || partial_rows > most_rows) {
      return queue_.GiveUp("its attention may need several pieces");
    }
  }
  for (size_t tile = 0; tile < tiles_.size();) {
    tasks_.clear();
    merges_.clear();
    int64_t partial_rows = 0;
    for (; tile < tiles_.size(); ++tile) {
      cuda::MergeTask rows = tiles_[tile].rows;
      const int64_t keys = tiles_[tile].num_keys;
      const int64_t pieces = CeilDiv<int64_t>(keys, cuda::kSplitKeys);
      if (pieces > 1 && tasks_.empty() && pieces * rows.num_rows > most_rows) {
        // So long a context that not even one tile's pieces fit: its first rows alone. A row's bits
        // do not depend on which rows share its tile.
        rows.num_rows = static_cast<int32_t>(most_rows / pieces);
        CHECK(rows.num_rows > 0 && queue_.plain()) << "scratch too small for " << keys << " keys";
      }
      const int64_t partials = pieces > 1 ? pieces * rows.num_rows : 0;
      if (partial_rows + partials > most_rows ||
          static_cast<int64_t>(tasks_.size()) + pieces > most_tasks) {
        CHECK(!tasks_.empty()) << "upload buffer too small for " << keys << " keys";
        break;
      }
      if (pieces > 1) rows.partial = static_cast<int32_t>(partial_rows);
      for (int64_t i = 0; i < pieces; ++i) {
        tasks_.push_back(
            {.query_begin = rows.query_begin,
             .first_row = rows.first_row,
             .num_rows = rows.num_rows,
             .first_limit = rows.first_limit,
             .limit_step = rows.limit_step,
             .first_key = static_cast<int32_t>(i * cuda::kSplitKeys),
             .end_key = static_cast<int32_t>(std::min(keys, (i + 1) * cuda::kSplitKeys)),
             .sequence = tiles_[tile].sequence,
             .partial = pieces > 1 ? static_cast<int32_t>(partial_rows + i * rows.num_rows) : -1});
      }
      if (pieces > 1) merges_.push_back(rows);
      partial_rows += partials;
      if (rows.num_rows < tiles_[tile].rows.num_rows) {
        tiles_[tile].rows.first_row += rows.num_rows;
        tiles_[tile].rows.num_rows -= rows.num_rows;
        break;
      }
    }
    if (!queue_.plain()) {
      tasks_.resize(static_cast<size_t>(all_tasks));
      merges_.resize(static_cast<size_t>(all_merges));
    }
    const std::span tasks(std::as_const(tasks_));
    const std::span merges(std::as_const(merges_));
    uploads_->Reserve(table_bytes + tasks.size_bytes() + merges.size_bytes() + 2 * Uploads::kSlack);
    if (!block_tables.empty()) problem.keys.block_tables = uploads_->Put(block_tables);
    const cuda::AttentionTask* sent = uploads_->Put(tasks, owner);
    cuda::Attention(problem, sent, static_cast<int64_t>(tasks.size()), uploads_->Put(merges, owner),
                    static_cast<int64_t>(merges.size()), queue_);
  }
}

void CudaBackend::DoPagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv,
                                   int32_t layer, const AttentionBatch& batch, float scale,
                                   bool causal) {
  Op("PagedAttention", [&] {
    const int64_t group = q.dim(1) / kv.layout.kv_heads;
    tiles_.clear();
    for (int32_t s = 0; s < batch.seqs(); ++s) {
      const int32_t tokens = batch.query_start[s + 1] - batch.query_start[s];
      const int32_t context = batch.context_len[s];
      AddTasks(s, batch.query_start[s], tokens * group, group,
               causal ? context - tokens + 1 : context, causal);
    }
    cuda::AttentionProblem p = {.y = RowsOf(y),
                                .q = RowsOf(q),
                                .keys = {},
                                .heads = static_cast<int>(q.dim(1)),
                                .kv_heads = kv.layout.kv_heads,
                                .head_dim = kv.layout.head_dim,
                                .scale = scale,
                                .type = type()};
    p.keys.blocks = Layer(kv, layer);
    p.keys.max_blocks = batch.max_blocks;
    CHECK_LE(p.head_dim, cuda::kMaxHeadDim);
    RunTasks(p, batch.block_tables, batch.context_len.data(),
             int64_t{batch.max_blocks} * kv.layout.block_size);
  });
}

void CudaBackend::DoEncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k,
                                     ConstTensorView v, int64_t seqs, float scale) {
  Op("EncoderAttention", [&] {
    const int64_t q_len = q.rows() / seqs, kv_len = k.rows() / seqs;
    tiles_.clear();
    for (int64_t s = 0; s < seqs; ++s) {
      AddTasks(static_cast<int32_t>(s), static_cast<int32_t>(s * q_len), q_len, 1, kv_len, false);
    }
    cuda::AttentionProblem p = {.y = RowsOf(y),
                                .q = RowsOf(q),
                                .keys = {},
                                .heads = static_cast<int>(q.dim(1)),
                                .kv_heads = static_cast<int>(q.dim(1)),
                                .head_dim = static_cast<int>(q.dim(2)),
                                .scale = scale,
                                .type = type()};
    p.keys.k = RowsOf(k);
    p.keys.v = RowsOf(v);
    p.keys.kv_len = kv_len;
    CHECK_LE(p.head_dim, cuda::kMaxHeadDim);
    RunTasks(p, {}, /*owner=*/nullptr, kv_len);
  });
}

}  // namespace sensorium
