// How keys and values lie in memory: as the matrix kernels' right operands (packed_linear.h), so
// that attention is two products with a softmax between them and reads whole cache lines front to
// back.
//
//   K  panels of 32 keys: [ceil(keys / 32), dims, 32] float32, or [.., dims / 2, 32, 2] bfloat16
//   V  panels of 32 dims: [ceil(dims / 32), keys, 32] float32, or [.., keys / 2, 32, 2] bfloat16
//
// A KV block is [layers, kv_heads] of such a (K, V) with keys = block_size. The lanes behind the
// last key or dim hold anything: no result depends on them. A block size that is not a multiple of
// 32 leaves half of its last K panel unused.
#pragma once

#include <cstdint>

#include "runtime/backend/backend.h"

namespace sensorium {

struct KvPanels {
  DType type;    // float32 or bfloat16
  int64_t keys;  // even
  int64_t dims;

  static constexpr int64_t kLanes = 32;
  static constexpr int64_t kStepBytes = 128;

  int64_t per_step() const { return type == DType::kBFloat16 ? 2 : 1; }  // dims of K, keys of V
  int64_t key_panels() const { return (keys + kLanes - 1) / kLanes; }
  int64_t key_steps() const { return (dims + per_step() - 1) / per_step(); }
  int64_t key_panel_bytes() const { return key_steps() * kStepBytes; }
  int64_t value_panels() const { return (dims + kLanes - 1) / kLanes; }
  int64_t value_panel_bytes() const { return keys / per_step() * kStepBytes; }
  int64_t values_offset() const { return key_panels() * key_panel_bytes(); }
  int64_t size_bytes() const { return values_offset() + value_panels() * value_panel_bytes(); }
};

inline KvPanels BlockPanels(const KvLayout& layout, DType type) {
  return {type, layout.block_size, layout.head_dim};
}

// Where one kv head of one layer begins within a block.
inline int64_t KvHeadOffset(const KvLayout& layout, DType type, int64_t layer, int64_t kv_head) {
  return (layer * layout.kv_heads + kv_head) * BlockPanels(layout, type).size_bytes();
}

}  // namespace sensorium
