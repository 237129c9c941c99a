#include "runtime/cpu/packed_linear.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/cpu/gemm.h"

namespace sensorium {
namespace {

constexpr int64_t kPanel = PackedLinear::kPanel;

// IEEE binary16 -> binary32, exactly. Denormals by a multiplication with 2^112, which moves the
// exponent's bias from 15 to 127 for every finite value.
float WidenFloat16(uint16_t h) {
  const uint32_t sign = uint32_t{h} >> 15 << 31, magnitude = h & 0x7fffu;
  uint32_t bits = magnitude << 13;
  if (magnitude >= 0x7c00) {
    bits |= 0x7f800000u;  // infinity, NaN
  } else {
    float f;
    std::memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    std::memcpy(&bits, &f, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t RoundToBFloat16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (f != f) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The i-th element of an array of this dtype at any alignment.
float ReadFloat(const std::byte* p, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) {
    float f;
    std::memcpy(&f, p + i * 4, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, p + i * 2, 2);
  if (dtype == DType::kFloat16) return WidenFloat16(h);
  const uint32_t bits = uint32_t{h} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// n elements `stride` apart, as float32.
void ReadFloats(float* y, const std::byte* p, DType dtype, int64_t stride, int64_t n) {
  switch (dtype) {  // a loop each, for the compiler to vectorise
    case DType::kFloat32:
      for (int64_t i = 0; i < n; ++i) y[i] = ReadFloat(p, DType::kFloat32, i * stride);
      return;
    case DType::kBFloat16:
      for (int64_t i = 0; i < n; ++i) y[i] = ReadFloat(p, DType::kBFloat16, i * stride);
      return;
    case DType::kFloat16:
      for (int64_t i = 0; i < n; ++i) y[i] = ReadFloat(p, DType::kFloat16, i * stride);
      return;
    default:
      break;
  }
  CHECK(false) << "a weight cannot be " << Name(dtype);
}

// One output's source: its inputs of tap t are at data + t, + t + taps, ... elements.
struct Row {
  const std::byte* data = nullptr;  // null: padding
  DType dtype = DType::kFloat32;
};

// Interleaves one tap of 32 rows into `panel` [steps, 32, 1 or 2 inputs]. By runs of inputs, so
// that each row is read in order, from where the file is mapped, and transposed within L1.
void PackTap(std::byte* panel, const Row (&rows)[kPanel], int64_t tap, int64_t taps, int64_t in,
             DType storage) {
  constexpr int64_t kRun = 128;                 // inputs, even
  alignas(64) float staged[kPanel][kRun + 16];  // the pad keeps rows out of one another's sets
  for (int64_t begin = 0; begin < in; begin += kRun) {
    const int64_t n = std::min(kRun, in - begin);
    for (int64_t o = 0; o < kPanel; ++o) {
      if (rows[o].data == nullptr) {
        std::fill_n(staged[o], kRun, 0.f);
        continue;
      }
      const int64_t offset = (begin * taps + tap) * static_cast<int64_t>(SizeOf(rows[o].dtype));
      if (taps == 1) {
        ReadFloats(staged[o], rows[o].data + offset, rows[o].dtype, 1, n);
      } else {
        ReadFloats(staged[o], rows[o].data + offset, rows[o].dtype, taps, n);
      }
      if (n % 2 != 0) staged[o][n] = 0.f;  // the missing half of the last pair
    }
    if (storage == DType::kFloat32) {
      float* out = reinterpret_cast<float*>(panel) + begin * kPanel;
      for (int64_t k = 0; k < n; ++k)
        for (int64_t o = 0; o < kPanel; ++o) out[k * kPanel + o] = staged[o][k];
    } else {
      uint16_t* out = reinterpret_cast<uint16_t*>(panel) + begin * kPanel;
      for (int64_t k = 0; k < n; k += 2)
        for (int64_t o = 0; o < kPanel; ++o) {
          out[k * kPanel + 2 * o] = RoundToBFloat16(staged[o][k]);
          out[k * kPanel + 2 * o + 1] = RoundToBFloat16(staged[o][k + 1]);
        }
    }
  }
}

}  // namespace

std::unique_ptr<PackedLinear> PackedLinear::Pack(std::span<const LinearSource> parts, DType storage,
                                                 CpuLevel level, ThreadPool& pool,
                                                 WeightSlabs& slabs) {
  for (const LinearSource& part : parts) CHECK_EQ(part.weight.rank(), 2);
  return PackTaps(parts, 1, storage, level, pool, slabs);
}

std::unique_ptr<PackedLinear> PackedLinear::PackConv1d(ConstTensorView weight, ConstTensorView bias,
                                                       DType storage, CpuLevel level,
                                                       ThreadPool& pool, WeightSlabs& slabs) {
  CHECK_EQ(weight.rank(), 3);
  const LinearSource part = {weight, bias};
  return PackTaps({&part, 1}, weight.dim(2), storage, level, pool, slabs);
}

std::unique_ptr<PackedLinear> PackedLinear::PackTaps(std::span<const LinearSource> parts,
                                                     int64_t taps, DType storage, CpuLevel level,
                                                     ThreadPool& pool, WeightSlabs& slabs) {
  CHECK(storage == DType::kFloat32 || storage == DType::kBFloat16);
  CHECK(!parts.empty());
  std::unique_ptr<PackedLinear> w(new PackedLinear);
  w->in_ = parts[0].weight.dim(1);
  w->taps_ = taps;
  w->storage_ = storage;
  w->level_ = level;
  for (const LinearSource& part : parts) {
    CHECK_EQ(part.weight.dim(1), w->in_);
    w->out_ += part.weight.rows();
  }
  CHECK(w->in_ > 0 && w->out_ > 0 && taps > 0);

  const int64_t bias_bytes = w->num_panels() * kPanel * static_cast<int64_t>(sizeof(float));
  w->bias_ = AlignedBuffer(bias_bytes);
  float* bias = reinterpret_cast<float*>(w->bias_.data());
  std::memset(bias, 0, bias_bytes);
  for (const LinearSource& part : parts) {
    if (part.bias.bytes() != nullptr) {
      CHECK(part.bias.rank() == 1 && part.bias.rows() == part.weight.rows());
      // A vector's elements are its rows, and may be strided like them.
      ReadFloats(bias, part.bias.bytes(), part.bias.dtype(), part.bias.row_stride(),
                 part.bias.rows());
    }
    bias += part.weight.rows();
  }

  w->panels_ = slabs.Take(w->num_panels() * w->panel_bytes());
  pool.ParallelFor(w->num_panels(), [&](int64_t p) {
    Row rows[kPanel];
    int64_t first = 0;  // of the part, among all outputs
    for (const LinearSource& part : parts) {
      const ConstTensorView& v = part.weight;
      const int64_t begin = std::max(p * kPanel, first);
      const int64_t end = std::min((p + 1) * kPanel, first + v.rows());
      for (int64_t o = begin; o < end; ++o) {
        const int64_t offset =
            (o - first) * v.row_stride() * static_cast<int64_t>(SizeOf(v.dtype()));
        rows[o - p * kPanel] = {v.bytes() + offset, v.dtype()};
      }
      first += v.rows();
    }
    std::byte* panel = w->panels_.get() + p * w->panel_bytes();
    for (int64_t tap = 0; tap < taps; ++tap) {
      PackTap(panel + tap * w->steps_per_tap() * kGemmStepBytes, rows, tap, taps, w->in_, storage);
    }
  });
  return w;
}

void RunLinear(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
               ConstTensorView x, Activation activation, bool add) {
  CHECK(x.rank() == 2 && x.dim(1) == w.in_features() && w.taps() == 1);
  CHECK(x.dtype() == DType::kFloat32 || x.dtype() == DType::kBFloat16);
  const GemmInput input = KernelSet(w).input;
  const int64_t x_stride = x.row_stride() * static_cast<int64_t>(SizeOf(x.dtype()));
  GemmActivations a = {x.bytes(), x.rows(), x_stride, 0};

  // x is read where it is if it has the kernels' type and whole steps, and its rows do not crowd in
  // few sets of the caches.
  const bool same_type =
      x.dtype() == DType::kFloat32 ? input == GemmInput::kFloat32 : input == GemmInput::kBFloat16;
  const bool whole_steps = input == GemmInput::kFloat32 || w.in_features() % 2 == 0;
  if (!same_type || !whole_steps || (x.rows() > 4 && x_stride % 2048 == 0)) {
    const GemmKernels& kernels = GemmKernelsFor(w.level());
    const int64_t row_bytes = InputRowBytes(w);
    const int64_t padded = row_bytes / (input == GemmInput::kBFloat16 ? 2 : 4);
    a.row_stride = SpreadStride(row_bytes);
    std::byte* out = scratch.activations.Reserve(a.rows * a.row_stride);
    a.data = out;
    // Some 16 K elements a task: less than that is done before another thread is awake.
    const int64_t rows_per_task = std::max<int64_t>(1, 16384 / w.in_features());
    pool.ParallelFor((a.rows + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
      const int64_t end = std::min((task + 1) * rows_per_task, a.rows);
      for (int64_t r = task * rows_per_task; r < end; ++r) {
        kernels.convert(out + r * a.row_stride, input, x.bytes() + r * x_stride,
                        x.dtype() == DType::kBFloat16, w.in_features(), padded);
      }
    });
  }
  RunGemm(w, pool, scratch, y, a, activation, add);
}

}  // namespace sensorium
