#include "cuda/device_weights.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/cuda_error.h"
#include "runtime/base/check.h"

namespace sensorium::cuda {
namespace {

// IEEE binary16 -> binary32, exactly. Denormals by a multiplication with 2^112, which moves the
// exponent's bias from 15 to 127 for every finite value.
float WidenFloat16(uint16_t h) {
  const uint32_t sign = uint32_t{h} >> 15 << 31, magnitude = h & 0x7fffu;
  const uint32_t bits =
      magnitude >= 0x7c00
          ? magnitude << 13 | 0x7f800000u
          : std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  return std::bit_cast<float>(bits | sign);
}

uint16_t RoundToBFloat16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if (f != f) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The i-th element of an array at any alignment: a safetensors file aligns to nothing.
float ReadFloat(const std::byte* p, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) {
    float f;
    std::memcpy(&f, p + i * 4, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, p + i * 2, 2);
  return dtype == DType::kFloat16 ? WidenFloat16(h) : std::bit_cast<float>(uint32_t{h} << 16);
}

void WriteFloat(std::byte* p, DType storage, int64_t i, float f) {
  if (storage == DType::kFloat32) {
    std::memcpy(p + i * 4, &f, 4);
  } else {
    const uint16_t h = RoundToBFloat16(f);
    std::memcpy(p + i * 2, &h, 2);
  }
}

const std::byte* RowOf(const ConstTensorView& v, int64_t row) {
  return v.bytes() + row * v.row_stride() * static_cast<int64_t>(SizeOf(v.dtype()));
}

// Rows of `row_bytes` made by `write` on the host, some at a time, into a new buffer.
template <typename Write>
std::unique_ptr<CudaBuffer> UploadRows(int64_t rows, size_t row_bytes, DeviceMemory& memory,
                                       cudaStream_t stream, Write write) {
  std::unique_ptr<CudaBuffer> buffer =
      memory.Allocate(static_cast<size_t>(rows) * row_bytes, MemoryUse::kWeights);
  const int64_t chunk = std::max<int64_t>(1, (size_t{1} << 20) / std::max<size_t>(1, row_bytes));
  std::vector<std::byte> staged(static_cast<size_t>(std::min(chunk, rows)) * row_bytes);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(rows, begin + chunk);
    std::fill(staged.begin(), staged.end(), std::byte{0});
    for (int64_t r = begin; r < end; ++r) write(staged.data() + (r - begin) * row_bytes, r);
    CUDA_CHECK(cudaMemcpyAsync(buffer->data() + begin * row_bytes, staged.data(),
                               static_cast<size_t>(end - begin) * row_bytes, cudaMemcpyHostToDevice,
                               stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));  // `staged` is written anew
  }
  return buffer;
}

}  // namespace

std::unique_ptr<CudaLinear> CudaLinear::Pack(std::span<const LinearSource> parts, DType storage,
                                             DeviceMemory& memory, cudaStream_t stream) {
  for (const LinearSource& part : parts) CHECK_EQ(part.weight.rank(), 2);
  return PackTaps(parts, 1, storage, memory, stream);
}

std::unique_ptr<CudaLinear> CudaLinear::PackConv1d(ConstTensorView weight, ConstTensorView bias,
                                                   DType storage, DeviceMemory& memory,
                                                   cudaStream_t stream) {
  CHECK_EQ(weight.rank(), 3);
  const LinearSource part = {weight, bias};
  return PackTaps({&part, 1}, weight.dim(2), storage, memory, stream);
}

std::unique_ptr<CudaLinear> CudaLinear::PackTaps(std::span<const LinearSource> parts, int64_t taps,
                                                 DType storage, DeviceMemory& memory,
                                                 cudaStream_t stream) {
  CHECK(!parts.empty());
  std::unique_ptr<CudaLinear> w(new CudaLinear);
  w->in_ = parts[0].weight.dim(1);
  w->taps_ = taps;
  w->in_padded_ = CeilDiv(w->in_ * taps, kInMultiple) * kInMultiple;
  for (const LinearSource& part : parts) w->out_ += part.weight.rows();
  CHECK(w->in_ > 0 && w->out_ > 0 && taps > 0);
  const int64_t out_padded = w->out_padded();

  // The part and the row in it of output `out`; no part behind the last.
  const auto find = [&](int64_t out) -> std::pair<const LinearSource*, int64_t> {
    for (const LinearSource& part : parts) {
      if (out < part.weight.rows()) return {&part, out};
      out -= part.weight.rows();
    }
    return {nullptr, 0};
  };
  w->weight_ = UploadRows(out_padded, static_cast<size_t>(w->in_padded_) * SizeOf(storage), memory,
                          stream, [&](std::byte* row, int64_t out) {
                            const auto [part, r] = find(out);
                            if (part == nullptr) return;
                            const ConstTensorView& v = part->weight;
                            for (int64_t tap = 0; tap < taps; ++tap) {
                              for (int64_t i = 0; i < w->in_; ++i) {
                                WriteFloat(row, storage, tap * w->in_ + i,
                                           ReadFloat(RowOf(v, r), v.dtype(), i * taps + tap));
                              }
                            }
                          });
  w->bias_ =
      UploadRows(out_padded, sizeof(float), memory, stream, [&](std::byte* element, int64_t out) {
        const auto [part, r] = find(out);
        if (part == nullptr || part->bias.bytes() == nullptr) return;
        // A vector's elements are its rows, and may be strided like them.
        WriteFloat(element, DType::kFloat32, 0,
                   ReadFloat(part->bias.bytes(), part->bias.dtype(), r * part->bias.row_stride()));
      });
  return w;
}

CudaTable::CudaTable(std::span<const ConstTensorView> parts, DType storage, DeviceMemory& memory,
                     cudaStream_t stream) {
  columns_ = parts[0].dim(1);
  for (const ConstTensorView& part : parts) rows_ += part.rows();
  buffer_ =
      UploadRows(rows_, static_cast<size_t>(columns_) * SizeOf(storage), memory, stream,
                 [&](std::byte* to, int64_t row) {
                   const ConstTensorView* part = parts.data();
                   while (row >= part->rows()) row -= (part++)->rows();
                   for (int64_t c = 0; c < columns_; ++c) {
                     WriteFloat(to, storage, c, ReadFloat(RowOf(*part, row), part->dtype(), c));
                   }
                 });
}

std::unique_ptr<CudaBuffer> UploadFloat32(ConstTensorView source, DeviceMemory& memory,
                                          cudaStream_t stream) {
  const int64_t n = source.row_elements();
  return UploadRows(source.rows(), static_cast<size_t>(n) * sizeof(float), memory, stream,
                    [&](std::byte* to, int64_t row) {
                      for (int64_t c = 0; c < n; ++c) {
                        WriteFloat(to, DType::kFloat32, c,
                                   ReadFloat(RowOf(source, row), source.dtype(), c));
                      }
                    });
}

}  // namespace sensorium::cuda
