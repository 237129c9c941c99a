// picture.cu: pixels to patches: an antialiased resize in two passes, then crops as patches.
//
// Source    torchvision.transforms.functional.resize(BILINEAR, antialias=True) on a float tensor;
//           allenai/Molmo-7B-D-0924, image_preprocessing_molmo.py, resize_and_pad and
//           image_to_patches_and_tokens. The weights are made by runtime/media/resize.cc.
// Shapes    pixels uint8 [rows, width, 3]; z float [rows, to_width, 3]; y float [to_height,
//           to_width, 3]; patches [patches, size * size * 3] float or bfloat16, any row stride.
// Launch    resize_columns, resize_rows: grid (rows, row values / 1024), 128 threads: each takes
//           every 128th value of 1024, so that neighbours read neighbours. cut_crop: a CTA of 128
//           threads a patch.
// Traffic   pixels once, z written and read once, y written once and read once more by each strip
//           that a row of it began before; a crop's pixels read and its patches written once.
//           Memory-bound.
// Numerics  fp32; an output adds up its columns' weights, then its rows', in ascending order of
//           input, from 0: where the picture is cut into strips changes no bit. value / 255 and
//           the division by std are rounded once, as on the host; products are fused into sums here
//           and are not there.
#include "cuda/kernels/picture.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

constexpr int kValues = 1024, kThreads = 128, kChannels = 3;  // positions in a row are int32

__global__ void resize_columns_kernel(float* z, const uint8_t* pixels, int64_t width,
                                      ResizeTaps columns) {
  const int values = static_cast<int>(columns.outputs) * kChannels;
  pixels += blockIdx.x * width * kChannels;
  z += int64_t{blockIdx.x} * values;
  const int begin = static_cast<int>(blockIdx.y) * kValues;
  const int end = begin + kValues < values ? begin + kValues : values;
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    const int k = i / kChannels;
    const int at = columns.weights_at[k], n = columns.weights_at[k + 1] - at;
    const uint8_t* in = pixels + columns.first[k] * kChannels + i % kChannels;
    float sum = 0.f;
    for (int t = 0; t < n; ++t) {
      sum += static_cast<float>(in[t * kChannels]) / 255.f * columns.weights[at + t];
    }
    z[i] = sum;
  }
}

__global__ void resize_rows_kernel(float* y, const float* z, ResizeTaps rows, int64_t row_values,
                                   int64_t first_row, int64_t num_rows, int64_t first_output) {
  const int64_t k = first_output + blockIdx.x;
  const int64_t first = rows.first[k], at = rows.weights_at[k];
  const int64_t last = first + rows.weights_at[k + 1] - at;  // its inputs are [first, last)
  const int64_t from = first > first_row ? first : first_row;
  const int64_t to = last < first_row + num_rows ? last : first_row + num_rows;
  y += k * row_values;
  const int64_t begin = int64_t{blockIdx.y} * kValues;
  const int64_t end = begin + kValues < row_values ? begin + kValues : row_values;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float sum = first < first_row ? y[i] : 0.f;
    for (int64_t t = from; t < to; ++t) {
      sum += z[(t - first_row) * row_values + i] * rows.weights[at + t - first];
    }
    y[i] = sum;
  }
}

// By selection: an array that is indexed at run time would lie in local memory.
__device__ __forceinline__ float Channel(const float (&of)[kChannels], int c) {
  return c == 0 ? of[0] : c == 1 ? of[1] : of[2];
}

template <typename Y>
__global__ void cut_crop_kernel(Y* patches, int64_t stride, CropOf crop) {
  const int size = crop.patch_size, row_values = size * kChannels;
  const int patch = static_cast<int>(blockIdx.x);
  const int x0 = crop.x + patch % crop.per_side * size, y0 = crop.y + patch / crop.per_side * size;
  patches += patch * stride;
  for (int i = static_cast<int>(threadIdx.x); i < row_values * size; i += kThreads) {
    const int row = y0 + i / row_values, column = x0 + i % row_values / kChannels;
    const int c = i % kChannels;
    float v = 0.f;
    if (row >= 0 && row < crop.height && column >= 0 && column < crop.width) {
      const float* pixel = crop.picture + (int64_t{row} * crop.width + column) * kChannels;
      v = fminf(fmaxf(pixel[c], 0.f), 1.f);
    }
    patches[i] = FromFloat<Y>((v - Channel(crop.mean, c)) / Channel(crop.std, c));
  }
}

dim3 Grid(int64_t rows, int64_t values) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>(CeilDiv<int64_t>(values, kValues))};
}

}  // namespace

void ResizeColumns(float* z, const uint8_t* pixels, int64_t width, const ResizeTaps& columns,
                   int64_t rows, Queue& queue) {
  if (rows == 0 || columns.outputs == 0) return;
  launch(resize_columns_kernel, Grid(rows, columns.outputs * kChannels), kThreads, 0, queue, z,
         pixels, width, columns);
}

void ResizeRows(float* y, const float* z, const ResizeTaps& rows, int64_t row_values,
                int64_t first_row, int64_t num_rows, int64_t begin, int64_t end, Queue& queue) {
  if (begin == end || row_values == 0) return;
  launch(resize_rows_kernel, Grid(end - begin, row_values), kThreads, 0, queue, y, z, rows,
         row_values, first_row, num_rows, begin);
}

void CutCrop(Rows patches, const CropOf& crop, Queue& queue) {
  const int n = crop.per_side * crop.per_side;
  if (n == 0) return;
  WithType(patches.type, [&]<typename Y>() {
    launch(cut_crop_kernel<Y>, static_cast<unsigned>(n), kThreads, 0, queue,
           static_cast<Y*>(patches.data), patches.stride, crop);
  });
}

}  // namespace sensorium::cuda
