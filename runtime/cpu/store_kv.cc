// Writes new keys and values into their slots (kv_panels.h says where that is).
//
// Traffic     k and v once in, once out; keys go to lanes 128 bytes apart. A token's bytes are its
//             own, so threads never write the same place.
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/kv_panels.h"

namespace sensorium {

void CpuBackend::DoStoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k,
                           ConstTensorView v, std::span<const int64_t> slot_mapping) {
  const KvLayout& layout = kv.layout;
  const KvPanels panels = BlockPanels(layout, dtype());
  const int64_t dims = layout.head_dim;
  const auto at = [&](const ConstTensorView& x, int64_t token, int64_t head) {
    return x.bytes() +
           (token * x.row_stride() + head * dims) * static_cast<int64_t>(SizeOf(x.dtype()));
  };
  ForRows(k.rows(), 2 * layout.kv_heads * dims, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end;) {
      const int64_t slot = slot_mapping[t];
      if (slot < 0) {
        ++t;
        continue;
      }
      // A prefill's slots follow each other: as many at once as share a panel of keys.
      const int64_t offset = slot % layout.block_size, lane = offset % KvPanels::kLanes;
      int64_t n = 1;
      while (t + n < end && slot_mapping[t + n] == slot + n && offset + n < layout.block_size &&
             lane + n < KvPanels::kLanes) {
        ++n;
      }
      std::byte* block =
          kv.arena + static_cast<size_t>(slot / layout.block_size) * kv.block_stride_bytes;
      for (int64_t h = 0; h < layout.kv_heads; ++h) {
        std::byte* keys = block + KvHeadOffset(layout, dtype(), layer, h);
        std::byte* panel = keys + offset / KvPanels::kLanes * panels.key_panel_bytes();
        kernels_.pack_keys(panel, dtype(), lane, at(k, t, h), k.dtype(), k.row_stride(), n, dims);
        kernels_.pack_values(keys + panels.values_offset(), panels.value_panel_bytes(), dtype(),
                             offset, at(v, t, h), v.dtype(), v.row_stride(), n, dims);
      }
      t += n;
    }
  });
}

}  // namespace sensorium
