#include "runtime/cpu/attention_rows.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/cpu/gemm.h"

namespace sensorium {
namespace {

const GemmKernelSet& SetFor(const GemmKernels& kernels, DType storage) {
  return storage == DType::kBFloat16 ? *kernels.bfloat16 : *kernels.float32;
}

// One product: rows x panels, panel after panel. Few rows are bound by memory: those kernels
// prefetch.
void Multiply(const GemmKernelSet& set, int rows, int64_t panels, int64_t panel_bytes,
              GemmTile tile) {
  const GemmTileFn run = set.stream[rows] != nullptr ? set.stream[rows] : set.tile[rows];
  for (int64_t p = 0; p < panels; ++p) {
    run(tile);
    tile.c += KvPanels::kLanes;
    tile.w += panel_bytes;
  }
}

}  // namespace

AttentionRows::AttentionRows(CpuLevel level, DType storage, DType q_type, DType y_type,
                             int64_t dims, float scale)
    : kernels_(KernelsFor(level)),
      gemm_(GemmKernelsFor(level)),
      set_(SetFor(gemm_, storage)),
      q_type_(q_type),
      y_type_(y_type),
      dims_(dims),
      scale_(scale),
      per_step_(storage == DType::kBFloat16 ? 2 : 1),
      step_bytes_(set_.input == GemmInput::kRoundedFloat32 ? 8 : 4) {}

// Scratch of one tile. Row strides avoid multiples of 4096 bytes (gemm.h, SpreadStride).
struct AttentionRows::Buffers {
  char* q;  // [max_rows, steps] in the kernels' input form
  int64_t q_stride;
  float* s;  // [max_rows, keys] scores, then P in the input form; stride in floats
  int64_t s_stride;
  float* acc;  // [max_rows, dims padded to 32]
  int64_t acc_stride;
  char* last;  // [value_panels, 128 bytes] a pair of values with its second half cleared
  size_t size_bytes;
};

AttentionRows::Buffers AttentionRows::Lay(std::byte* scratch, int64_t max_limit) const {
  const int64_t steps = (dims_ + per_step_ - 1) / per_step_;
  const int64_t value_panels = (dims_ + KvPanels::kLanes - 1) / KvPanels::kLanes;
  Buffers b;
  b.q_stride = SpreadStride(steps * step_bytes_);
  // Panels begin at multiples of 16 keys and the last one writes 32 scores.
  b.s_stride = SpreadStride((max_limit + 2 * KvPanels::kLanes) * 4) / 4;
  b.acc_stride = SpreadStride(value_panels * KvPanels::kStepBytes) / 4;
  char* at = reinterpret_cast<char*>(scratch);
  b.q = at, at += set_.max_rows * b.q_stride;
  b.acc = reinterpret_cast<float*>(at), at += set_.max_rows * b.acc_stride * 4;
  b.last = at, at += value_panels * KvPanels::kStepBytes;
  b.s = reinterpret_cast<float*>(at), at += set_.max_rows * b.s_stride * 4;
  b.size_bytes = at - reinterpret_cast<char*>(scratch);
  return b;
}

size_t AttentionRows::ScratchBytes(int64_t max_limit) const {
  alignas(64) static std::byte origin[1];  // only to measure from
  return Lay(origin, max_limit).size_bytes;
}

// s[r, key] = q[r] . k[key] for keys [0, keys), panel by panel. Lanes behind `keys` get anything.
void AttentionRows::Scores(const KvHead& kv, const Buffers& b, int rows, int64_t keys) const {
  const KvPanels& p = kv.panels;
  for (int64_t first = 0, i = 0; first < keys; first += p.keys, ++i) {
    const int64_t in_block = std::min(p.keys, keys - first);
    Multiply(set_, rows, (in_block + KvPanels::kLanes - 1) / KvPanels::kLanes, p.key_panel_bytes(),
             {.c = b.s + first,
              .c_stride = b.s_stride,
              .a = b.q,
              .a_stride = b.q_stride,
              .w = reinterpret_cast<const char*>(kv.block(i)),
              .steps = p.key_steps(),
              .accumulate = false});
  }
}

// acc[row, :] += P[row, key] v[key] for keys [begin, end). REQUIRES: both multiples of per_step_.
void AttentionRows::AddValues(const KvHead& kv, const Buffers& b, int row, int rows, int64_t begin,
                              int64_t end) const {
  const KvPanels& p = kv.panels;
  while (begin < end) {
    const int64_t block = begin / p.keys, offset = begin % p.keys;
    const int64_t keys = std::min(p.keys - offset, end - begin);
    Multiply(set_, rows, p.value_panels(), p.value_panel_bytes(),
             {.c = b.acc + row * b.acc_stride,
              .c_stride = b.acc_stride,
              .a = reinterpret_cast<const char*>(b.s + row * b.s_stride) +
                   begin / per_step_ * step_bytes_,
              .a_stride = b.s_stride * 4,
              .w = reinterpret_cast<const char*>(kv.block(block)) + p.values_offset() +
                   offset / per_step_ * KvPanels::kStepBytes,
              .steps = keys / per_step_,
              .accumulate = begin > 0});
    begin += keys;
  }
}

// The last key of an odd number, whose pair's second half is not to be touched: a copy of the pair
// with zeros there, against P's zero behind the end.
void AttentionRows::AddLastValue(const KvHead& kv, const Buffers& b, int row, int rows,
                                 int64_t key) const {
  const KvPanels& p = kv.panels;
  const int64_t offset = key % p.keys;
  const std::byte* pairs =
      kv.block(key / p.keys) + p.values_offset() + offset / 2 * KvPanels::kStepBytes;
  for (int64_t panel = 0; panel < p.value_panels(); ++panel) {
    const std::byte* from = pairs + panel * p.value_panel_bytes();
    char* to = b.last + panel * KvPanels::kStepBytes;
    std::memset(to, 0, KvPanels::kStepBytes);
    for (int64_t d = 0; d < KvPanels::kLanes; ++d) std::memcpy(to + d * 4, from + d * 4, 2);
  }
  Multiply(set_, rows, p.value_panels(), KvPanels::kStepBytes,
           {.c = b.acc + row * b.acc_stride,
            .c_stride = b.acc_stride,
            .a = reinterpret_cast<const char*>(b.s + row * b.s_stride) + key / 2 * step_bytes_,
            .a_stride = b.s_stride * 4,
            .w = b.last,
            .steps = 1,
            .accumulate = key > 0});
}

void AttentionRows::Run(const KvHead& kv, std::span<const QueryRow> rows,
                        std::byte* scratch) const {
  const int n = static_cast<int>(rows.size());
  int64_t least = rows[0].limit, most = rows[0].limit;
  for (const QueryRow& row : rows) {
    least = std::min(least, row.limit);
    most = std::max(most, row.limit);
  }
  const Buffers b = Lay(scratch, most);
  const int64_t steps = kv.panels.key_steps();
  const int64_t padded = set_.input == GemmInput::kFloat32 ? steps : 2 * steps;
  for (int r = 0; r < n; ++r) {
    gemm_.convert(b.q + r * b.q_stride, set_.input, rows[r].q, q_type_ == DType::kBFloat16, dims_,
                  padded);
  }
  Scores(kv, b, n, most);
  float sums[kGemmMaxRows];
  for (int r = 0; r < n; ++r) {
    sums[r] = kernels_.softmax(b.s + r * b.s_stride, rows[r].limit, scale_, set_.input);
  }
  // The keys that all rows see together, then each row's own: causal rows see one more each.
  const auto whole_steps = [&](int64_t keys) { return keys / per_step_ * per_step_; };
  AddValues(kv, b, 0, n, 0, whole_steps(least));
  const bool level = least == most;
  for (int r = 0; r < n; r += level ? n : 1) {
    const int count = level ? n : 1;
    const int64_t limit = rows[r].limit, whole = whole_steps(limit);
    AddValues(kv, b, r, count, whole_steps(least), whole);
    if (whole < limit) AddLastValue(kv, b, r, count, whole);
  }
  for (int r = 0; r < n; ++r) {
    kernels_.normalize(rows[r].y, y_type_, b.acc + r * b.acc_stride, sums[r], dims_);
  }
}

}  // namespace sensorium
