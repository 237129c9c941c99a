#include "cuda/cuda_media.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "cuda/carve.h"
#include "cuda/cuda_error.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/picture.h"
#include "cuda/views.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

using cuda::CudaBuffer;
using cuda::Uploads;

// Index into [0, size) of a signal mirrored at its first and last sample, which are not repeated.
int64_t Reflect(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

// The first k in [0, n) for which `is` holds, being false before and true behind it; n: none.
template <typename Is>
int64_t FirstOf(int64_t n, Is is) {
  int64_t low = 0;
  while (low < n) {
    const int64_t middle = low + (n - low) / 2;
    if (is(middle)) {
      n = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace

// ---- Sound -------------------------------------------------------------------------------------

class CudaMedia::Tables final : public LogMelTables {
 public:
  Tables(const LogMelSource& source, int64_t mels, cuda::DeviceMemory& memory, cuda::Queue& queue)
      : LogMelTables(static_cast<int64_t>(source.window.size()), source.hop, mels) {
    MakeWaves(source.window, memory, queue);
    MakeBands(source.filters, memory, queue);
  }
  const cuda::CudaLinear& waves() const { return *waves_; }
  int64_t bins() const { return n_fft() / 2 + 1; }
  cuda::MelBands bands() const {
    return {.first_bin = reinterpret_cast<const int32_t*>(first_bin_->data()),
            .weights_at = reinterpret_cast<const int32_t*>(weights_at_->data()),
            .weights = reinterpret_cast<const float*>(weights_->data()),
            .mels = static_cast<int>(mels()),
            .bins = static_cast<int>(bins())};
  }

 private:
  // [2 * bins, n_fft]: cosine of bin k times the window, then sines. Made in double.
  void MakeWaves(std::span<const float> window, cuda::DeviceMemory& memory, cuda::Queue& queue) {
    const int64_t n = n_fft();
    std::vector<float> waves(static_cast<size_t>(2 * bins() * n));
    for (int64_t k = 0; k < bins(); ++k) {
      for (int64_t i = 0; i < n; ++i) {
        const double angle =
            2 * std::numbers::pi * static_cast<double>(k * i % n) / static_cast<double>(n);
        waves[k * n + i] = static_cast<float>(std::cos(angle) * window[i]);
        waves[(bins() + k) * n + i] = static_cast<float>(std::sin(angle) * window[i]);
      }
    }
    const LinearSource part = {.weight = {reinterpret_cast<const std::byte*>(waves.data()),
                                          DType::kFloat32,
                                          {2 * bins(), n}},
                               .bias = {}};
    waves_ = cuda::CudaLinear::Pack({&part, 1}, DType::kFloat32, memory, queue.stream());
  }
  // A triangle touches few bins, so only those between its feet are kept.
  void MakeBands(std::span<const float> filters, cuda::DeviceMemory& memory, cuda::Queue& queue) {
    std::vector<int32_t> first_bin, weights_at = {0};
    std::vector<float> weights;
    for (int64_t m = 0; m < mels(); ++m) {
      const auto row = filters.subspan(static_cast<size_t>(m * bins()), bins());
      const auto is_set = [](float w) { return w != 0; };
      const auto first = std::find_if(row.begin(), row.end(), is_set);
      const auto last = std::find_if(row.rbegin(), row.rend(), is_set).base();
      first_bin.push_back(first < last ? static_cast<int32_t>(first - row.begin()) : 0);
      if (first < last) weights.insert(weights.end(), first, last);
      weights_at.push_back(static_cast<int32_t>(weights.size()));
    }
    if (weights.empty()) weights.push_back(0);
    const auto upload = [&](const auto& values) {
      const size_t bytes = values.size() * sizeof(values[0]);
      auto buffer = memory.Allocate(bytes, cuda::MemoryUse::kWeights);
      CUDA_CHECK(cudaMemcpyAsync(buffer->data(), values.data(), bytes, cudaMemcpyHostToDevice,
                                 queue.stream()));
      queue.Wait();
      return buffer;
    };
    first_bin_ = upload(first_bin);
    weights_at_ = upload(weights_at);
    weights_ = upload(weights);
  }

  std::unique_ptr<cuda::CudaLinear> waves_;
  std::unique_ptr<CudaBuffer> first_bin_, weights_at_, weights_;
};

std::unique_ptr<LogMelTables> CudaMedia::DoMakeLogMel(const LogMelSource& source) {
  const auto bins = static_cast<int64_t>(source.window.size()) / 2 + 1;
  samples_.reserve(be_.uploads_->capacity_bytes() / sizeof(float));
  return std::make_unique<Tables>(source, static_cast<int64_t>(source.filters.size()) / bins,
                                  *be_.memory_, be_.queue_);
}

int64_t CudaMedia::MostFrames(const Tables& tables, size_t extra_bytes) const {
  const auto samples =
      static_cast<int64_t>((be_.uploads_->capacity_bytes() - Uploads::kSlack) / sizeof(float));
  const int64_t by_samples = (samples - tables.n_fft()) / tables.hop() + 1;
  const size_t frame_bytes = static_cast<size_t>(2 * tables.bins()) * sizeof(float) + extra_bytes;
  const size_t paddings = 3 * 256;
  const size_t scratch = be_.scratch_->size_bytes();
  const auto by_scratch =
      static_cast<int64_t>((scratch > paddings ? scratch - paddings : 0) / frame_bytes);
  CHECK(samples >= tables.n_fft() && by_scratch > 0)
      << "a frame of " << tables.n_fft() << " samples, an upload buffer of "
      << be_.uploads_->capacity_bytes() << " bytes and scratch of " << scratch;
  return std::min(by_samples, by_scratch);
}

void CudaMedia::Transform(float* spectra, const Tables& tables, const Recording& recording,
                          int64_t begin, int64_t end) {
  // Frame t is samples [t * hop - n_fft / 2, + n_fft), mirrored at the ends. Frames overlap: their
  // matrix is one stretch of samples with rows `hop` apart, and nothing is copied to make it.
  const int64_t pad = tables.n_fft() / 2;
  const int64_t first = begin * tables.hop() - pad;
  const int64_t count = (end - begin - 1) * tables.hop() + tables.n_fft();
  const auto given = static_cast<int64_t>(recording.samples.size());
  std::span<const float> stretch;
  if (first >= 0 && first + count <= given) {
    stretch = recording.samples.subspan(first, count);
  } else {
    // What reflection sees: input too short for it is padded with zeros first.
    const int64_t mirrored = std::max(recording.size(), pad + 1);
    samples_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = Reflect(first + i, mirrored);
      samples_[i] = at < given ? recording.samples[at] : 0.0f;
    }
    stretch = samples_;
  }
  be_.uploads_->Reserve(stretch.size_bytes() + Uploads::kSlack);
  const std::byte* sent = be_.uploads_->PutBytes(std::as_bytes(stretch), /*owner=*/nullptr);
  const cuda::CudaLinear& waves = tables.waves();
  cuda::Linear({.y = {spectra, 2 * tables.bins(), cuda::Type::kFloat32},
                .x = {sent, tables.hop(), cuda::Type::kFloat32},
                .rows = end - begin,
                .in = waves.in_features(),
                .in_padded = waves.in_padded(),
                .out = waves.out_features(),
                .type = cuda::Type::kFloat32,
                .matrix = waves.matrix()},
               be_.queue_);
}

void CudaMedia::DoListen(GreatestEnergy& greatest, const LogMelTables& of,
                         const Recording& recording, int64_t begin, int64_t end) {
  const auto& tables = static_cast<const Tables&>(of);
  be_.Op("Listen", [&] {
    bool keep = std::isnan(greatest.host);
    const float known = keep ? 0.f : greatest.host;
    const int64_t most = MostFrames(tables, sizeof(float));
    for (int64_t at = begin; at < end; at += most) {
      const int64_t n = std::min(most, end - at);
      cuda::Carve scratch(be_.scratch_->data());
      auto* energies = scratch.Take<float>(n);
      auto* spectra = scratch.Take<float>(n * 2 * tables.bins());
      Transform(spectra, tables, recording, at, at + n);
      cuda::RowEnergies(energies, spectra, tables.bands(), n, be_.queue_);
      cuda::GreatestOf(greatest.device, energies, n, known, keep, be_.queue_);
      keep = true;
    }
    if (!be_.answers_->AskNumber(greatest.host, greatest.device, be_.queue_)) {
      be_.WaitForAnswers();
      CHECK(be_.answers_->AskNumber(greatest.host, greatest.device, be_.queue_));
    }
    greatest.host = std::numeric_limits<float>::quiet_NaN();  // behind what a wait has delivered
  });
}

void CudaMedia::DoLogMel(TensorView y, const LogMelTables& of, const Recording& recording,
                         int64_t begin, int64_t frames, const GreatestEnergy& greatest) {
  const auto& tables = static_cast<const Tables&>(of);
  be_.Op("LogMel", [&] {
    const int64_t heard = std::clamp<int64_t>(
        recording.heard_frames(tables.n_fft(), tables.hop()) - begin, 0, frames);
    const int64_t most = MostFrames(tables, 0);
    auto* spectra = reinterpret_cast<float*>(be_.scratch_->data());
    for (int64_t at = 0; at < y.rows(); at += most) {
      const int64_t rows = std::min(most, y.rows() - at);
      const int64_t heard_rows = std::clamp<int64_t>(heard - at, 0, rows);
      if (heard_rows > 0) {
        Transform(spectra, tables, recording, begin + at, begin + at + heard_rows);
      }
      const TensorView piece = y.Rows(at, at + rows);
      cuda::LogMel(cuda::RowsOf(piece), spectra, tables.bands(), rows, heard_rows, frames - at,
                   std::isnan(greatest.host) ? greatest.device : nullptr, greatest.host,
                   be_.queue_);
    }
  });
}

// ---- Pictures ----------------------------------------------------------------------------------

void CudaMedia::DoResize(std::span<const ResizeTarget> targets, std::span<const uint8_t> pixels,
                         int64_t width, int64_t first_row) {
  be_.Op("Resize", [&] {
    size_t tap_bytes = 0, row_bytes = 0;  // of all targets; of one input row of the widest
    for (const ResizeTarget& t : targets) {
      for (const ResizeAxis* axis : {&t.columns, &t.rows}) {
        tap_bytes += axis->first.size_bytes() + axis->weights_at.size_bytes() +
                     axis->weights.size_bytes() + 3 * Uploads::kSlack;
      }
      row_bytes = std::max(row_bytes, static_cast<size_t>(t.picture.dim(1)) * sizeof(float));
    }
    const auto pixel_bytes = static_cast<size_t>(3 * width);
    const size_t taken = tap_bytes + Uploads::kSlack, capacity = be_.uploads_->capacity_bytes();
    const auto most =
        static_cast<int64_t>(std::min((capacity > taken ? capacity - taken : 0) / pixel_bytes,
                                      be_.scratch_->size_bytes() / std::max<size_t>(row_bytes, 1)));
    CHECK_GT(most, 0) << "a row of " << pixel_bytes << " bytes with " << tap_bytes
                      << " of weights, an upload buffer of " << capacity << " and scratch of "
                      << be_.scratch_->size_bytes();

    const auto num_rows = static_cast<int64_t>(pixels.size() / pixel_bytes);
    auto* z = reinterpret_cast<float*>(be_.scratch_->data());
    for (int64_t at = 0; at < num_rows; at += most) {
      const int64_t n = std::min(most, num_rows - at), row = first_row + at;
      be_.uploads_->Reserve(taken + static_cast<size_t>(n) * pixel_bytes);
      const auto* sent = reinterpret_cast<const uint8_t*>(be_.uploads_->PutBytes(
          std::as_bytes(pixels.subspan(at * pixel_bytes, n * pixel_bytes)), /*owner=*/nullptr));
      for (const ResizeTarget& t : targets) {
        const auto put = [&](const ResizeAxis& axis) -> cuda::ResizeTaps {
          return {.first = be_.uploads_->Put(axis.first),
                  .weights_at = be_.uploads_->Put(axis.weights_at),
                  .weights = be_.uploads_->Put(axis.weights),
                  .outputs = axis.outputs()};
        };
        cuda::ResizeColumns(z, sent, width, put(t.columns), n, be_.queue_);
        // The outputs that these rows have a weight in.
        const auto last = [&](int64_t k) {
          return t.rows.first[k] + t.rows.weights_at[k + 1] - t.rows.weights_at[k];
        };
        const int64_t outputs = t.rows.outputs();
        const int64_t begin = FirstOf(outputs, [&](int64_t k) { return last(k) > row; });
        const int64_t end = FirstOf(outputs, [&](int64_t k) { return t.rows.first[k] >= row + n; });
        cuda::ResizeRows(t.picture.as<float>(), z, put(t.rows), t.picture.dim(1), row, n, begin,
                         std::max(begin, end), be_.queue_);
      }
    }
  });
}

void CudaMedia::DoCutCrop(TensorView y, ConstTensorView picture, int32_t x, int32_t y0,
                          const PatchShape& shape) {
  be_.Op("CutCrop", [&] {
    cuda::CropOf crop = {.picture = picture.as<const float>(),
                         .height = static_cast<int>(picture.rows()),
                         .width = static_cast<int>(picture.dim(1) / 3),
                         .x = x,
                         .y = y0,
                         .per_side = shape.per_side,
                         .patch_size = shape.size,
                         .mean = {},
                         .std = {}};
    std::copy(shape.mean.begin(), shape.mean.end(), crop.mean);
    std::copy(shape.std.begin(), shape.std.end(), crop.std);
    cuda::CutCrop(cuda::RowsOf(y), crop, be_.queue_);
  });
}

}  // namespace sensorium
