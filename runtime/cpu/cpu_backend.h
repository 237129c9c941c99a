// The embedded backend: the ops of the seam on this machine's cores. It splits each op's work into
// ranges for a fixed thread pool and hands them to kernels compiled for the CPU level in use.
//
// Batch invariance holds always: a row's bits depend on its inputs, the level and the dtype alone,
// never on neighbours, chunking, block tables or the number of threads.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/cpu/aligned_buffer.h"
#include "runtime/cpu/cpu_level.h"
#include "runtime/cpu/packed_linear.h"
#include "runtime/cpu/thread_pool.h"

namespace sensorium {

struct Kernels;

struct CpuBackendOptions {
  DType dtype = DType::kFloat32;  // float32: the exact reference mode; or bfloat16
  int threads = 0;                // 0: the cores this process may use (affinity and cgroup quota)
  bool pin_threads = false;       // bind each thread of the pool to a core
  std::optional<CpuLevel> level;  // default: the best this machine has
};

class CpuBackend final : public Backend {
 public:
  // INVALID_ARGUMENT for a dtype that is not float32 or bfloat16 or a negative number of threads;
  // FAILED_PRECONDITION for a level that this machine does not reach.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CpuBackendOptions& options);
  ~CpuBackend() override;

  std::string description() const override;
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t size_bytes) override;
  std::unique_ptr<DeviceBuffer> UploadFloat32(ConstTensorView source) override;
  size_t KvBlockBytes(const KvLayout& layout) const override;
  void Wait() override {}  // every op is done when it returns
  void ReserveMarks(int32_t count) override { marks_.resize(count); }
  void Mark(int32_t i) override { marks_[i] = std::chrono::steady_clock::now(); }
  int64_t NanosBetween(int32_t from, int32_t to) override;

 private:
  CpuBackend(DType dtype, int threads, bool pin, CpuLevel level);

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

  // Runs body(begin, end) over [0, rows) in ranges of some 16 K elements, `elements` in a row:
  // less than that is done before another thread is awake.
  void ForRows(int64_t rows, int64_t elements, absl::FunctionRef<void(int64_t, int64_t)> body);

  // Constant after construction.
  const CpuLevel level_;
  const Kernels& kernels_;
  // Engine thread only.
  ThreadPool pool_;
  WeightSlabs slabs_;
  GemmScratch gemm_;
  // Grow-only. One per thread of the pool, each used by that thread alone.
  std::unique_ptr<AlignedBuffer[]> worker_scratch_;
  AlignedBuffer tiles_;  // PagedAttention: the first row tile of each sequence
  // Rope: the angles of the last call. A forward pass asks for the same ones in every layer.
  std::vector<int32_t> rope_positions_;
  std::vector<float> rope_inv_freq_;
  AlignedBuffer rope_table_;  // float32 [tokens, 2, head_dim / 2]: cosines, sines
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

}  // namespace sensorium
