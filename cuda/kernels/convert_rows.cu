// convert_rows.cu: rows from one type to another, padded rows, table rows, picked rows, means.
//
// Source    none: copies and sums.
// Shapes    y, x [rows, columns], any row stride; float or bfloat16. ids, from, to [rows] int32.
//           pad_rows: y [padded_rows, padded_columns] of x [rows, columns]. mean_rows: x [rows *
//           group, columns].
// Launch    convert_rows, embed_rows, gather_rows, scatter_add_rows, mean_rows: grid (rows,
//           columns / 1024), 128 threads: each takes every 128th column of 1024. pad_rows: the same
//           over the padded rows and columns. No shared memory.
// Traffic   each element read and written once (an added y read once more); pad_rows writes the
//           zeros, too. Memory-bound.
// Numerics  bfloat16 by nearest, ties to even. Means summed in fp32 in ascending order.
#include "cuda/kernels/convert_rows.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

constexpr int64_t kColumns = 1024;
constexpr unsigned kThreads = 128;

template <typename Y, typename X>
__global__ void convert_rows_kernel(Y* y, int64_t y_stride, const X* x, int64_t x_stride,
                                    int64_t columns) {
  y += blockIdx.x * y_stride;
  x += blockIdx.x * x_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    y[c] = FromFloat<Y>(ToFloat(x[c]));
  }
}

template <typename Y, typename X>
__global__ void pad_rows_kernel(Y* y, int64_t y_stride, const X* x, int64_t x_stride, int64_t rows,
                                int64_t columns, int64_t padded_columns) {
  const bool there = blockIdx.x < rows;
  y += blockIdx.x * y_stride;
  x += blockIdx.x * x_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < padded_columns ? begin + kColumns : padded_columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    y[c] = FromFloat<Y>(there && c < columns ? ToFloat(x[c]) : 0.f);
  }
}

template <typename T>
__global__ void embed_rows_kernel(float* y, int64_t y_stride, const T* table, int64_t table_stride,
                                  const int32_t* ids, bool add, int64_t columns) {
  const int32_t id = ids[blockIdx.x];
  if (id < 0) return;
  y += blockIdx.x * y_stride;
  table += id * table_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    y[c] = add ? y[c] + ToFloat(table[c]) : ToFloat(table[c]);
  }
}

template <typename T>
__global__ void gather_rows_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride,
                                   const int32_t* from, int64_t columns) {
  y += blockIdx.x * y_stride;
  x += from[blockIdx.x] * x_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) y[c] = x[c];
}

template <typename X>
__global__ void scatter_add_rows_kernel(float* y, int64_t y_stride, const X* x, int64_t x_stride,
                                        const int32_t* to, int64_t columns) {
  y += to[blockIdx.x] * y_stride;
  x += blockIdx.x * x_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) y[c] += ToFloat(x[c]);
}

template <typename T>
__global__ void mean_rows_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride,
                                 int64_t group, int64_t columns) {
  y += blockIdx.x * y_stride;
  x += blockIdx.x * group * x_stride;
  const int64_t begin = blockIdx.y * kColumns;
  const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    float sum = ToFloat(x[c]);
    for (int64_t r = 1; r < group; ++r) sum += ToFloat(x[r * x_stride + c]);
    y[c] = FromFloat<T>(sum / static_cast<float>(group));
  }
}

dim3 Grid(int64_t rows, int64_t columns) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>(CeilDiv(columns, kColumns))};
}

}  // namespace

void ConvertRows(Rows y, ConstRows x, int64_t rows, int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(y.type, [&]<typename Y>() {
    WithType(x.type, [&]<typename X>() {
      launch(convert_rows_kernel<Y, X>, Grid(rows, columns), kThreads, 0, queue,
             static_cast<Y*>(y.data), y.stride, static_cast<const X*>(x.data), x.stride, columns);
    });
  });
}

void PadRows(Rows y, ConstRows x, int64_t rows, int64_t columns, int64_t padded_rows,
             int64_t padded_columns, Queue& queue) {
  if (padded_rows == 0 || padded_columns == 0) return;
  WithType(y.type, [&]<typename Y>() {
    WithType(x.type, [&]<typename X>() {
      launch(pad_rows_kernel<Y, X>, Grid(padded_rows, padded_columns), kThreads, 0, queue,
             static_cast<Y*>(y.data), y.stride, static_cast<const X*>(x.data), x.stride, rows,
             columns, padded_columns);
    });
  });
}

void EmbedRows(float* y, int64_t y_stride, ConstRows table, const int32_t* ids, bool add,
               int64_t rows, int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(table.type, [&]<typename T>() {
    launch(embed_rows_kernel<T>, Grid(rows, columns), kThreads, 0, queue, y, y_stride,
           static_cast<const T*>(table.data), table.stride, ids, add, columns);
  });
}

void GatherRows(Rows y, ConstRows x, const int32_t* from, int64_t rows, int64_t columns,
                Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(x.type, [&]<typename T>() {
    launch(gather_rows_kernel<T>, Grid(rows, columns), kThreads, 0, queue, static_cast<T*>(y.data),
           y.stride, static_cast<const T*>(x.data), x.stride, from, columns);
  });
}

void ScatterAddRows(float* y, int64_t y_stride, ConstRows x, const int32_t* to, int64_t rows,
                    int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(x.type, [&]<typename X>() {
    launch(scatter_add_rows_kernel<X>, Grid(rows, columns), kThreads, 0, queue, y, y_stride,
           static_cast<const X*>(x.data), x.stride, to, columns);
  });
}

void MeanRows(Rows y, ConstRows x, int64_t group, int64_t rows, int64_t columns, Queue& queue) {
  if (rows == 0 || columns == 0) return;
  WithType(x.type, [&]<typename T>() {
    launch(mean_rows_kernel<T>, Grid(rows, columns), kThreads, 0, queue, static_cast<T*>(y.data),
           y.stride, static_cast<const T*>(x.data), x.stride, group, columns);
  });
}

}  // namespace sensorium::cuda
