// The truth of attention, in double precision.
#pragma once

#include <span>

#include "tests/reference/array.h"

namespace sensorium::reference {

struct AttentionResult {
  Array y;          // [rows, heads * head_dim]
  Array magnitude;  // the same sum over |v|: what rounding errors of the weights scale with
};

// Vaswani et al. 2017 (arXiv:1706.03762), eq. 1, of one sequence. Query row r sees keys
// [0, limits[r]); head h reads kv head h / (heads / kv_heads), Ainslie et al. 2023
// (arXiv:2305.13245). q [rows, heads * head_dim]; k, v [keys, kv_heads * head_dim].
AttentionResult Attention(const Array& q, const Array& k, const Array& v, int64_t heads,
                          int64_t kv_heads, std::span<const int64_t> limits, double scale);

}  // namespace sensorium::reference
