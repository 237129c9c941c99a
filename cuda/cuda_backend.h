// The backend for NVIDIA GPUs from Ampere on: unpacks views, calls the launchers of kernels/, owns
// the stream and the device memory that the ops themselves need.
//
// Never run on hardware by this project's CI: executed by emulation (tests/cuda_emu), never timed.
//
// Batch invariance. kStrict: holds always, bit for bit: every kernel is our own, and a row's order
// of additions is fixed by its own length; the headers of kernels/*.cu say how. kFast: our kernels'
// still, attention and products of few rows among them; but where cuBLASLt makes a product, a row's
// bits hang on its place among the rows and on the bucket that their number falls into, though not
// on what is in the others (library_gemm.h); and a convolution is made by the one engine of cuDNN
// that was chosen for its shape (library_conv.h).
//
// The encoders' attention is our kernel in both modes and not cuDNN's: a row's order of sums is
// ours to fix and to state, it is the kernel that decodes, and it is executed by emulation, where
// of a library's there could only be a stand-in. How it compares with cuDNN's in time is not known.
//
// Memory is taken at Create: an arena of a share of the device's memory, from which weights and
// buffers are cut, pinned buffers for what goes up and down, and scratch; an op that needs more
// scratch than there is works through its rows in pieces. No op allocates. Every op is queued; Wait
// and CopyToHost wait, and so does an upload when its buffer is full. A pass that was recorded at
// start is queued as one graph (recorded_passes.h).
//
// A call of the runtime that fails throws CudaError with the op's name. What a kernel does wrong is
// reported by the first call behind it: the error then names what was queued before, too.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "cuda/device_memory.h"
#include "cuda/device_weights.h"
#include "cuda/events.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/conv1d.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/queue.h"
#include "cuda/kernels/store_kv.h"
#include "cuda/library_conv.h"
#include "cuda/library_gemm.h"
#include "cuda/recorded_passes.h"
#include "cuda/token_answers.h"
#include "cuda/uploads.h"
#include "runtime/backend/backend.h"

namespace sensorium {

enum class Determinism : uint8_t { kStrict, kFast };

struct CudaBackendOptions {       // of device 0: CUDA_VISIBLE_DEVICES says which that is
  DType dtype = DType::kFloat32;  // float32: the exact reference mode; or bfloat16
  Determinism determinism = Determinism::kStrict;
  // Of the device's free memory, taken as one arena; 0: every buffer is allocated by itself, so
  // that a sanitizer sees its end.
  double memory_share = 0;
  // Pinned and device memory for a step's arrays; a smaller one waits more often.
  size_t upload_bytes = size_t{8} << 20;
  // Pinned memory for CopyToHost; a smaller one waits more often.
  size_t download_bytes = size_t{4} << 20;
  // Pinned memory for a step's tokens and log-probabilities; a smaller one waits more often.
  size_t answer_bytes = size_t{2} << 20;
  // Device memory for what lies between two kernels of one op; a smaller one works in more pieces.
  size_t scratch_bytes = size_t{64} << 20;
  // Passes that the engine records at start are replayed as CUDA graphs (recorded_passes.h).
  bool graphs = true;
  // Pinned and device memory for the arrays of all recorded passes; one that finds none is run
  // plainly.
  size_t graph_upload_bytes = size_t{8} << 20;
  // Wait after each op, so that an error names the op that made it: no graphs then. For debugging
  // and tests.
  bool wait_after_each_op = false;
};

class CudaBackend final : public Backend {
 public:
  // FAILED_PRECONDITION: no device, or one before compute capability 8.0. INVALID_ARGUMENT: a
  // dtype that is neither float32 nor bfloat16. RESOURCE_EXHAUSTED: no memory for the buffers, the
  // device's or pinned, or none for the driver to begin with.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string description() const override;
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t size_bytes) override;
  std::unique_ptr<DeviceBuffer> UploadFloat32(ConstTensorView source) override;
  size_t KvBlockBytes(const KvLayout& layout) const override;
  int64_t most_vocab() const override;
  MediaOps* media_ops() override;
  bool replays_passes() const override { return passes_ != nullptr; }
  void ReserveStep(const StepLimits& limits) override;
  void Wait() override;
  void ReserveMarks(int32_t count) override;
  void Mark(int32_t i) override;
  int64_t NanosBetween(int32_t from, int32_t to) override;

 private:
  friend class CudaMedia;  // its ops on media, in a file of their own
  // In this order: the buffers go before their memory, and that before the queue.
  struct CudaParts {
    std::unique_ptr<cuda::Queue> queue;
    std::unique_ptr<cuda::DeviceMemory> memory;
    std::unique_ptr<cuda::Uploads> uploads;
    std::unique_ptr<cuda::PinnedBuffer> downloads;
    std::unique_ptr<cuda::TokenAnswers> answers;
    std::unique_ptr<cuda::CudaBuffer> scratch;
    std::unique_ptr<cuda::CudaBuffer> library_workspace;
    std::unique_ptr<cuda::LibraryGemm> library;
    std::unique_ptr<cuda::LibraryConv> convolutions;
  };
  CudaBackend(const CudaBackendOptions& options, std::string description, CudaParts parts);

  void DoPass(const PassKey& key, absl::FunctionRef<void()> ops) override;
  bool DoRecordPass(const PassKey& key, absl::FunctionRef<void()> ops) override;
  std::unique_ptr<LinearWeight> DoPackLinear(std::span<const LinearSource> parts) override;
  std::unique_ptr<LinearWeight> DoPackConv1d(ConstTensorView weight, ConstTensorView bias) override;
  std::unique_ptr<TableWeight> DoMakeTable(std::span<const ConstTensorView> parts) override;
  void DoCopy(TensorView y, ConstTensorView x) override;
  void DoCopyToHost(std::span<float> y, ConstTensorView x) override;
  void DoCopyFromHost(TensorView y, std::span<const float> x) override;
  void DoCopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from) override;
  void DoEmbed(TensorView y, const TableWeight& table, std::span<const int32_t> ids,
               bool add) override;
  void DoGatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) override;
  void DoScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) override;
  void DoMeanRows(TensorView y, ConstTensorView x, int64_t group) override;
  void DoRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps,
                 bool add) override;
  void DoLayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                   float eps) override;
  void DoLinear(TensorView y, ConstTensorView x, const LinearWeight& w, Activation activation,
                bool add) override;
  void DoSiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) override;
  void DoConv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                int64_t kernel, int64_t stride, Activation activation) override;
  void DoMoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) override;
  void DoAddMoe(TensorView y, ConstTensorView x, ConstTensorView ids, ConstTensorView weights,
                std::span<const ExpertWeights> experts) override;
  void DoRope(TensorView x, std::span<const int32_t> positions,
              std::span<const float> inv_freq) override;
  void DoStoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k, ConstTensorView v,
                 std::span<const int64_t> slot_mapping) override;
  void DoPagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv, int32_t layer,
                        const AttentionBatch& batch, float scale, bool causal) override;
  void DoEncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                          int64_t seqs, float scale) override;
  void DoChooseTokens(std::span<ChosenToken> chosen, ConstTensorView logits,
                      std::span<const TokenChoice> choices) override;

  cuda::Type type() const;
  // One product by the kernels or the library, as options_ and the number of rows say.
  void RunLinear(cuda::LinearProblem problem);
  // A convolution by the library, where there is one, it has an engine for the shape and scratch
  // holds what lies between. false: nothing is queued.
  bool RunLibraryConv(TensorView y, ConstTensorView x, const cuda::CudaLinear& w, int64_t seqs,
                      const cuda::Conv1dShape& shape, Activation activation);
  cuda::KvLayer Layer(const KvCacheView& kv, int32_t layer) const;
  // Cuts the query rows of one sequence into tasks, the keys of a tile into pieces of kSplitKeys.
  void AddTasks(int32_t sequence, int32_t query_begin, int64_t rows, int64_t group,
                int64_t first_limit, bool causal);
  // Runs tiles_, in as many pieces as scratch and upload buffer ask for. `owner`: of the task lists
  // among the uploads. most_keys: what a tile may have in another pass like this one; a pass that
  // is recorded is launched for so many.
  void RunTasks(cuda::AttentionProblem problem, std::span<const BlockId> block_tables,
                const void* owner, int64_t most_keys);
  // Waits for the queue and hands out the answers that have come.
  void WaitForAnswers();
  // Every op: queues its calls; what fails in them is reported under its name.
  void Op(const char* name, absl::FunctionRef<void()> calls);
  // Makes calls; what fails in them is reported under `name` and with its suspects.
  void Named(const char* name, absl::FunctionRef<void()> calls);
  // The ops that may have failed although a later call reports it; "" when there are none.
  std::string Suspects() const;

  // Constant after construction.
  const CudaBackendOptions options_;
  const std::string description_;
  const std::unique_ptr<cuda::Queue> owned_queue_;
  // Engine thread only.
  cuda::Queue& queue_;
  const std::unique_ptr<cuda::DeviceMemory> memory_;
  const std::unique_ptr<cuda::Uploads> uploads_;
  const std::unique_ptr<cuda::PinnedBuffer> downloads_;
  const std::unique_ptr<cuda::TokenAnswers> answers_;
  cuda::Events marks_;
  const std::unique_ptr<cuda::CudaBuffer> scratch_;
  // kFast only. One queue: the libraries take turns in one workspace.
  const std::unique_ptr<cuda::CudaBuffer> library_workspace_;
  const std::unique_ptr<cuda::LibraryGemm> library_;
  const std::unique_ptr<cuda::LibraryConv> convolutions_;  // null without cuDNN, too
  const std::unique_ptr<cuda::RecordedPasses> passes_;     // options_.graphs only
  cuda::OpCounts queued_;                                  // since the last wait
  const std::unique_ptr<MediaOps> media_;
  // A call's tiles, each with its pieces. Reserved: by ReserveStep, by what an upload holds.
  struct Tile {
    cuda::MergeTask rows;
    int32_t sequence, num_keys;
  };
  std::vector<Tile> tiles_;
  std::vector<cuda::AttentionTask> tasks_;
  std::vector<cuda::MergeTask> merges_;
  std::vector<cuda::LinearMatrix> matrices_;  // of a mixture's experts
};

}  // namespace sensorium
