// THE SEAM: every operation a model's forward pass is made of. runtime/cpu and cuda implement it.
//
// Public functions check shapes and dtypes once (CHECK: a wrong call is our bug) and forward to a
// private virtual Do*, so that the twins hold arithmetic only. Engine thread only, in program
// order. A device may have ops queued when they return: the host reads results after CopyToHost,
// which waits, or after Wait.
//
// Dtypes. `dtype()` is the storage type of weights, activations and KV: float32 (the exact
// reference mode) or bfloat16. Sums are kept in float32 everywhere. The residual stream is float32
// in both. "act" below means: float32 or dtype().
//
// Batch invariance: a row of a result depends on that row's inputs alone, bit for bit: never on how
// many rows there are, on their order, or on how a prefill was cut into chunks. An op whose twin
// cannot keep this says so in a flag. A row's reductions therefore run in one fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/batch.h"
#include "runtime/backend/media_ops.h"
#include "runtime/backend/tensor.h"
#include "runtime/backend/token_choice.h"

namespace sensorium {

enum class Activation : uint8_t {
  kNone,
  kGelu,       // x/2 (1 + erf(x / sqrt 2)); Hendrycks & Gimpel 2016 (arXiv:1606.08415), exact form
  kQuickGelu,  // x sigmoid(1.702 x); OpenAI CLIP, QuickGELU
};

// Bytes of the device, freed with the object. 64-byte aligned.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size_bytes() const = 0;
};

// One matrix of y = x W^T + b as the backend wants it (packed panels on the CPU). Opaque.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual size_t size_bytes() const = 0;
};

// Rows to look up: token and position embeddings. May alias the mapped checkpoint.
class TableWeight {
 public:
  virtual ~TableWeight() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual size_t size_bytes() const = 0;
};

// A block of rows of a stacked linear: W [out, in] and b [out], or no bias (zeros) when empty.
struct LinearSource {
  ConstTensorView weight;  // of a dtype that the backend packs: see PacksLinear
  ConstTensorView bias;    // rank 1 or default-constructed
  // Of a quantised weight (int8, int4, float8_e4m3): float [out, in / group],
  //   W[o, i] = scales[o, i / group] * weight[o, i].
  // `group` divides in; group = in is one scale for each output. Default-constructed of a float
  // weight.
  ConstTensorView scales = {};
  int64_t group = 0;
};

// One expert of a mixture: down(silu(gate x) * up x).
struct ExpertWeights {
  std::unique_ptr<LinearWeight> up_gate;  // [2 * ffn, hidden]: rows [0, ffn) up, [ffn, 2 ffn) gate
  std::unique_ptr<LinearWeight> down;     // [hidden, ffn]
};

// What one model keeps per token, and how many tokens a block holds.
struct KvLayout {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;    // a multiple of 16
  int32_t block_size = 0;  // tokens per block, a multiple of 16
};

// One model's view of the arena: block b's bytes start at arena + b * block_stride_bytes. The order
// of bytes inside a block (layers, K, V, heads) is the backend's own.
struct KvCacheView {
  std::byte* arena = nullptr;
  size_t block_stride_bytes = 0;  // >= Backend::KvBlockBytes(layout), a multiple of 64
  int32_t num_blocks = 0;
  KvLayout layout;
};

// Passes of one key queue the same ops on views of the same shapes at the same places; what lies in
// the arrays may differ.
struct PassKey {
  const void* model = nullptr;
  int32_t rows = 0, context = 0;  // sequences of one new token, and the most that one attends to
  auto operator<=>(const PassKey&) const = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // For logs and the ListModels answer, e.g. "cpu avx512_bf16, 2 threads".
  virtual std::string description() const = 0;
  DType dtype() const { return dtype_; }

  // Once, at start: what a step will have at most, so that none takes memory of the host for it.
  struct StepLimits {
    int32_t seqs = 0, tokens = 0;
    int32_t choices = 0;  // of tokens
  };
  virtual void ReserveStep(const StepLimits& limits) {}

  // Ids that ChooseTokens can choose among; a model with more cannot be loaded.
  virtual int64_t most_vocab() const { return INT32_MAX; }

  // Media into model input on the device, or null: the host does it, on threads of its own.
  virtual MediaOps* media_ops() { return nullptr; }

  // ---- Memory and weights: load time -----------------------------------------------------------
  // RESOURCE_EXHAUSTED with both numbers when the device has not that much.
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t size_bytes) = 0;
  // Whether PackLinear takes weights of this dtype. INVALID_ARGUMENT, with what it does take: a
  // checkpoint can be of another. Vectors, tables and convolutions are float everywhere.
  absl::Status PacksLinear(DType weight) const;
  // Stacks `parts` along the outputs and packs them into dtype(). Sources are not kept.
  // REQUIRES: equal in_features; PacksLinear of every part.
  std::unique_ptr<LinearWeight> PackLinear(std::span<const LinearSource> parts);
  // A convolution over time, weight [out, in, kernel], bias [out] or empty: used by Conv1d.
  std::unique_ptr<LinearWeight> PackConv1d(ConstTensorView weight, ConstTensorView bias);
  // Stacks `parts` [rows_i, columns] along the rows. May keep pointing at the sources' bytes, which
  // must then outlive it (they are the mapped checkpoint).
  std::unique_ptr<TableWeight> MakeTable(std::span<const ConstTensorView> parts);
  // A small vector or matrix (norm weights, biases) as float32 on the device.
  virtual std::unique_ptr<DeviceBuffer> UploadFloat32(ConstTensorView source) = 0;
  // Bytes that one block of this layout takes, a multiple of 64.
  virtual size_t KvBlockBytes(const KvLayout& layout) const = 0;

  // ---- Passes ----------------------------------------------------------------------------------
  // Whether a pass costs the host less when one like it was recorded: then batches are worth
  // filling up to a few shapes.
  virtual bool replays_passes() const { return false; }
  // Start-up: takes down what `ops` would queue, and queues nothing. false: not recorded, now or
  // never. `ops` are calls of this class that only queue: no CopyToHost, no CopyKvBlock.
  bool RecordPass(const PassKey& key, absl::FunctionRef<void()> ops) {
    return DoRecordPass(key, ops);
  }
  // Queues what `ops` queue, by a replay where that was recorded for `key`. May run `ops` twice.
  void Pass(const PassKey& key, absl::FunctionRef<void()> ops) { DoPass(key, ops); }

  // ---- Copies ----------------------------------------------------------------------------------
  // Same shape; converts between act dtypes; rows may be strided.
  void Copy(TensorView y, ConstTensorView x);
  // x float32 [rows, columns] -> y, and waits.
  void CopyToHost(std::span<float> y, ConstTensorView x);
  void CopyFromHost(TensorView y, std::span<const float> x);  // y float32 or dtype()
  // Copies whole KV blocks: the copy in copy-on-write.
  void CopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from);

  // ---- Waiting and time
  // -------------------------------------------------------------------------- Returns when all
  // that was queued has run.
  virtual void Wait() = 0;
  // Takes memory for marks [0, count).
  virtual void ReserveMarks(int32_t count) = 0;
  // Puts mark i behind all that is queued by now. REQUIRES: reserved
  virtual void Mark(int32_t i) = 0;
  // What lay between two marks, on the device's own clock.
  // REQUIRES: both were put, and waited for.
  virtual int64_t NanosBetween(int32_t from, int32_t to) = 0;

  // ---- Rows ------------------------------------------------------------------------------------
  // y[i] = table[ids[i]], or y[i] += ... when `add`; a negative id leaves y[i] as it is.
  // y float32 [n, columns].
  void Embed(TensorView y, const TableWeight& table, std::span<const int32_t> ids, bool add);
  // y[i] = x[rows[i]]; y, x [.., columns] of the same dtype.
  void GatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows);
  // y[rows[i]] += x[i]; y float32, x act. REQUIRES: rows distinct.
  void ScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows);
  // y[i] = mean of x[i * group .. (i+1) * group); same dtype; added up in ascending order.
  void MeanRows(TensorView y, ConstTensorView x, int64_t group);

  // ---- Norms: x act, y act, weight/bias float32 [columns]
  // ----------------------------------------- y = x / sqrt(mean(x^2) + eps) * weight, per row.
  // Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4.
  void RmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps);
  // y += RmsNorm(x); y float32: the post-norm residual of OLMo.
  void AddRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps);
  // Ba et al. 2016 (arXiv:1607.06450): mean and biased variance per row, then weight and bias.
  void LayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                 float eps);

  // ---- Linear and MLP
  // ---------------------------------------------------------------------------- y = act(x W^T +
  // b), or y += x W^T + b when `add` (y float32, no activation). x act [tokens, in], y act [tokens,
  // out].
  void Linear(TensorView y, ConstTensorView x, const LinearWeight& w,
              Activation activation = Activation::kNone);
  void AddLinear(TensorView y, ConstTensorView x, const LinearWeight& w);
  // y = silu(gate) * up; all [tokens, ffn] act. Shazeer 2020 (arXiv:2002.05202), SwiGLU.
  void SiluMul(TensorView y, ConstTensorView up, ConstTensorView gate);
  // Convolution over frames with zero padding (kernel - 1) / 2 on both sides, per sequence.
  // x act [seqs * frames, in], y act [seqs * frames_out, out], frames_out = (frames - 1)/stride
  // + 1.
  void Conv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs, int64_t kernel,
              int64_t stride, Activation activation);
  // Router: softmax over experts of logits [tokens, experts] float32, then the top k, highest
  // first, lowest id on ties; weights not renormalised. ids [tokens, k] int32, weights [tokens, k]
  // float32.
  void MoeRoute(TensorView ids, TensorView weights, ConstTensorView logits);
  // y += sum over the k experts of a row, in ascending expert id, of weight * expert(x).
  // y float32 [tokens, hidden], x act [tokens, hidden].
  void AddMoe(TensorView y, ConstTensorView x, ConstTensorView ids, ConstTensorView weights,
              std::span<const ExpertWeights> experts);

  // ---- Attention
  // ----------------------------------------------------------------------------------- Rotates
  // pairs (i, i + head_dim/2) of each head by position * inv_freq[i]; in place. x act [tokens,
  // heads, head_dim]; inv_freq [head_dim / 2]. Su et al. 2021 (arXiv:2104.09864), in the
  // half-rotation form of GPT-NeoX and Llama; angles, sines and cosines in float32.
  void Rope(TensorView x, std::span<const int32_t> positions, std::span<const float> inv_freq);
  // Writes k, v act [tokens, kv_heads, head_dim] into slots of one layer. A negative slot is
  // skipped.
  void StoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k, ConstTensorView v,
               std::span<const int64_t> slot_mapping);
  // softmax(scale q k^T) v over the cached tokens of each sequence, over [0, position] when causal,
  // over all context_len tokens otherwise. Query head h reads kv head h / (heads / kv_heads).
  // y, q act [tokens, heads, head_dim]. Never reads a slot at or behind context_len.
  void PagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv, int32_t layer,
                      const AttentionBatch& batch, float scale, bool causal);
  // Attention without mask and cache: encoders and the image pooling. `seqs` sequences of equal
  // length: q, y act [seqs * q_len, heads, head_dim]; k, v act [seqs * kv_len, heads, head_dim].
  void EncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        int64_t seqs, float scale);

  // ---- Choosing
  // ------------------------------------------------------------------------------------ One token
  // for each choice from logits float32 [rows, vocab], as token_choice.h tells. `chosen` is filled
  // in when Wait returns. Every answer depends on its choice and its row alone; the draws are the
  // same on every backend but for roundings of the probabilities.
  void ChooseTokens(ChosenTokens& chosen, ConstTensorView logits,
                    std::span<const TokenChoice> choices);

 protected:
  explicit Backend(DType dtype) : dtype_(dtype) {
    CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16);
  }

 private:
  // Besides float weights, which every backend packs. None packs others yet.
  virtual bool DoPacksQuantised(DType weight) const { return false; }
  virtual void DoPass(const PassKey&, absl::FunctionRef<void()> ops) { ops(); }
  virtual bool DoRecordPass(const PassKey&, absl::FunctionRef<void()>) { return false; }
  virtual std::unique_ptr<LinearWeight> DoPackLinear(std::span<const LinearSource> parts) = 0;
  virtual std::unique_ptr<LinearWeight> DoPackConv1d(ConstTensorView weight,
                                                     ConstTensorView bias) = 0;
  virtual std::unique_ptr<TableWeight> DoMakeTable(std::span<const ConstTensorView> parts) = 0;
  virtual void DoCopy(TensorView y, ConstTensorView x) = 0;
  virtual void DoCopyToHost(std::span<float> y, ConstTensorView x) = 0;
  virtual void DoCopyFromHost(TensorView y, std::span<const float> x) = 0;
  virtual void DoCopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from) = 0;
  virtual void DoEmbed(TensorView y, const TableWeight& table, std::span<const int32_t> ids,
                       bool add) = 0;
  virtual void DoGatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) = 0;
  virtual void DoScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) = 0;
  virtual void DoMeanRows(TensorView y, ConstTensorView x, int64_t group) = 0;
  virtual void DoRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps,
                         bool add) = 0;
  virtual void DoLayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight,
                           ConstTensorView bias, float eps) = 0;
  virtual void DoLinear(TensorView y, ConstTensorView x, const LinearWeight& w,
                        Activation activation, bool add) = 0;
  virtual void DoSiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) = 0;
  virtual void DoConv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                        int64_t kernel, int64_t stride, Activation activation) = 0;
  virtual void DoMoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) = 0;
  virtual void DoAddMoe(TensorView y, ConstTensorView x, ConstTensorView ids,
                        ConstTensorView weights, std::span<const ExpertWeights> experts) = 0;
  virtual void DoRope(TensorView x, std::span<const int32_t> positions,
                      std::span<const float> inv_freq) = 0;
  virtual void DoStoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k, ConstTensorView v,
                         std::span<const int64_t> slot_mapping) = 0;
  virtual void DoPagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv,
                                int32_t layer, const AttentionBatch& batch, float scale,
                                bool causal) = 0;
  virtual void DoEncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k,
                                  ConstTensorView v, int64_t seqs, float scale) = 0;
  virtual void DoChooseTokens(std::span<ChosenToken> chosen, ConstTensorView logits,
                              std::span<const TokenChoice> choices) = 0;

  const DType dtype_;
};

}  // namespace sensorium
