// Attention of a few query rows over the keys of one kv head: what the paged and the dense op
// share.
//
// Batch invariance. A score is one chain over the dims, a row's maximum is exact, its sum runs over
// fixed lanes and P V is one chain over the keys in ascending order. So a row's bits are the same
// as a decode row, within any prefill chunk, with any neighbours and in any blocks of memory.
//
// A key at or behind a row's limit is skipped, not multiplied by zero: it may hold NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/cpu/gemm_kernels.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/kv_panels.h"

namespace sensorium {

// Keys and values of one kv head, block by block.
struct KvHead {
  const std::byte* base = nullptr;  // of block 0
  const BlockId* table = nullptr;   // [blocks]; null: one block, at base
  size_t block_stride_bytes = 0;
  KvPanels panels;

  const std::byte* block(int64_t i) const {
    return table == nullptr ? base : base + static_cast<size_t>(table[i]) * block_stride_bytes;
  }
};

struct QueryRow {
  const std::byte* q;  // [dims]
  std::byte* y;        // [dims]
  int64_t limit;       // keys [0, limit) are seen; >= 1
};

class AttentionRows {
 public:
  // `storage`: of keys and values.
  AttentionRows(CpuLevel level, DType storage, DType q_type, DType y_type, int64_t dims,
                float scale);

  int max_rows() const { return set_.max_rows; }
  // What Run needs for rows whose limits are at most max_limit.
  size_t ScratchBytes(int64_t max_limit) const;
  // y = softmax(scale q K^T) V of each row. REQUIRES: 1 <= rows.size() <= max_rows().
  void Run(const KvHead& kv, std::span<const QueryRow> rows, std::byte* scratch) const;

 private:
  struct Buffers;
  Buffers Lay(std::byte* scratch, int64_t max_limit) const;
  void Scores(const KvHead& kv, const Buffers& b, int rows, int64_t keys) const;
  void AddValues(const KvHead& kv, const Buffers& b, int row, int rows, int64_t begin,
                 int64_t end) const;
  void AddLastValue(const KvHead& kv, const Buffers& b, int row, int rows, int64_t key) const;

  const Kernels& kernels_;
  const GemmKernels& gemm_;
  const GemmKernelSet& set_;
  const DType q_type_, y_type_;
  const int64_t dims_;
  const float scale_;
  const int64_t per_step_;    // dims of a step of Q K^T, keys of a step of P V
  const int64_t step_bytes_;  // of a left operand
};

}  // namespace sensorium
