// The fields of Prices under their names, in files.
#pragma once

#include <cstdint>

#include "runtime/scheduler/cost_model.h"

namespace sensorium {

// Beyond anything a device does, and small enough that sums stay within 64 bits.
inline constexpr int64_t kMaxPricePs = 1'000'000'000'000'000;

// f(name, field, low, high)
template <typename T, typename F>
void ForEachPrice(T& p, F&& f) {
  f("encode_unit_ps", p.encode_unit_ps, 0, kMaxPricePs);
  f("forward_ps", p.forward_ps, 0, kMaxPricePs);
  f("prefill_token_ps", p.prefill_token_ps, 0, kMaxPricePs);
  f("prefill_context_ps", p.prefill_context_ps, 0, kMaxPricePs);
  f("decode_row_ps", p.decode_row_ps, 0, kMaxPricePs);
  f("decode_context_ps", p.decode_context_ps, 0, kMaxPricePs);
  f("cross_position_ps", p.cross_position_ps, 0, kMaxPricePs);
}

}  // namespace sensorium
