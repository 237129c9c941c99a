// A picture's rows resized, and crops of the result as normalised patches.  Host twins:
// runtime/media/resize.cc, runtime/media/molmo_image.cc
#pragma once

#include <cstdint>

#include "cuda/kernels/queue.h"
#include "cuda/kernels/types.h"

namespace sensorium::cuda {

// One axis of a resize, as ResizeAxis of runtime/backend/media_ops.h; device arrays.
struct ResizeTaps {
  const int32_t* first;       // [outputs]
  const int32_t* weights_at;  // [outputs + 1]
  const float* weights;
  int64_t outputs;

  bool operator==(const ResizeTaps&) const = default;
};

// z float [rows, columns.outputs, 3] of pixels uint8 [rows, width, 3], which become value / 255.
void ResizeColumns(float* z, const uint8_t* pixels, int64_t width, const ResizeTaps& columns,
                   int64_t rows, Queue& queue);
// Adds the input rows z float [num_rows, row_values], [first_row, first_row + num_rows) of the
// picture, to outputs [begin, end) of y float [rows.outputs, row_values]. Those whose first input
// is among them are begun: what y holds there is not read.
void ResizeRows(float* y, const float* z, const ResizeTaps& rows, int64_t row_values,
                int64_t first_row, int64_t num_rows, int64_t begin, int64_t end, Queue& queue);

struct CropOf {
  const float* picture;  // [height, width, 3]
  int height, width;     // pixels
  int x, y;              // of the crop's upper left corner; may lie outside
  int per_side, patch_size;
  float mean[3], std[3];

  bool operator==(const CropOf&) const = default;
};
// patches [per_side^2, patch_size^2 * 3]: (clipped to [0, 1] - mean) / std, 0 outside the picture.
void CutCrop(Rows patches, const CropOf& crop, Queue& queue);

}  // namespace sensorium::cuda
