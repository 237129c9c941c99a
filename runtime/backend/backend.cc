#include "runtime/backend/backend.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace sensorium {
namespace {

// A vector of float32, one value per column.
void CheckColumns(const ConstTensorView& v, int64_t columns) {
  CHECK(v.rank() == 1 && v.dtype() == DType::kFloat32 && v.contiguous());
  CHECK_EQ(v.dim(0), columns);
}

void CheckIndices(std::span<const int32_t> indices, int64_t rows) {
  for (int32_t i : indices) CHECK(i >= 0 && i < rows) << i << " of " << rows << " rows";
}

void CheckKv(const KvCacheView& kv, int32_t layer) {
  CHECK(layer >= 0 && layer < kv.layout.layers) << layer << " of " << kv.layout.layers;
  CHECK(kv.layout.kv_heads > 0 && kv.layout.head_dim > 0 && kv.layout.head_dim % 16 == 0);
  CHECK(kv.layout.block_size > 0 && kv.layout.block_size % 16 == 0);
  CHECK_EQ(kv.block_stride_bytes % 64, 0u);
}

void CheckChoice(const TokenChoice& c, int64_t rows, int32_t vocab) {
  CHECK(c.row >= 0 && c.row < rows) << c.row << " of " << rows << " rows";
  for (const auto& ids : c.banned) CheckIndices(ids, vocab);
  for (const auto& [from, to] : c.banned_ranges) {
    CHECK(from >= to || (from >= 0 && to <= vocab)) << from << " to " << to << " of " << vocab;
  }
  CHECK(c.timestamp_begin >= -1 && c.timestamp_begin <= vocab) << c.timestamp_begin;
  int32_t last = -1;
  for (const LogitEdit& edit : c.edits) {
    CHECK(edit.id > last && edit.id < vocab) << edit.id << " behind " << last << " of " << vocab;
    CHECK_GT(edit.repetition, 0);
    last = edit.id;
  }
  CHECK(c.temperature >= 0 && c.top_k >= 0 && c.top_p > 0 && c.top_p <= 1);
  CHECK(c.min_p >= 0 && c.min_p < 1);
  CHECK(c.num_likeliest >= 0 && c.num_likeliest <= TokenChoice::kMostLikeliest) << c.num_likeliest;
  CheckIndices(c.asked, vocab);
}

}  // namespace

// float32 is good anywhere, the storage type only where the backend computes in it.
#define CHECK_ACT(view) \
  CHECK((view).dtype() == DType::kFloat32 || (view).dtype() == dtype_) << Name((view).dtype())

absl::Status Backend::PacksLinear(DType weight) const {
  if (IsFloat(weight) || (IsQuantised(weight) && DoPacksQuantised(weight))) return absl::OkStatus();
  std::string packed = "float32, bfloat16 and float16";
  for (const DType t : {DType::kInt8, DType::kInt4, DType::kFloat8E4M3}) {
    if (DoPacksQuantised(t)) absl::StrAppend(&packed, ", ", std::string(Name(t)));
  }
  return absl::InvalidArgumentError(absl::StrCat("weights of ", std::string(Name(weight)),
                                                 " are not supported by this device (",
                                                 description(), "): it takes ", packed));
}

std::unique_ptr<LinearWeight> Backend::PackLinear(std::span<const LinearSource> parts) {
  CHECK(!parts.empty());
  for (const LinearSource& part : parts) {
    CHECK_EQ(part.weight.rank(), 2);
    CHECK_EQ(part.weight.dim(1), parts[0].weight.dim(1));
    CHECK_EQ(part.scales.rank() != 0, IsQuantised(part.weight.dtype()));
    if (part.scales.rank() != 0) {
      CHECK(part.scales.rank() == 2 && IsFloat(part.scales.dtype()));
      CHECK(part.group > 0 && part.weight.dim(1) % part.group == 0)
          << "groups of " << part.group << " in " << part.weight.dim(1) << " inputs";
      CHECK_EQ(part.scales.rows(), part.weight.rows());
      CHECK_EQ(part.scales.dim(1), part.weight.dim(1) / part.group);
    }
    const absl::Status packs = PacksLinear(part.weight.dtype());
    CHECK(packs.ok()) << packs.message();
    if (part.bias.rank() == 0) continue;
    CHECK(part.bias.rank() == 1 && IsFloat(part.bias.dtype()));
    CHECK_EQ(part.bias.dim(0), part.weight.rows());
  }
  return DoPackLinear(parts);
}

std::unique_ptr<LinearWeight> Backend::PackConv1d(ConstTensorView weight, ConstTensorView bias) {
  CHECK(weight.rank() == 3 && IsFloat(weight.dtype()));
  if (bias.rank() != 0) {
    CHECK(bias.rank() == 1 && IsFloat(bias.dtype()));
    CHECK_EQ(bias.dim(0), weight.dim(0));
  }
  return DoPackConv1d(weight, bias);
}

std::unique_ptr<TableWeight> Backend::MakeTable(std::span<const ConstTensorView> parts) {
  CHECK(!parts.empty());
  for (const ConstTensorView& part : parts) {
    CHECK(part.rank() == 2 && IsFloat(part.dtype()));
    CHECK_EQ(part.dim(1), parts[0].dim(1));
  }
  return DoMakeTable(parts);
}

void Backend::Copy(TensorView y, ConstTensorView x) {
  CHECK(y.SameShape(x));
  CHECK_ACT(y);
  CHECK_ACT(x);
  if (!y.empty()) DoCopy(y, x);
}

void Backend::CopyToHost(std::span<float> y, ConstTensorView x) {
  CHECK(x.dtype() == DType::kFloat32);
  CHECK_EQ(static_cast<int64_t>(y.size()), x.elements());
  if (!y.empty()) DoCopyToHost(y, x);
}

void Backend::CopyFromHost(TensorView y, std::span<const float> x) {
  CHECK_ACT(y);
  CHECK_EQ(static_cast<int64_t>(x.size()), y.elements());
  if (!y.empty()) DoCopyFromHost(y, x);
}

void Backend::CopyKvBlock(const KvCacheView& kv, BlockId to, BlockId from) {
  CHECK(to >= 0 && to < kv.num_blocks) << to << " of " << kv.num_blocks;
  CHECK(from >= 0 && from < kv.num_blocks) << from << " of " << kv.num_blocks;
  if (to != from) DoCopyKvBlock(kv, to, from);
}

void Backend::Embed(TensorView y, const TableWeight& table, std::span<const int32_t> ids,
                    bool add) {
  CHECK(y.rank() == 2 && y.dtype() == DType::kFloat32);
  CHECK_EQ(y.dim(1), table.columns());
  CHECK_EQ(y.rows(), static_cast<int64_t>(ids.size()));
  for (int32_t id : ids) CHECK(id < table.rows()) << id << " of " << table.rows() << " rows";
  if (!y.empty()) DoEmbed(y, table, ids, add);
}

void Backend::GatherRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  CHECK(y.dtype() == x.dtype());
  CHECK_EQ(y.row_elements(), x.row_elements());
  CHECK_EQ(y.rows(), static_cast<int64_t>(rows.size()));
  CheckIndices(rows, x.rows());
  if (!y.empty()) DoGatherRows(y, x, rows);
}

void Backend::ScatterAddRows(TensorView y, ConstTensorView x, std::span<const int32_t> rows) {
  CHECK(y.dtype() == DType::kFloat32);
  CHECK_ACT(x);
  CHECK_EQ(y.row_elements(), x.row_elements());
  CHECK_EQ(x.rows(), static_cast<int64_t>(rows.size()));
  CheckIndices(rows, y.rows());
  if (!x.empty()) DoScatterAddRows(y, x, rows);
}

void Backend::MeanRows(TensorView y, ConstTensorView x, int64_t group) {
  CHECK(y.dtype() == x.dtype());
  CHECK_ACT(x);
  CHECK_GT(group, 0);
  CHECK_EQ(y.row_elements(), x.row_elements());
  CHECK_EQ(y.rows() * group, x.rows());
  if (!y.empty()) DoMeanRows(y, x, group);
}

void Backend::RmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps) {
  CHECK(y.rank() == 2 && y.SameShape(x));
  CHECK_ACT(y);
  CHECK_ACT(x);
  CheckColumns(weight, x.dim(1));
  if (!y.empty()) DoRmsNorm(y, x, weight, eps, /*add=*/false);
}

void Backend::AddRmsNorm(TensorView y, ConstTensorView x, ConstTensorView weight, float eps) {
  CHECK(y.rank() == 2 && y.SameShape(x));
  CHECK(y.dtype() == DType::kFloat32);
  CHECK_ACT(x);
  CheckColumns(weight, x.dim(1));
  if (!y.empty()) DoRmsNorm(y, x, weight, eps, /*add=*/true);
}

void Backend::LayerNorm(TensorView y, ConstTensorView x, ConstTensorView weight,
                        ConstTensorView bias, float eps) {
  CHECK(y.rank() == 2 && y.SameShape(x));
  CHECK_ACT(y);
  CHECK_ACT(x);
  CheckColumns(weight, x.dim(1));
  CheckColumns(bias, x.dim(1));
  if (!y.empty()) DoLayerNorm(y, x, weight, bias, eps);
}

void Backend::Linear(TensorView y, ConstTensorView x, const LinearWeight& w,
                     Activation activation) {
  CHECK(y.rank() == 2 && x.rank() == 2);
  CHECK_ACT(y);
  CHECK_ACT(x);
  CHECK_EQ(y.rows(), x.rows());
  CHECK_EQ(x.dim(1), w.in_features());
  CHECK_EQ(y.dim(1), w.out_features());
  if (!y.empty()) DoLinear(y, x, w, activation, /*add=*/false);
}

void Backend::AddLinear(TensorView y, ConstTensorView x, const LinearWeight& w) {
  CHECK(y.rank() == 2 && x.rank() == 2);
  CHECK(y.dtype() == DType::kFloat32);
  CHECK_ACT(x);
  CHECK_EQ(y.rows(), x.rows());
  CHECK_EQ(x.dim(1), w.in_features());
  CHECK_EQ(y.dim(1), w.out_features());
  if (!y.empty()) DoLinear(y, x, w, Activation::kNone, /*add=*/true);
}

void Backend::SiluMul(TensorView y, ConstTensorView up, ConstTensorView gate) {
  CHECK(y.rank() == 2 && y.SameShape(up) && y.SameShape(gate));
  CHECK_ACT(y);
  CHECK_ACT(up);
  CHECK_ACT(gate);
  if (!y.empty()) DoSiluMul(y, up, gate);
}

void Backend::Conv1d(TensorView y, ConstTensorView x, const LinearWeight& w, int64_t seqs,
                     int64_t kernel, int64_t stride, Activation activation) {
  CHECK(y.rank() == 2 && x.rank() == 2);
  CHECK_ACT(y);
  CHECK_ACT(x);
  CHECK(seqs >= 1 && kernel >= 1 && stride >= 1);
  CHECK_EQ(x.rows() % seqs, 0);
  const int64_t frames = x.rows() / seqs;
  CHECK_GE(frames, 1);
  CHECK_EQ(y.rows(), seqs * ((frames - 1) / stride + 1));
  CHECK_EQ(x.dim(1), w.in_features());
  CHECK_EQ(y.dim(1), w.out_features());
  DoConv1d(y, x, w, seqs, kernel, stride, activation);
}

void Backend::MoeRoute(TensorView ids, TensorView weights, ConstTensorView logits) {
  CHECK(logits.rank() == 2 && logits.dtype() == DType::kFloat32);
  CHECK(ids.rank() == 2 && ids.dtype() == DType::kInt32);
  CHECK(ids.SameShape(weights) && weights.dtype() == DType::kFloat32);
  CHECK_EQ(ids.rows(), logits.rows());
  CHECK(ids.dim(1) >= 1 && ids.dim(1) <= logits.dim(1)) << ids.dim(1) << " of " << logits.dim(1);
  if (!ids.empty()) DoMoeRoute(ids, weights, logits);
}

void Backend::AddMoe(TensorView y, ConstTensorView x, ConstTensorView ids, ConstTensorView weights,
                     std::span<const ExpertWeights> experts) {
  CHECK(y.rank() == 2 && y.SameShape(x) && y.dtype() == DType::kFloat32);
  CHECK_ACT(x);
  CHECK(ids.rank() == 2 && ids.dtype() == DType::kInt32);
  CHECK(ids.SameShape(weights) && weights.dtype() == DType::kFloat32);
  CHECK_EQ(ids.rows(), x.rows());
  for (const ExpertWeights& e : experts) {
    CHECK_EQ(e.up_gate->in_features(), x.dim(1));
    CHECK_EQ(e.up_gate->out_features(), 2 * e.down->in_features());
    CHECK_EQ(e.down->out_features(), y.dim(1));
  }
  if (!y.empty()) DoAddMoe(y, x, ids, weights, experts);
}

void Backend::Rope(TensorView x, std::span<const int32_t> positions,
                   std::span<const float> inv_freq) {
  CHECK_EQ(x.rank(), 3);
  CHECK_ACT(x);
  CHECK_EQ(x.rows(), static_cast<int64_t>(positions.size()));
  CHECK_EQ(x.dim(2), 2 * static_cast<int64_t>(inv_freq.size()));
  if (!x.empty()) DoRope(x, positions, inv_freq);
}

void Backend::StoreKv(const KvCacheView& kv, int32_t layer, ConstTensorView k, ConstTensorView v,
                      std::span<const int64_t> slot_mapping) {
  CheckKv(kv, layer);
  CHECK(k.rank() == 3 && k.SameShape(v));
  CHECK_ACT(k);
  CHECK_ACT(v);
  CHECK(k.dim(1) == kv.layout.kv_heads && k.dim(2) == kv.layout.head_dim);
  CHECK_EQ(k.rows(), static_cast<int64_t>(slot_mapping.size()));
  const int64_t slots = int64_t{kv.num_blocks} * kv.layout.block_size;
  for (int64_t slot : slot_mapping) CHECK(slot < slots) << slot << " of " << slots << " slots";
  if (!k.empty()) DoStoreKv(kv, layer, k, v, slot_mapping);
}

void Backend::PagedAttention(TensorView y, ConstTensorView q, const KvCacheView& kv, int32_t layer,
                             const AttentionBatch& batch, float scale, bool causal) {
  CheckKv(kv, layer);
  CHECK(q.rank() == 3 && y.SameShape(q));
  CHECK_ACT(y);
  CHECK_ACT(q);
  CHECK_EQ(q.dim(2), kv.layout.head_dim);
  CHECK(q.dim(1) > 0 && q.dim(1) % kv.layout.kv_heads == 0)
      << q.dim(1) << " heads, " << kv.layout.kv_heads << " kv heads";
  CHECK_GT(scale, 0);
  const int32_t seqs = batch.seqs();
  CHECK_EQ(batch.query_start.size(), static_cast<size_t>(seqs) + 1);
  CHECK_EQ(batch.query_start[0], 0);
  CHECK_EQ(batch.query_start[seqs], q.rows());
  CHECK_GE(batch.block_tables.size(), static_cast<size_t>(seqs) * batch.max_blocks);
  for (int32_t s = 0; s < seqs; ++s) {
    const int32_t rows = batch.query_start[s + 1] - batch.query_start[s];
    CHECK_GE(rows, 0);
    if (rows == 0) continue;
    const int32_t context = batch.context_len[s];
    CHECK_GE(context, causal ? rows : 1);
    const int32_t blocks = (context - 1) / kv.layout.block_size + 1;
    CHECK_LE(blocks, batch.max_blocks);
    for (int32_t b = 0; b < blocks; ++b) {
      const BlockId id = batch.block_tables[int64_t{s} * batch.max_blocks + b];
      CHECK(id >= 0 && id < kv.num_blocks) << id << " of " << kv.num_blocks << " blocks";
    }
  }
  if (!y.empty()) DoPagedAttention(y, q, kv, layer, batch, scale, causal);
}

void Backend::EncoderAttention(TensorView y, ConstTensorView q, ConstTensorView k,
                               ConstTensorView v, int64_t seqs, float scale) {
  CHECK(q.rank() == 3 && y.SameShape(q) && k.rank() == 3 && k.SameShape(v));
  CHECK_ACT(y);
  CHECK_ACT(q);
  CHECK_ACT(k);
  CHECK_ACT(v);
  CHECK(q.dim(1) == k.dim(1) && q.dim(2) == k.dim(2));
  CHECK_GT(scale, 0);
  CHECK_GE(seqs, 0);
  if (y.empty()) return;
  CHECK(seqs > 0 && q.rows() % seqs == 0 && k.rows() % seqs == 0 && k.rows() > 0)
      << q.rows() << " queries and " << k.rows() << " keys of " << seqs << " sequences";
  DoEncoderAttention(y, q, k, v, seqs, scale);
}

void Backend::ChooseTokens(ChosenTokens& chosen, ConstTensorView logits,
                           std::span<const TokenChoice> choices) {
  CHECK(logits.rank() == 2 && logits.dtype() == DType::kFloat32);
  const auto vocab = static_cast<int32_t>(logits.dim(1));
  for (const TokenChoice& c : choices) CheckChoice(c, logits.rows(), vocab);
  const std::span<ChosenToken> to = chosen.Prepare(choices);
  if (!to.empty()) DoChooseTokens(to, logits, choices);
}

#undef CHECK_ACT

}  // namespace sensorium
