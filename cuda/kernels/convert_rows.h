// Rows from one type to another, table rows, picked rows, means of rows.  CPU twin:
// runtime/cpu/convert_rows.cc
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// y = x. y, x [rows, columns].
void ConvertRows(Rows y, ConstRows x, int64_t rows, int64_t columns, Queue& queue);
// The same into y [padded_rows, padded_columns], with zeros behind the rows and columns of x.
void PadRows(Rows y, ConstRows x, int64_t rows, int64_t columns, int64_t padded_rows,
             int64_t padded_columns, Queue& queue);
// y[i] = table[ids[i]], or += when `add`; a negative id leaves y[i]. y float32 [rows, columns].
void EmbedRows(float* y, int64_t y_stride, ConstRows table, const int32_t* ids, bool add,
               int64_t rows, int64_t columns, Queue& queue);
// y[i] = x[from[i]], both of one type.
void GatherRows(Rows y, ConstRows x, const int32_t* from, int64_t rows, int64_t columns,
                Queue& queue);
// y[to[i]] += x[i]; y float32. REQUIRES: `to` distinct.
void ScatterAddRows(float* y, int64_t y_stride, ConstRows x, const int32_t* to, int64_t rows,
                    int64_t columns, Queue& queue);
// y[i] = mean of x[i * group .. (i + 1) * group), both of one type.
void MeanRows(Rows y, ConstRows x, int64_t group, int64_t rows, int64_t columns, Queue& queue);

}  // namespace sensorium::cuda
