#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/carve.h"
#include "cuda/cuda_error.h"
#include "cuda/cuda_media.h"
#include "cuda/kernels/conv1d.h"
#include "cuda/kernels/convert_rows.h"
#include "cuda/kernels/layer_norm.h"
#include "cuda/kernels/moe.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/kernels/rope.h"
#include "cuda/kernels/silu_mul.h"
#include "cuda/views.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

constexpr int kDevice = 0;

using cuda::Carve;
using cuda::CeilDiv;
using cuda::CudaBuffer;
using cuda::CudaLinear;
using cuda::CudaTable;
using cuda::RowsOf;
using cuda::TypeOf;
using cuda::Uploads;

const CudaLinear& Packed(const LinearWeight& w) {
  const auto* packed = dynamic_cast<const CudaLinear*>(&w);
  CHECK(packed != nullptr) << "this weight was packed by another backend";
  return *packed;
}

cuda::Activation ActivationOf(Activation a) {
  switch (a) {
    case Activation::kNone:
      return cuda::Activation::kNone;
    case Activation::kGelu:
      return cuda::Activation::kGelu;
    case Activation::kQuickGelu:
      return cuda::Activation::kQuickGelu;
  }
  CHECK(false) << static_cast<int>(a);
  return cuda::Activation::kNone;
}

cuda::LinearProblem ProblemOf(const CudaLinear& w, cuda::Type type) {
  return {.y = {},
          .x = {},
          .rows = 0,
          .in = w.in_features() * w.taps(),
          .in_padded = w.in_padded(),
          .out = w.out_features(),
          .type = type,
          .matrix = w.matrix()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const CudaBackendOptions& options) {
  if (options.dtype != DType::kFloat32 && options.dtype != DType::kBFloat16) {
    return absl::InvalidArgumentError(
        absl::StrCat("the CUDA backend computes in float32 or bfloat16, not ",
                     std::string(Name(options.dtype))));
  }
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: ", cudaGetErrorString(found)));
  }
  try {
    int major = 0, minor = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, kDevice));
    CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, kDevice));
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, kDevice));
    const std::string name = absl::StrCat(properties.name, " (", major, ".", minor, ")");
    if (major < 8) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the CUDA device, ", name, ", is older than compute capability 8.0 (Ampere)"));
    }
    CudaParts parts;
    parts.queue = std::make_unique<cuda::Queue>();
    parts.memory = cuda::DeviceMemory::Create(options.memory_share);
    if (parts.memory == nullptr) {
      size_t free_bytes = 0, total_bytes = 0;
      CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
      return absl::ResourceExhaustedError(absl::StrCat(
          options.memory_share, " of the CUDA device's free memory wanted, ", free_bytes >> 20,
          " of ", total_bytes >> 20, " MiB are free; less may be taken as device.memory_share"));
    }
    cuda::DeviceMemory& memory = *parts.memory;
    constexpr cuda::MemoryUse kUse = cuda::MemoryUse::kWorkspace;
    const bool fast = options.determinism == Determinism::kFast;
    const bool graphs = options.graphs && !options.wait_after_each_op;
    const size_t range_bytes = graphs ? options.graph_upload_bytes : 0;
    size_t wanted = options.upload_bytes + range_bytes;
    parts.uploads = Uploads::Create(options.upload_bytes, range_bytes, memory, *parts.queue);
    if (parts.uploads != nullptr) {
      wanted = options.scratch_bytes;
      parts.scratch = memory.TryAllocate(wanted, kUse);
    }
    if (parts.scratch != nullptr && fast) {
      wanted = cuda::LibraryGemm::kWorkspaceBytes;
      parts.library_workspace = memory.TryAllocate(wanted, kUse);
    }
    if (parts.scratch == nullptr || (fast && parts.library_workspace == nullptr)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the CUDA device's memory: ", memory.Plan(wanted, kUse)));
    }
    if (fast) {
      parts.library = cuda::LibraryGemm::Create(*parts.library_workspace, *parts.queue);
      parts.convolutions = cuda::LibraryConv::Create(*parts.library_workspace, *parts.queue);
    }
    parts.downloads = cuda::PinnedBuffer::TryAllocate(options.download_bytes);
    if (parts.downloads == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(options.download_bytes, " bytes of pinned host memory are not to be had"));
    }
    parts.answers = cuda::TokenAnswers::Create(options.answer_bytes);
    if (parts.answers == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(options.answer_bytes, " bytes of pinned host memory are not to be had"));
    }
    std::string description = absl::StrCat("cuda: ", name, fast ? ", fast products" : "",
                                           parts.convolutions != nullptr ? " and convolutions" : "",
                                           graphs ? ", graphs" : "");
    return std::unique_ptr<Backend>(
        new CudaBackend(options, std::move(description), std::move(parts)));
  } catch (const std::exception& e) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA device cannot be opened: ", e.what()));
  }
}

CudaBackend::CudaBackend(const CudaBackendOptions& options, std::string description,
                         CudaParts parts)
    : Backend(options.dtype),
      options_(options),
      description_(std::move(description)),
      owned_queue_(std::move(parts.queue)),
      queue_(*owned_queue_),
      memory_(std::move(parts.memory)),
      uploads_(std::move(parts.uploads)),
      downloads_(std::move(parts.downloads)),
      answers_(std::move(parts.answers)),
      scratch_(std::move(parts.scratch)),
      library_workspace_(std::move(parts.library_workspace)),
      library_(std::move(parts.library)),
      convolutions_(std::move(parts.convolutions)),
      passes_(options.graphs && !options.wait_after_each_op
                  ? std::make_unique<cuda::RecordedPasses>(queue_, *uploads_)
                  : nullptr),
      media_(std::make_unique<CudaMedia>(*this)) {}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(queue_.stream());  // the buffers must outlive what is queued
}

std::string CudaBackend::description() const { return description_; }

MediaOps* CudaBackend::media_ops() { return media_.get(); }

cuda::Type CudaBackend::type() const { return TypeOf(dtype()); }

void CudaBackend::Named(const char* name, absl::FunctionRef<void()> calls) {
  try {
    calls();
  } catch (const cuda::CudaError& e) {
    throw cuda::CudaError(e.error(), absl::StrCat(name, ", ", e.failed()), Suspects());
  } catch (const std::exception& e) {  // cuBLASLt's
    throw std::runtime_error(absl::StrCat(name, ", ", e.what(), Suspects()));
  }
}

void CudaBackend::Op(const char* name, absl::FunctionRef<void()> calls) {
  Named(name, [&] {
    calls();
    cuda::Check(cudaGetLastError(), "a launch");
    if (options_.wait_after_each_op) {
      cuda::Check(cudaStreamSynchronize(queue_.stream()), "its kernels");
      uploads_->Recycle();
    }
  });
  if (!queue_.plain()) {
    passes_->OpDone(name);
  } else if (!options_.wait_after_each_op) {
    queued_.Add(name, 1);
  }
}

std::string CudaBackend::Suspects() const {
  if (queued_.counts().empty()) return "";
  std::string text = "; or an op queued before it failed (CUDA_LAUNCH_BLOCKING=1 tells which):";
  for (const auto& [name, times] : queued_.counts()) absl::StrAppend(&text, " ", times, " ", name);
  return text;
}

// ---- Passes ------------------------------------------------------------------------------------

void CudaBackend::DoPass(const PassKey& key, absl::FunctionRef<void()> ops) {
  bool replayed = false;
  if (passes_ != nullptr) {
    Named("a recorded pass", [&] { replayed = passes_->Replay(key, ops, queued_); });
  }
  if (!replayed) ops();
}

bool CudaBackend::DoRecordPass(const PassKey& key, absl::FunctionRef<void()> ops) {
  bool recorded = false;
  if (passes_ != nullptr) {
    Named("recording a pass", [&] { recorded = passes_->Record(key, ops); });
  }
  return recorded;
}

// ---- Waiting and time --------------------------------------------------------------------------

void CudaBackend::WaitForAnswers() {
  try {
    queue_.Wait();
  } catch (...) {
    answers_->Drop();
    throw;
  }
  answers_->Deliver();
  queued_.Clear();
  uploads_->Recycle();
}

void CudaBackend::Wait() {
  Op("Wait", [&] { WaitForAnswers(); });
}

void CudaBackend::ReserveMarks(int32_t count) {
  Op("ReserveMarks", [&] { marks_.Reserve(static_cast<size_t>(count)); });
}

void CudaBackend::Mark(int32_t i) {
  Op("Mark", [&] { marks_.Record(static_cast<size_t>(i), queue_); });
}

int64_t CudaBackend::NanosBetween(int32_t from, int32_t to) {
  return marks_.NanosBetween(static_cast<size_t>(from), static_cast<size_t>(to));
}

// ---- Memory and weights ------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<DeviceBuffer>> CudaBackend::Allocate(size_t size_bytes) {
  constexpr cuda::MemoryUse kUse = cuda::MemoryUse::kBuffers;
  std::unique_ptr<CudaBuffer> buffer = memory_->TryAllocate(size_bytes, kUse);
  if (buffer == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the CUDA device's memory: ", memory_->Plan(size_bytes, kUse)));
  }
  return std::unique_ptr<DeviceBuffer>(std::move(buffer));
}

std::unique_ptr<DeviceBuffer> CudaBackend::UploadFloat32(ConstTensorView source) {
  CHECK(IsFloat(source.dtype())) << Name(source.dtype());
  return cuda::UploadFloat32(source, *memory_, queue_.stream());
}

size_t CudaBackend::KvBlockBytes(const KvLayout& layout) const {
  return size_t{2} * layout.layers * layout.kv_heads * layout.block_size * layout.head_dim *
         SizeOf(dtype());
}

std::unique_ptr<LinearWeight> CudaBackend::DoPackLinear(std::span<const LinearSource> parts) {
  std::unique_ptr<CudaLinear> w = CudaLinear::Pack(parts, dtype(), *memory_, queue_.stream());
  if (library_ != nullptr) library_->Pin(type(), w->in_padded(), w->out_padded());
  return w;
}

std::unique_ptr<LinearWeight> CudaBackend::DoPackConv1d(ConstTensorView weight,
                                                        ConstTensorView bias) {
  return CudaLinear::PackConv1d(weight, bias, dtype(), *memory_, queue_.stream());
}

std::unique_ptr<TableWeight> CudaBackend::DoMakeTable(std::span<const ConstTensorView> parts) {
  return std::make_unique<CudaTable>(parts, dtype(), *memory_, queue_.stream());
}

// ---- Copies ------------------------------------------------------------------------------------

void CudaBackend::DoCopy(TensorView y, ConstTensorView x) {
  Op("Copy", [&] { cuda::ConvertRows(RowsOf(y), RowsOf(x), x.rows(), x.row_elements(), queue_); });
}

void CudaBackend::DoCopyToHost(std::span<float> y, ConstTensorView x) {
  CHECK(queue_.plain()) << "CopyToHost in a pass";
  Op("CopyToHost", [&] {
    const size_t row_bytes = static_cast<size_t>(x.row_elements()) * sizeof(float);
    const size_t pitch = static_cast<size_t>(x.row_stride()) * sizeof(float);
    const auto rows = static_cast<size_t>(x.rows());
    auto* to = reinterpret_cast<std::byte*>(y.data());
    // As much at once as the pinned buffer holds: whole rows, or parts of one.
    const size_t capacity = downloads_->size_bytes();
    const size_t most_bytes = std::min(row_bytes, capacity);
    const size_t most_rows = std::max<size_t>(1, capacity / row_bytes);
    for (size_t row = 0; row < rows; row += most_rows) {
      const size_t n = std::min(most_rows, rows - row);
      for (size_t at = 0; at < row_bytes; at += most_bytes) {
        const size_t bytes = std::min(most_bytes, row_bytes - at);
        // A single row's pitch may be anything, CUDA's may not be less than the row.
        CUDA_CHECK(cudaMemcpy2DAsync(downloads_->data(), bytes, x.bytes() + row * pitch + at,
                                     std::max(pitch, bytes), bytes, n, cudaMemcpyDeviceToHost,
                                     queue_.stream()));
        queue_.Wait();
        std::memcpy(to + row * row_bytes + at, downloads_->data(), n * bytes);
      }
    }
    queued_.Clear();
    uploads_->Recycle();
  });
}

void CudaBackend::DoCopyFromHost(TensorView y, std::span<const float> x) {
  Op("CopyFromHost", [&] {
    const int64_t columns = y.row_elements();
    const size_t row_bytes = static_cast<size_t>(columns) * sizeof(float);
    const auto most = static_cast<int64_t>((uploads_->capacity_bytes() / 2) / row_bytes);
    CHECK_GT(most, 0) << "a row of " << row_bytes << " bytes, an upload buffer of "
                      << uploads_->capacity_bytes();
    for (int64_t begin = 0; begin < y.rows(); begin += most) {
      const int64_t rows = std::min(most, y.rows() - begin);
      uploads_->Reserve(static_cast<size_t>(rows) * row_bytes);
      const std::byte* sent = uploads_->PutBytes(
          std::as_bytes(x.subspan(begin * columns, rows * columns)), /*owner=*/nullptr);
      cuda::ConvertRows(RowsOf(y.Rows(begin, begin + rows)), {sent, columns, cuda::Type::kFloat32},
                        rows, columns, queue_);
    }
  });
}

void CudaBackend::DoCopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from) {
  Op("CopyKvBlock", [&] {
    CHECK(queue_.plain()) << "CopyKvBlock in a pass";
    CUDA_CHECK(cudaMemcpyAsync(kv.arena + static_cast<size_t>(to) * kv.block_stride_bytes,
                               kv.arena + static_cast<size_t>(from) * kv.block_stride_bytes,
                               KvBlockBytes(kv.layout), cudaMemcpyDeviceToDevice, queue_.stream()));
  });
}

// ---- Rows --------------------------------------------------------------------------------------

void CudaBackend::DoEmbed(TensorView y, const TableWeight& table, std::span<const int32_t> ids,
                          bool add) {
  Op("Embed", [&] {
    const auto* rows = dynamic_cast<const CudaTable*>(&table);
    CHECK(rows != nullptr) << "this table was made by another backend";
    uploads_->Reserve(ids.size_bytes());
    cuda::EmbedRows(y.as<float>(), y.row_stride(), {rows->data(), rows->columns(), type()},
                    uploads_->Put(ids), add, y.rows(), y.dim(1), queue_);
  });
}

void CudaBackend::DoGatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  Op("GatherRows", [&] {
    uploads_->Reserve(rows.size_bytes());
    cuda::GatherRows(RowsOf(y), RowsOf(x), uploads_->Put(rows), y.rows(), y.row_elements(), queue_);
  });
}

void CudaBackend::DoScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  Op("ScatterAddRows", [&] {
    uploads_->Reserve(rows.size_bytes());
    cuda::ScatterAddRows(y.as<float>(), y.row_stride(), RowsOf(x), uploads_->Put(rows), x.rows(),
                         x.row_elements(), queue_);
  });
}

void CudaBackend::DoMeanRows(TensorView y, ConstTensorView x, int64_t group) {
  Op("MeanRows",
     [&] { cuda::MeanRows(RowsOf(y), RowsOf(x), group, y.rows(), y.row_elements(), queue_); });
}

// ---- Norms -------------------------------------------------------------------------------------

void CudaBackend::DoRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps,
                            bool add) {
  Op("RmsNorm", [&] {
    cuda::RmsNorm(RowsOf(y), RowsOf(x), weight.as<const float>(), eps, add, x.rows(), x.dim(1),
                  queue_);
  });
}

void CudaBackend::DoLayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight,
                              ConstTensorView bias, float eps) {
  Op("LayerNorm", [&] {
    cuda::LayerNorm(RowsOf(y), RowsOf(x), weight.as<const float>(), bias.as<const float>(), eps,
                    x.rows(), x.dim(1), queue_);
  });
}

// ---- Linear and MLP ----------------------------------------------------------------------------

void CudaBackend::RunLinear(cuda::LinearProblem p) {
  const int64_t out_padded = CeilDiv(p.out, cuda::kOutMultiple) * cuda::kOutMultiple;
  const size_t row_bytes = static_cast<size_t>(p.in_padded) * SizeOf(dtype()) +
                           static_cast<size_t>(out_padded) * sizeof(float);
  int64_t most = cuda::LibraryGemm::kMostBucket;
  while (most > 1 && Carve::Padded(most * row_bytes) + 512 > scratch_->size_bytes()) most /= 2;
  // Few rows are bound by the weight's bytes: no library does better than to read them once.
  if (library_ == nullptr || p.rows < cuda::LibraryGemm::kLeastBucket ||
      most < cuda::LibraryGemm::kLeastBucket) {
    cuda::Linear(p, queue_);
    return;
  }
  const auto advance = [](auto& rows, int64_t n) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(rows.data)>>,
                                    const std::byte, std::byte>;
    rows.data = static_cast<Byte*>(rows.data) +
                n * rows.stride * (rows.type == cuda::Type::kFloat32 ? 4 : 2);
  };
  for (int64_t left = p.rows; left > 0; left -= p.rows) {
    p.rows = std::min(most, left);
    const int64_t bucket = cuda::LibraryGemm::BucketFor(p.rows);
    Carve scratch(scratch_->data());
    auto* sums = scratch.Take<float>(bucket * out_padded);
    auto* padded =
        scratch.Take<std::byte>(bucket * p.in_padded * static_cast<int64_t>(SizeOf(dtype())));
    cuda::PadRows({padded, p.in_padded, type()}, p.x, p.rows, p.in, bucket, p.in_padded, queue_);
    library_->Run(sums, padded, p.matrix.weight, type(), bucket, p.in_padded, out_padded);
    cuda::FinishLinear(p, {sums, out_padded, cuda::Type::kFloat32}, queue_);
    advance(p.x, p.rows);
    advance(p.y, p.rows);
  }
}

void CudaBackend::DoLinear(TensorView y, ConstTensorView x, const LinearWeight& w,
                           Activation activation, bool add) {
  Op("Linear", [&] {
    const CudaLinear& packed = Packed(w);
    CHECK_EQ(packed.taps(), 1);
    cuda::LinearProblem p = ProblemOf(packed, type());
    p.y = RowsOf(y);
    p.x = RowsOf(x);
    p.rows = x.rows();
    p.activation = ActivationOf(activation);
    p.add = add;
    RunLinear(p);
  });
}

void CudaBackend::DoSiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) {
  Op("SiluMul",
     [&] { cuda::SiluMul(RowsOf(y), RowsOf(up), RowsOf(gate), y.rows(), y.dim(1), queue_); });
}

bool CudaBackend::RunLibraryConv(TensorView y, ConstTensorView x, const CudaLinear& w, int64_t seqs,
                                 const cuda::Conv1dShape& shape, Activation activation) {
  if (convolutions_ == nullptr) return false;
  const int64_t out = w.out_features(), window = shape.kernel * shape.in;
  const auto element = static_cast<int64_t>(SizeOf(dtype()));
  // What the library cannot read where it lies is copied: rows of another type or at an odd
  // address, and a weight that is padded.
  const bool copy_x = x.dtype() != dtype() || reinterpret_cast<uintptr_t>(x.bytes()) % 16 != 0;
  const bool copy_w = w.in_padded() != window;
  const size_t x_bytes = copy_x ? static_cast<size_t>(x.elements() * element) : 0;
  const size_t w_bytes = copy_w ? static_cast<size_t>(out * window * element) : 0;
  const size_t sums_bytes = static_cast<size_t>(y.elements()) * sizeof(float);
  if (Carve::Padded(x_bytes) + Carve::Padded(w_bytes) + Carve::Padded(sums_bytes) >
      scratch_->size_bytes()) {
    return false;
  }
  Carve scratch(scratch_->data());
  auto* x_copy = scratch.Take<std::byte>(static_cast<int64_t>(x_bytes));
  auto* w_copy = scratch.Take<std::byte>(static_cast<int64_t>(w_bytes));
  auto* sums = scratch.Take<std::byte>(static_cast<int64_t>(sums_bytes));
  const cuda::LibraryConvProblem p = {
      .x = copy_x ? cuda::ConstRows{x_copy, shape.in, type()} : RowsOf(x),
      .w = copy_w ? w_copy : w.matrix().weight,
      .sums = sums,
      .seqs = seqs,
      .out = out,
      .shape = shape,
      .type = type()};
  const cuda::Type* sums_type = convolutions_->SumsType(p);
  if (sums_type == nullptr) return false;
  if (copy_x) {
    cuda::ConvertRows({x_copy, shape.in, type()}, RowsOf(x), x.rows(), shape.in, queue_);
  }
  if (copy_w) {
    const auto row = static_cast<size_t>(window * element);
    const auto pitch = static_cast<size_t>(w.in_padded() * element);
    const void* from = w.matrix().weight;
    queue_.Do(
        [&] {
          CUDA_CHECK(cudaMemcpy2DAsync(w_copy, row, from, pitch, row, static_cast<size_t>(out),
                                       cudaMemcpyDeviceToDevice, queue_.stream()));
        },
        &cudaMemcpy2DAsync, w_copy, from, row, pitch, out);
  }
  convolutions_->Run(p);
  cuda::LinearProblem end = ProblemOf(w, type());
  end.y = RowsOf(y);
  end.rows = y.rows();
  end.activation = ActivationOf(activation);
  cuda::FinishLinear(end, {sums, out, *sums_type}, queue_);
  return true;
}

void CudaBackend::DoConv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                           int64_t kernel, int64_t stride, Activation activation) {
  Op("Conv1d", [&] {
    const CudaLinear& packed = Packed(w);
    CHECK_EQ(packed.taps(), kernel);
    const int64_t frames = x.rows() / seqs;
    const cuda::Conv1dShape shape = {.frames = frames,
                                     .frames_out = (frames - 1) / stride + 1,
                                     .in = x.dim(1),
                                     .kernel = kernel,
                                     .stride = stride};
    if (RunLibraryConv(y, x, packed, seqs, shape, activation)) return;
    const size_t row_bytes = static_cast<size_t>(packed.in_padded()) * SizeOf(dtype());
    const auto most = static_cast<int64_t>(scratch_->size_bytes() / row_bytes);
    CHECK_GT(most, 0) << "a window of " << row_bytes << " bytes, scratch of "
                      << scratch_->size_bytes();
    cuda::LinearProblem p = ProblemOf(packed, type());
    p.activation = ActivationOf(activation);
    for (int64_t begin = 0; begin < y.rows(); begin += most) {
      const int64_t rows = std::min(most, y.rows() - begin);
      const cuda::Rows windows = {scratch_->data(), packed.in_padded(), type()};
      cuda::Conv1dWindows(windows, RowsOf(x), shape, begin, rows, queue_);
      p.y = RowsOf(y.Rows(begin, begin + rows));
      p.x = {windows.data, windows.stride, windows.type};
      p.rows = rows;
      cuda::Linear(p, queue_);
    }
  });
}

void CudaBackend::DoMoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) {
  Op("MoeRoute", [&] {
    const cuda::Routing routing = {.ids = ids.as<int32_t>(),
                                   .ids_stride = ids.row_stride(),
                                   .weights = weights.as<float>(),
                                   .weights_stride = weights.row_stride(),
                                   .tokens = ids.rows(),
                                   .k = static_cast<int>(ids.dim(1)),
                                   .experts = static_cast<int>(logits.dim(1))};
    cuda::MoeRoute(routing, logits.as<const float>(), logits.row_stride(), queue_);
  });
}

void CudaBackend::DoAddMoe(TensorView y, ConstTensorView x, ConstTensorView ids,
                           ConstTensorView weights, std::span<const ExpertWeights> experts) {
  Op("AddMoe", [&] {
    const int64_t k = ids.dim(1), hidden = x.dim(1);
    if (k == 0) return;
    CHECK(!experts.empty());
    const int64_t ffn = experts[0].down->in_features();
    const auto groups = static_cast<int>(experts.size());
    matrices_.clear();  // up_gate of each expert, then down of each
    for (const ExpertWeights& e : experts) matrices_.push_back(Packed(*e.up_gate).matrix());
    for (const ExpertWeights& e : experts) {
      CHECK_EQ(e.down->in_features(), ffn);
      matrices_.push_back(Packed(*e.down).matrix());
    }

    // Scratch of n tokens: their order, then [n k, 2 ffn] float, [n k, ffn] storage, [n k, hidden]
    // float.
    const auto bytes = [&](int64_t n) {
      const auto pairs = static_cast<size_t>(n * k);
      return Carve::Padded((groups + 1) * 4) + 2 * Carve::Padded(pairs * 4) +
             Carve::Padded(pairs * 2 * ffn * 4) + Carve::Padded(pairs * ffn * SizeOf(dtype())) +
             Carve::Padded(pairs * hidden * 4);
    };
    int64_t most = x.rows();
    while (most > 1 && bytes(most) > scratch_->size_bytes()) most = (most + 1) / 2;
    CHECK_LE(bytes(most), scratch_->size_bytes()) << "for one token of a mixture";

    uploads_->Reserve(matrices_.size() * sizeof(cuda::LinearMatrix));
    const cuda::LinearMatrix* sent =
        uploads_->Put(std::span(std::as_const(matrices_)), experts.data());
    for (int64_t begin = 0; begin < x.rows(); begin += most) {
      const int64_t n = std::min(most, x.rows() - begin), pairs = n * k;
      const auto ids_rows = ids.Rows(begin, begin + n),
                 weight_rows = weights.Rows(begin, begin + n);
      const cuda::Routing routing = {
          .ids = const_cast<int32_t*>(ids_rows.as<const int32_t>()),  // only MoeRoute writes
          .ids_stride = ids.row_stride(),
          .weights = const_cast<float*>(weight_rows.as<const float>()),
          .weights_stride = weights.row_stride(),
          .tokens = n,
          .k = static_cast<int>(k),
          .experts = groups};
      Carve scratch(scratch_->data());
      cuda::PairOrder order;
      order.first_row = scratch.Take<int32_t>(groups + 1);
      order.token_of = scratch.Take<int32_t>(pairs);
      order.place_of = scratch.Take<int32_t>(pairs);
      auto* up_gate = scratch.Take<float>(pairs * 2 * ffn);
      auto* hidden_rows =
          scratch.Take<std::byte>(pairs * ffn * static_cast<int64_t>(SizeOf(dtype())));
      auto* out = scratch.Take<float>(pairs * hidden);
      cuda::SortPairs(order, routing, queue_);

      cuda::LinearProblem p = ProblemOf(Packed(*experts[0].up_gate), type());
      p.groups = groups;
      p.first_row = order.first_row;
      p.rows = n;  // an expert is chosen at most once by a token
      p.matrices = sent;
      p.x = RowsOf(x.Rows(begin, begin + n));
      p.x_rows = order.token_of;
      p.y = {up_gate, 2 * ffn, cuda::Type::kFloat32};
      cuda::Linear(p, queue_);
      cuda::SiluMul({hidden_rows, ffn, type()}, {up_gate, 2 * ffn, cuda::Type::kFloat32},
                    {up_gate + ffn, 2 * ffn, cuda::Type::kFloat32}, pairs, ffn, queue_);
      p = ProblemOf(Packed(*experts[0].down), type());
      p.groups = groups;
      p.first_row = order.first_row;
      p.rows = n;
      p.matrices = sent + groups;
      p.x = {hidden_rows, ffn, type()};
      p.y = {out, hidden, cuda::Type::kFloat32};
      cuda::Linear(p, queue_);
      cuda::AddExperts(y.Rows(begin, begin + n).as<float>(), y.row_stride(), out, order.place_of,
                       routing, hidden, queue_);
    }
  });
}

// ---- Attention ---------------------------------------------------------------------------------

void CudaBackend::DoRope(TensorView x, std::span<const int32_t> positions,
                         std::span<const float> inv_freq) {
  Op("Rope", [&] {
    uploads_->Reserve(positions.size_bytes() + inv_freq.size_bytes() + 2 * Uploads::kSlack);
    const int32_t* sent = uploads_->Put(positions);
    cuda::Rope(RowsOf(x), sent, uploads_->Put(inv_freq), x.rows(), x.dim(1), x.dim(2) / 2, queue_);
  });
}

cuda::KvLayer CudaBackend::Layer(const KvCacheView& kv, int32_t layer) const {
  const KvLayout& l = kv.layout;
  const size_t layer_bytes = KvBlockBytes(l) / l.layers;
  return {.data = kv.arena + layer * layer_bytes,
          .block_stride = static_cast<int64_t>(kv.block_stride_bytes / SizeOf(dtype())),
          .block_size = l.block_size,
          .kv_heads = l.kv_heads,
          .head_dim = l.head_dim,
          .type = type()};
}

void CudaBackend::DoStoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k,
                            ConstTensorView v, std::span<const int64_t> slot_mapping) {
  Op("StoreKv", [&] {
    uploads_->Reserve(slot_mapping.size_bytes());
    cuda::StoreKv(Layer(kv, layer), RowsOf(k), RowsOf(v), uploads_->Put(slot_mapping), k.rows(),
                  queue_);
  });
}

void CudaBackend::AddTasks(int32_t sequence, int32_t query_begin, int64_t rows, int64_t group,
                           int64_t first_limit, bool causal) {
  for (int64_t first = 0; first < rows; first += cuda::kTileRows) {
    const int64_t n = std::min<int64_t>(cuda::kTileRows, rows - first);
    const int64_t last_token = (first + n - 1) / group;
    tiles_.push_back({.rows = {.query_begin = query_begin,
                               .first_row = static_cast<int32_t>(first),
                               .num_rows = static_cast<int32_t>(n),
                               .first_limit = static_cast<int32_t>(first_limit),
                               .limit_step = causal ? 1 : 0,
                               .partial = -1},
                      .sequence = sequence,
                      .num_keys = static_cast<int32_t>(first_limit + (causal ? last_token : 0))});
  }
}

void CudaBackend::RunTasks(cuda::AttentionProblem problem, std::span<const BlockId> block_tables,
                           const void* owner, int64_t most_keys) {
  const size_t row_bytes = cuda::PartialBytes(1, problem.kv_heads, problem.head_dim);
  const auto most_rows = static_cast<int64_t>(scratch_->size_bytes() / row_bytes);
  const size_t table_bytes = block_tables.size_bytes() + Uploads::kSlack;
  CHECK_LT(table_bytes, uploads_->capacity_bytes()) << "block tables";
  const size_t task_room = uploads_->capacity_bytes() - table_bytes - 2 * Uploads::kSlack;
  const auto most_tasks =
      static_cast<int64_t>(task_room / (sizeof(cuda::AttentionTask) + sizeof(cuda::MergeTask)));
  problem.partials = reinterpret_cast<float*>(scratch_->data());

  // Of a recorded pass: lists as long as the longest, filled up with tasks of no rows. How long a
  // context is must not show in the launch.
  int64_t all_tasks = 0, all_merges = 0;
  if (!queue_.plain()) {
    const int64_t pieces = CeilDiv<int64_t>(most_keys, cuda::kSplitKeys);
    int64_t partial_rows = 0;
    for (const Tile& tile : tiles_) partial_rows += pieces > 1 ? pieces * tile.rows.num_rows : 0;
    all_tasks = pieces * static_cast<int64_t>(tiles_.size());
    all_merges = pieces > 1 ? static_cast<int64_t>(tiles_.size()) : 0;
    if (all_tasks > most_tasks || partial_rows > most_rows) {
      throw cuda::NotRecordable{"its attention may need several pieces"};
    }
  }
  for (size_t tile = 0; tile < tiles_.size();) {
    tasks_.clear();
    merges_.clear();
    int64_t partial_rows = 0;
    for (; tile < tiles_.size(); ++tile) {
      cuda::MergeTask rows = tiles_[tile].rows;
      const int64_t keys = tiles_[tile].num_keys;
      const int64_t pieces = CeilDiv<int64_t>(keys, cuda::kSplitKeys);
      const int64_t partials = pieces > 1 ? pieces * rows.num_rows : 0;
      if (partial_rows + partials > most_rows ||
          static_cast<int64_t>(tasks_.size()) + pieces > most_tasks) {
        CHECK(!tasks_.empty()) << "scratch or upload buffer too small for " << keys << " keys";
        break;
      }
      if (pieces > 1) rows.partial = static_cast<int32_t>(partial_rows);
      for (int64_t i = 0; i < pieces; ++i) {
        tasks_.push_back(
            {.query_begin = rows.query_begin,
             .first_row = rows.first_row,
             .num_rows = rows.num_rows,
             .first_limit = rows.first_limit,
             .limit_step = rows.limit_step,
             .first_key = static_cast<int32_t>(i * cuda::kSplitKeys),
             .end_key = static_cast<int32_t>(std::min(keys, (i + 1) * cuda::kSplitKeys)),
             .sequence = tiles_[tile].sequence,
             .partial = pieces > 1 ? static_cast<int32_t>(partial_rows + i * rows.num_rows) : -1});
      }
      if (pieces > 1) merges_.push_back(rows);
      partial_rows += partials;
    }
    if (!queue_.plain()) {
      tasks_.resize(static_cast<size_t>(all_tasks));
      merges_.resize(static_cast<size_t>(all_merges));
    }
    const std::span tasks(std::as_const(tasks_));
    const std::span merges(std::as_const(merges_));
    uploads_->Reserve(table_bytes + tasks.size_bytes() + merges.size_bytes() + 2 * Uploads::kSlack);
    if (!block_tables.empty()) problem.keys.block_tables = uploads_->Put(block_tables);
    const cuda::AttentionTask* sent = uploads_->Put(tasks, owner);
    cuda::Attention(problem, sent, static_cast<int64_t>(tasks.size()), uploads_->Put(merges, owner),
                    static_cast<int64_t>(merges.size()), queue_);
  }
}

void CudaBackend::DoPagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv,
                                   int32_t layer, const AttentionBatch& batch, float scale,
                                   bool causal) {
  Op("PagedAttention", [&] {
    const int64_t group = q.dim(1) / kv.layout.kv_heads;
    tiles_.clear();
    for (int32_t s = 0; s < batch.seqs(); ++s) {
      const int32_t tokens = batch.query_start[s + 1] - batch.query_start[s];
      const int32_t context = batch.context_len[s];
      AddTasks(s, batch.query_start[s], tokens * group, group,
               causal ? context - tokens + 1 : context, causal);
    }
    cuda::AttentionProblem p = {.y = RowsOf(y),
                                .q = RowsOf(q),
                                .keys = {},
                                .heads = static_cast<int>(q.dim(1)),
                                .kv_heads = kv.layout.kv_heads,
                                .head_dim = kv.layout.head_dim,
                                .scale = scale,
                                .type = type()};
    p.keys.blocks = Layer(kv, layer);
    p.keys.max_blocks = batch.max_blocks;
    CHECK_LE(p.head_dim, cuda::kMaxHeadDim);
    RunTasks(p, batch.block_tables, batch.context_len.data(),
             int64_t{batch.max_blocks} * kv.layout.block_size);
  });
}

void CudaBackend::DoEncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k,
                                     ConstTensorView v, int64_t seqs, float scale) {
  Op("EncoderAttention", [&] {
    const int64_t q_len = q.rows() / seqs, kv_len = k.rows() / seqs;
    tiles_.clear();
    for (int64_t s = 0; s < seqs; ++s) {
      AddTasks(static_cast<int32_t>(s), static_cast<int32_t>(s * q_len), q_len, 1, kv_len, false);
    }
    cuda::AttentionProblem p = {.y = RowsOf(y),
                                .q = RowsOf(q),
                                .keys = {},
                                .heads = static_cast<int>(q.dim(1)),
                                .kv_heads = static_cast<int>(q.dim(1)),
                                .head_dim = static_cast<int>(q.dim(2)),
                                .scale = scale,
                                .type = type()};
    p.keys.k = RowsOf(k);
    p.keys.v = RowsOf(v);
    p.keys.kv_len = kv_len;
    CHECK_LE(p.head_dim, cuda::kMaxHeadDim);
    RunTasks(p, {}, /*owner=*/nullptr, kv_len);
  });
}

// ---- Choosing ----------------------------------------------------------------------------------

void CudaBackend::DoChooseTokens(std::span<ChosenToken> chosen, ConstTensorView logits,
                                 std::span<const TokenChoice> choices) {
  Op("ChooseTokens", [&] {
    for (size_t done = 0; done < choices.size();) {
      const size_t asked = answers_->Ask(chosen.subspan(done), logits, choices.subspan(done),
                                         *uploads_, *scratch_, queue_);
      if (asked == 0) WaitForAnswers();
      done += asked;
    }
  });
}

}  // namespace sensorium
