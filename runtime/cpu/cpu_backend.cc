#include "runtime/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/cpu/conv1d.h"
#include "runtime/cpu/host_limits.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/kv_panels.h"
#include "runtime/cpu/moe.h"
#include "runtime/cpu/table_weight.h"

namespace sensorium {
namespace {

class CpuBuffer final : public DeviceBuffer {
 public:
  explicit CpuBuffer(AlignedBuffer bytes) : bytes_(std::move(bytes)) {}
  std::byte* data() override { return bytes_.data(); }
  size_t size_bytes() const override { return bytes_.size_bytes(); }

 private:
  AlignedBuffer bytes_;
};

// Element `column` of row `row`. Only for views, which know nothing of bounds: callers do.
std::byte* At(const TensorView& v, int64_t row, int64_t column = 0) {
  return v.bytes() + (row * v.row_stride() + column) * static_cast<int64_t>(SizeOf(v.dtype()));
}
const std::byte* At(const ConstTensorView& v, int64_t row, int64_t column = 0) {
  return v.bytes() + (row * v.row_stride() + column) * static_cast<int64_t>(SizeOf(v.dtype()));
}

const PackedLinear& Packed(const LinearWeight& w) {
  const auto* packed = dynamic_cast<const PackedLinear*>(&w);
  CHECK(packed != nullptr) << "this weight was packed by another backend";
  return *packed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CpuBackend::Create(const CpuBackendOptions& options) {
  if (options.dtype != DType::kFloat32 && options.dtype != DType::kBFloat16) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the CPU backend computes in float32 or bfloat16, not ", std::string(Name(options.dtype))));
  }
  if (options.threads < 0 || options.threads > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, ", expected 0 (all usable cores) to 4096"));
  }
  const CpuLevel best = DetectCpuLevel(), level = options.level.value_or(best);
  if (level > best) {
    return absl::FailedPreconditionError(
        absl::StrCat("cpu level ", std::string(Name(level)), " needs instructions this machine ",
                     "lacks; its best is ", std::string(Name(best))));
  }
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  return std::unique_ptr<Backend>(
      new CpuBackend(options.dtype, threads, options.pin_threads, level));
}

CpuBackend::CpuBackend(DType dtype, int threads, bool pin, CpuLevel level)
    : Backend(dtype),
      level_(level),
      kernels_(KernelsFor(level)),
      pool_(threads, pin),
      worker_scratch_(std::make_unique<AlignedBuffer[]>(threads)) {}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::description() const {
  const int n = pool_.threads();
  return absl::StrCat("cpu ", std::string(Name(level_)), ", ", n, n == 1 ? " thread" : " threads");
}

void CpuBackend::ForRows(int64_t rows, int64_t elements,
                         absl::FunctionRef<void(int64_t, int64_t)> body) {
  const int64_t run = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements));
  pool_.ParallelFor((rows + run - 1) / run,
                    [&](int64_t task) { body(task * run, std::min(rows, (task + 1) * run)); });
}

// ---- Memory and weights ------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<DeviceBuffer>> CpuBackend::Allocate(size_t size_bytes) {
  // Linux hands out more address space than there is memory and kills whoever touches it: ask
  // first.
  const size_t available = AvailableMemoryBytes();
  AlignedBuffer bytes;
  if (size_bytes <= available) bytes = AlignedBuffer::TryAllocate(size_bytes);
  if (size_bytes > 0 && bytes.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(size_bytes, " bytes of memory wanted, ", available, " are available"));
  }
  return std::unique_ptr<DeviceBuffer>(new CpuBuffer(std::move(bytes)));
}

std::unique_ptr<DeviceBuffer> CpuBackend::UploadFloat32(ConstTensorView source) {
  CHECK(IsFloat(source.dtype())) << Name(source.dtype());
  AlignedBuffer bytes(source.elements() * sizeof(float));
  const int64_t n = source.row_elements();
  for (int64_t r = 0; r < source.rows(); ++r) {
    kernels_.convert(bytes.data() + r * n * static_cast<int64_t>(sizeof(float)), DType::kFloat32,
                     At(source, r), source.dtype(), n);
  }
  return std::make_unique<CpuBuffer>(std::move(bytes));
}

size_t CpuBackend::KvBlockBytes(const KvLayout& layout) const {
  return KvHeadOffset(layout, dtype(), layout.layers, 0);
}

int64_t CpuBackend::NanosBetween(int32_t from, int32_t to) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(marks_[to] - marks_[from]).count();
}

std::unique_ptr<LinearWeight> CpuBackend::DoPackLinear(std::span<const LinearSource> parts) {
  return PackedLinear::Pack(parts, dtype(), level_, pool_, slabs_);
}

std::unique_ptr<LinearWeight> CpuBackend::DoPackConv1d(ConstTensorView weight,
                                                       ConstTensorView bias) {
  return PackedLinear::PackConv1d(weight, bias, dtype(), level_, pool_, slabs_);
}

std::unique_ptr<TableWeight> CpuBackend::DoMakeTable(std::span<const ConstTensorView> parts) {
  return std::make_unique<CpuTable>(parts);
}

// ---- Copies ------------------------------------------------------------------------------------

void CpuBackend::DoCopy(TensorView y, ConstTensorView x) {
  const int64_t n = x.row_elements();
  ForRows(x.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.convert(At(y, r), y.dtype(), At(x, r), x.dtype(), n);
    }
  });
}

void CpuBackend::DoCopyToHost(std::span<float> y, ConstTensorView x) {
  const int64_t n = x.row_elements();
  for (int64_t r = 0; r < x.rows(); ++r) {
    std::memcpy(y.data() + r * n, At(x, r), n * sizeof(float));
  }
}

void CpuBackend::DoCopyFromHost(TensorView y, std::span<const float> x) {
  const int64_t n = y.row_elements();
  ForRows(y.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.convert(At(y, r), y.dtype(), x.data() + r * n, DType::kFloat32, n);
    }
  });
}

void CpuBackend::DoCopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from) {
  std::memcpy(kv.arena + static_cast<size_t>(to) * kv.block_stride_bytes,
              kv.arena + static_cast<size_t>(from) * kv.block_stride_bytes,
              KvBlockBytes(kv.layout));
}

// ---- Rows --------------------------------------------------------------------------------------

void CpuBackend::DoEmbed(TensorView y, const TableWeight& table, std::span<const int32_t> ids,
                         bool add) {
  const auto* rows = dynamic_cast<const CpuTable*>(&table);
  CHECK(rows != nullptr) << "this table was made by another backend";
  const int64_t n = y.dim(1);
  const bool round = dtype() == DType::kBFloat16;  // as if the table were stored in dtype()
  ForRows(y.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (ids[i] < 0) continue;
      const CpuTable::Row row = rows->row(ids[i]);
      kernels_.embed(reinterpret_cast<float*>(At(y, i)), row.data, row.dtype, round, add, n);
    }
  });
}

void CpuBackend::DoGatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  const int64_t n = y.row_elements();
  const size_t bytes = static_cast<size_t>(n) * SizeOf(y.dtype());
  ForRows(y.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(At(y, i), At(x, rows[i]), bytes);
  });
}

void CpuBackend::DoScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  const int64_t n = x.row_elements();
  ForRows(x.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.embed(reinterpret_cast<float*>(At(y, rows[i])), At(x, i), x.dtype(),
                     /*round=*/false, /*add=*/true, n);
    }
  });
}

void CpuBackend::DoMeanRows(TensorView y, ConstTensorView x, int64_t group) {
  const int64_t n = y.row_elements();
  ForRows(y.rows(), n * group, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.mean_rows(At(y, i), At(x, i * group), x.row_stride(), group, x.dtype(), n);
    }
  });
}

// ---- Norms -------------------------------------------------------------------------------------

void CpuBackend::DoRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps,
                           bool add) {
  const int64_t n = x.dim(1);
  ForRows(x.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.rms_norm({.y = At(y, r),
                         .x = At(x, r),
                         .weight = weight.as<const float>(),
                         .bias = nullptr,
                         .n = n,
                         .eps = eps,
                         .y_type = y.dtype(),
                         .x_type = x.dtype(),
                         .add = add});
    }
  });
}

void CpuBackend::DoLayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight,
                             ConstTensorView bias, float eps) {
  const int64_t n = x.dim(1);
  ForRows(x.rows(), n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.layer_norm({.y = At(y, r),
                           .x = At(x, r),
                           .weight = weight.as<const float>(),
                           .bias = bias.as<const float>(),
                           .n = n,
                           .eps = eps,
                           .y_type = y.dtype(),
                           .x_type = x.dtype(),
                           .add = false});
    }
  });
}

// ---- Linear and MLP ----------------------------------------------------------------------------

void CpuBackend::DoLinear(TensorView y, ConstTensorView x, const LinearWeight& w,
                          Activation activation, bool add) {
  RunLinear(Packed(w), pool_, gemm_, y, x, activation, add);
}

void CpuBackend::DoSiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) {
  // Columns are cut too: one decode row of a big MLP is work for more than one core.
  constexpr int64_t kColumns = 8192;
  const int64_t parts = (y.dim(1) + kColumns - 1) / kColumns;
  ForRows(y.rows() * parts, std::min(y.dim(1), kColumns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / parts, column = i % parts * kColumns;
      kernels_.silu_mul(At(y, r, column), y.dtype(), At(up, r, column), up.dtype(),
                        At(gate, r, column), gate.dtype(), std::min(kColumns, y.dim(1) - column));
    }
  });
}

void CpuBackend::DoConv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                          int64_t kernel, int64_t stride, Activation activation) {
  const PackedLinear& packed = Packed(w);
  CHECK_EQ(packed.taps(), kernel);
  RunConv1d(packed, pool_, gemm_, y, x, seqs, stride, activation);
}

void CpuBackend::DoMoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) {
  RunMoeRoute(pool_, ids, weights, logits);
}

void CpuBackend::DoAddMoe(TensorView y, ConstTensorView x, ConstTensorView ids,
                          ConstTensorView weights, std::span<const ExpertWeights> experts) {
  RunAddMoe(pool_, gemm_, y, x, ids, weights, experts);
}

// ---- Attention: paged_attention.cc, encoder_attention.cc, store_kv.cc --------------------------

void CpuBackend::DoRope(TensorView x, std::span<const int32_t> positions,
                        std::span<const float> inv_freq) {
  const int64_t heads = x.dim(1), half = x.dim(2) / 2;
  const bool known = std::ranges::equal(positions, rope_positions_) &&
                     std::ranges::equal(inv_freq, rope_inv_freq_);
  float* table =
      reinterpret_cast<float*>(rope_table_.Reserve(positions.size() * 2 * half * sizeof(float)));
  ForRows(x.rows(), heads * 2 * half, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* cosines = table + t * 2 * half;
      float* sines = cosines + half;
      if (!known) {
        // The angle is rounded to float32 first, as the reference's outer product does.
        for (int64_t i = 0; i < half; ++i) {
          const float angle = static_cast<float>(positions[t]) * inv_freq[i];
          cosines[i] = std::cos(angle);
          sines[i] = std::sin(angle);
        }
      }
      kernels_.rope(At(x, t), x.dtype(), heads, half, cosines, sines);
    }
  });
  if (known) return;
  rope_positions_.assign(positions.begin(), positions.end());
  rope_inv_freq_.assign(inv_freq.begin(), inv_freq.end());
}

}  // namespace sensorium
