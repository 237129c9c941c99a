// The truth of the row-wise ops, in double precision. Shapes as in runtime/backend/backend.h.
#pragma once

#include <span>

#include "tests/reference/array.h"

namespace sensorium::reference {

// Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4, with eps inside the root.
Array RmsNorm(const Array& x, const Array& weight, double eps);
// Ba et al. 2016 (arXiv:1607.06450), eq. 4, biased variance.
Array LayerNorm(const Array& x, const Array& weight, const Array& bias, double eps);
// Shazeer 2020 (arXiv:2002.05202): silu(gate) * up.
Array SiluMul(const Array& up, const Array& gate);
// Su et al. 2021 (arXiv:2104.09864), half-rotation form. x [tokens, heads * 2 * inv_freq.size()].
// The angle alone is float32: position * inv_freq rounded, as the published models compute it.
Array Rope(const Array& x, std::span<const int32_t> positions, std::span<const float> inv_freq);
// Means of `group` consecutive rows.
Array MeanRows(const Array& x, int64_t group);

}  // namespace sensorium::reference
