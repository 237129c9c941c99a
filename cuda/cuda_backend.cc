#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"
#include "cuda/cuda_media.h"
#include "cuda/kernels/convert_rows.h"
#include "cuda/kernels/layer_norm.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/views.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

constexpr int kDevice = 0;

using cuda::CudaBuffer;
using cuda::CudaLinear;
using cuda::CudaTable;
using cuda::RowsOf;
using cuda::TypeOf;
using cuda::Uploads;

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
    // The host's part first: it is the smaller one, and which of the two is wanting must be told.
    std::unique_ptr<cuda::PinnedBuffer> uploads, answers;
    for (const auto& [buffer, bytes] :
         {std::pair{&uploads, Uploads::PinnedBytes(options.upload_bytes,
                                                   graphs ? options.graph_upload_bytes : 0)},
          {&parts.downloads, options.download_bytes},
          {&answers, options.answer_bytes}}) {
      *buffer = cuda::PinnedBuffer::TryAllocate(bytes);
      if (*buffer == nullptr) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "pinned host memory: ", bytes, " bytes wanted, and the host does not give them"));
      }
    }
    parts.answers = std::make_unique<cuda::TokenAnswers>(std::move(answers));
    size_t wanted = uploads->size_bytes();
    parts.uploads = Uploads::Create(options.upload_bytes, std::move(uploads), memory, *parts.queue);
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
    std::string description = absl::StrCat("cuda: ", name, fast ? ", fast products" : "",
                                           parts.convolutions != nullptr ? " and convolutions" : "",
                                           graphs ? ", graphs" : "");
    return std::unique_ptr<Backend>(
        new CudaBackend(options, std::move(description), std::move(parts)));
  } catch (const cuda::CudaError& e) {
    // A device so full that it has no room for what the driver needs is there, and somebody's
    // mistake; one that does not work is as good as none.
    const std::string what = absl::StrCat("the CUDA device cannot be opened: ", e.what());
    if (e.error() != cudaErrorMemoryAllocation) return absl::FailedPreconditionError(what);
    return absl::ResourceExhaustedError(absl::StrCat(
        what, options.memory_share > 0 ? "; less may be taken as device.memory_share" : ""));
  } catch (const std::exception& e) {  // the libraries'
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
      media_(std::make_unique<CudaMedia>(*this)) {
  tasks_.reserve(uploads_->capacity_bytes() / sizeof(cuda::AttentionTask));
  merges_.reserve(uploads_->capacity_bytes() / sizeof(cuda::MergeTask));
}

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
    answers_->Drop();  // whoever asked may be gone when something is waited for
    throw cuda::CudaError(e.error(), absl::StrCat(name, ", ", e.failed()), Suspects());
  } catch (const std::exception& e) {  // cuBLASLt's
    answers_->Drop();
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
  std::string text =
      "; or an op queued before it failed (CUDA_LAUNCH_BLOCKING=1 with device.cuda_graphs: false "
      "tells which):";
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

void CudaBackend::ReserveStep(const StepLimits& limits) {
  // Each sequence's last tile may not be full; query heads of a kv head are at most a tile's rows.
  // An encoder's tiles are as many as its largest batch had, when that was rehearsed.
  tiles_.reserve(static_cast<size_t>(limits.seqs) + static_cast<size_t>(limits.tokens));
  answers_->Reserve(static_cast<size_t>(limits.choices), static_cast<size_t>(limits.seqs),
                    uploads_->capacity_bytes());
}

void CudaBackend::WaitForAnswers() {
  queue_.Wait();
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

int64_t CudaBackend::most_vocab() const { return cuda::kMostVocab; }

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
