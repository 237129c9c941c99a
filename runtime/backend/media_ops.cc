#include "runtime/backend/media_ops.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

void CheckAxis(const ResizeAxis& axis) {
  CHECK_GT(axis.outputs(), 0);
  CHECK_EQ(axis.weights_at.size(), axis.first.size() + 1);
  CHECK_EQ(axis.weights_at.back(), static_cast<int64_t>(axis.weights.size()));
}

}  // namespace

std::unique_ptr<LogMelTables> MediaOps::MakeLogMel(const LogMelSource& source) {
  const auto n_fft = static_cast<int64_t>(source.window.size());
  CHECK(n_fft > 0 && n_fft % 2 == 0 && source.hop > 0) << n_fft << ", " << source.hop;
  CHECK(!source.filters.empty());
  CHECK_EQ(static_cast<int64_t>(source.filters.size()) % (n_fft / 2 + 1), 0);
  return DoMakeLogMel(source);
}

void MediaOps::Listen(GreatestEnergy& greatest, const LogMelTables& tables,
                      const Recording& recording, int64_t begin, int64_t end) {
  CHECK(recording.zeros_after >= 0 && 0 <= begin && begin <= end);
  CHECK_LE(end, recording.frames(tables.hop()));
  CHECK(greatest.device != nullptr);
  // Frames of nothing but zeros have no energy.
  end = std::min(end, recording.heard_frames(tables.n_fft(), tables.hop()));
  if (begin < end) DoListen(greatest, tables, recording, begin, end);
}

void MediaOps::LogMel(TensorView y, const LogMelTables& tables, const Recording& recording,
                      int64_t begin, int64_t frames, const GreatestEnergy& greatest) {
  CHECK(y.rank() == 2 && IsFloat(y.dtype()));
  CHECK_EQ(y.dim(1), tables.mels());
  CHECK(recording.zeros_after >= 0 && 0 <= begin && 0 <= frames && frames <= y.rows());
  CHECK_LE(begin + frames, recording.frames(tables.hop()));
  CHECK(!std::isnan(greatest.host) || greatest.device != nullptr);
  if (!y.empty()) DoLogMel(y, tables, recording, begin, frames, greatest);
}

void MediaOps::Resize(std::span<const ResizeTarget> targets, std::span<const uint8_t> pixels,
                      int64_t width, int64_t first_row) {
  CHECK(width > 0 && first_row >= 0);
  CHECK_EQ(static_cast<int64_t>(pixels.size()) % (3 * width), 0);
  for (const ResizeTarget& t : targets) {
    CheckAxis(t.columns);
    CheckAxis(t.rows);
    CHECK(t.picture.rank() == 2 && t.picture.dtype() == DType::kFloat32 && t.picture.contiguous());
    CHECK_EQ(t.picture.rows(), t.rows.outputs());
    CHECK_EQ(t.picture.dim(1), 3 * t.columns.outputs());
  }
  if (!pixels.empty()) DoResize(targets, pixels, width, first_row);
}

void MediaOps::CutCrop(TensorView y, ConstTensorView picture, int32_t x, int32_t y0,
                       const PatchShape& shape) {
  CHECK(picture.rank() == 2 && picture.dtype() == DType::kFloat32 && picture.contiguous());
  CHECK_EQ(picture.dim(1) % 3, 0);
  CHECK(y.rank() == 2 && IsFloat(y.dtype()));
  CHECK_EQ(y.rows(), int64_t{shape.per_side} * shape.per_side);
  CHECK_EQ(y.dim(1), int64_t{3} * shape.size * shape.size);
  if (!y.empty()) DoCutCrop(y, picture, x, y0, shape);
}

}  // namespace sensorium
