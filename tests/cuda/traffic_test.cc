// Bytes that each kernel moves, counted load by load while it is executed by emulation, against the
// least it has to move; and the section of cuda/COSTS.md that says so.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cuda/cuda_error.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/choose_tokens.h"
#include "cuda/kernels/conv1d.h"
#include "cuda/kernels/convert_rows.h"
#include "cuda/kernels/layer_norm.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/log_mel.h"
#include "cuda/kernels/moe.h"
#include "cuda/kernels/picture.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/kernels/rope.h"
#include "cuda/kernels/silu_mul.h"
#include "cuda/kernels/store_kv.h"
#include "gtest/gtest.h"
#include "tests/cuda/costs_file.h"
#include "tests/cuda/kernel_costs.h"
#include "tests/cuda/kernel_launches.h"
#include "tests/cuda_emu/emulated_device.h"
#include "tests/cuda_emu/traffic.h"

namespace sensorium::cuda {
namespace {

constexpr Type kF32 = Type::kFloat32, kBf16 = Type::kBFloat16;

// The arrays of one launch, watched; freed with it.
class Device {
 public:
  ~Device() {
    for (void* p : arrays_) cudaFree(p);
  }
  template <typename T>
  T* Array(std::vector<T> values) {
    void* p = nullptr;
    CUDA_CHECK(cudaMalloc(&p, values.size() * sizeof(T)));
    arrays_.push_back(p);
    std::copy(values.begin(), values.end(), static_cast<T*>(p));
    cuda_emu::Watch(p, values.size() * sizeof(T));
    return static_cast<T*>(p);
  }
  // Ones.
  void* Matrix(int64_t rows, int64_t columns, Type type) {
    const auto n = static_cast<size_t>(rows * columns);
    if (type == kF32) return Array(std::vector<float>(n, 1.f));
    return Array(std::vector<__nv_bfloat16>(n, __float2bfloat16(1.f)));
  }
  Rows Out(int64_t rows, int64_t columns, Type type) {
    return {Matrix(rows, columns, type), columns, type};
  }
  ConstRows In(int64_t rows, int64_t columns, Type type) {
    return {Matrix(rows, columns, type), columns, type};
  }
  Queue& queue() { return queue_; }

 private:
  Queue queue_;
  std::vector<void*> arrays_;
};

struct Case {
  std::string kernel, shape, unit;
  double units;
  KernelCost least;
  std::function<void(Device&)> launch;
  std::vector<std::string> launched = {kernel};  // in order
};

constexpr int64_t kRows = 5, kColumns = 1536;  // a row is cut at 1024 columns

void AddRows(std::vector<Case>& cases) {
  const double n = kRows * kColumns;
  cases.push_back({"convert_rows_kernel", "float to bf16", "element", n, ElementwiseCost(n, 6, 0),
                   [](Device& d) {
                     ConvertRows(d.Out(kRows, kColumns, kBf16), d.In(kRows, kColumns, kF32), kRows,
                                 kColumns, d.queue());
                   }});
  cases.push_back({"pad_rows_kernel",
                   "float 5 x 1536 to bf16 8 x 1568",
                   "element",
                   n,
                   {4 * n + 2.0 * 8 * 1568, 0},
                   [](Device& d) {
                     PadRows(d.Out(8, 1568, kBf16), d.In(kRows, kColumns, kF32), kRows, kColumns, 8,
                             1568, d.queue());
                   }});
  cases.push_back({"embed_rows_kernel", "bf16 table to float", "element", n,
                   ElementwiseCost(n, 6, 0), [](Device& d) {
                     auto* y = static_cast<float*>(d.Matrix(kRows, kColumns, kF32));
                     EmbedRows(y, kColumns, d.In(9, kColumns, kBf16),
                               d.Array<int32_t>({8, 0, 3, 1, 7}), false, kRows, kColumns,
                               d.queue());
                   }});
  cases.push_back(
      {"gather_rows_kernel", "bf16", "element", n, ElementwiseCost(n, 4, 0), [](Device& d) {
         GatherRows(d.Out(kRows, kColumns, kBf16), d.In(9, kColumns, kBf16),
                    d.Array<int32_t>({8, 0, 3, 1, 7}), kRows, kColumns, d.queue());
       }});
  cases.push_back({"scatter_add_rows_kernel", "bf16 onto float", "element", n,
                   ElementwiseCost(n, 10, 1), [](Device& d) {
                     auto* y = static_cast<float*>(d.Matrix(9, kColumns, kF32));
                     ScatterAddRows(y, kColumns, d.In(kRows, kColumns, kBf16),
                                    d.Array<int32_t>({8, 0, 3, 1, 7}), kRows, kColumns, d.queue());
                   }});
  cases.push_back({"mean_rows_kernel", "bf16, groups of 4", "element of y", n,
                   ElementwiseCost(n, 10, 4), [](Device& d) {
                     MeanRows(d.Out(kRows, kColumns, kBf16), d.In(4 * kRows, kColumns, kBf16), 4,
                              kRows, kColumns, d.queue());
                   }});
  cases.push_back({"conv1d_windows_kernel",
                   "float 40 frames of 80 to bf16, 3 taps",
                   "window",
                   40,
                   {40.0 * 80 * 4 + 40.0 * 240 * 2, 0},
                   [](Device& d) {
                     Conv1dWindows(d.Out(40, 240, kBf16), d.In(40, 80, kF32), {40, 40, 80, 3, 1}, 0,
                                   40, d.queue());
                   }});
  cases.push_back({"rms_norm_kernel", "float to bf16", "element", n,
                   RmsNormCost(kRows, kColumns, 4, 2), [](Device& d) {
                     auto* weight = static_cast<float*>(d.Matrix(1, kColumns, kF32));
                     RmsNorm(d.Out(kRows, kColumns, kBf16), d.In(kRows, kColumns, kF32), weight,
                             1e-5f, false, kRows, kColumns, d.queue());
                   }});
  cases.push_back({"layer_norm_kernel", "float to bf16", "element", n,
                   LayerNormCost(kRows, kColumns, 4, 2), [](Device& d) {
                     auto* weight = static_cast<float*>(d.Matrix(1, kColumns, kF32));
                     auto* bias = static_cast<float*>(d.Matrix(1, kColumns, kF32));
                     LayerNorm(d.Out(kRows, kColumns, kBf16), d.In(kRows, kColumns, kF32), weight,
                               bias, 1e-5f, kRows, kColumns, d.queue());
                   }});
  cases.push_back(
      {"silu_mul_kernel", "float to bf16", "element", n, SiluMulCost(n, 4, 2), [](Device& d) {
         SiluMul(d.Out(kRows, kColumns, kBf16), d.In(kRows, kColumns, kF32),
                 d.In(kRows, kColumns, kF32), kRows, kColumns, d.queue());
       }});
  cases.push_back({"rope_kernel", "bf16, 7 tokens of 4 heads of 64", "token", 7,
                   RopeCost(7, 4, 64, 2), [](Device& d) {
                     Rope(d.Out(7, 4 * 64, kBf16), d.Array(std::vector<int32_t>(7, 3)),
                          d.Array(std::vector<float>(32, .5f)), 7, 4, 32, d.queue());
                   }});
  cases.push_back({"store_kv_kernel", "bf16, 5 tokens of 2 heads of 64", "token", 5,
                   StoreKvCost(5, 2, 64, 2, 2), [](Device& d) {
                     const KvLayer kv = {
                         d.Matrix(2, 2 * 2 * 16 * 64, kBf16), 2 * 2 * 16 * 64, 16, 2, 64, kBf16};
                     StoreKv(kv, d.In(5, 128, kBf16), d.In(5, 128, kBf16),
                             d.Array<int64_t>({0, 17, 3, 30, 9}), 5, d.queue());
                   }});
}

void AddLinears(std::vector<Case>& cases) {
  constexpr int64_t kIn = 256, kOut = 192;
  const auto problem = [](Device& d, int64_t rows, Type type) {
    LinearProblem p = {.y = d.Out(rows, kOut, kF32),
                       .x = d.In(rows, kIn, type),
                       .rows = rows,
                       .in = kIn,
                       .in_padded = kIn,
                       .out = kOut,
                       .type = type};
    p.matrix = {d.Matrix(kOut, kIn, type), static_cast<float*>(d.Matrix(1, kOut, kF32))};
    return p;
  };
  for (const auto& [kernel, rows, type] :
       {std::tuple<const char*, int64_t, Type>{"linear_bf16_kernel<.., 16>", 8, kBf16},
        {"linear_bf16_kernel<.., 64>", 128, kBf16},
        {"linear_float32_kernel<16>", 8, kF32},
        {"linear_float32_kernel<64>", 128, kF32}}) {
    const double wide = type == kF32 ? 4 : 2;
    cases.push_back({kernel, std::to_string(rows) + " x 256 by 192 outputs", "row",
                     static_cast<double>(rows),
                     LinearCost(static_cast<double>(rows), kIn, kOut, wide, 4, wide),
                     [=](Device& d) { Linear(problem(d, rows, type), d.queue()); }});
  }
  cases.push_back({"finish_linear_kernel",
                   "8 x 192",
                   "element",
                   8 * kOut,
                   {8.0 * kOut * 8 + 4.0 * kOut, 8.0 * kOut},
                   [](Device& d) {
                     LinearProblem p = {.y = d.Out(8, kOut, kF32),
                                        .x = {},
                                        .rows = 8,
                                        .in = kIn,
                                        .in_padded = kIn,
                                        .out = kOut,
                                        .type = kBf16};
                     p.matrix = {nullptr, static_cast<float*>(d.Matrix(1, kOut, kF32))};
                     FinishLinear(p, d.In(8, kOut, kF32), d.queue());
                   }});
}

// 6 tokens, 8 experts, 2 chosen: token t goes to t and t + 1.
void AddMixture(std::vector<Case>& cases) {
  constexpr int64_t kTokens = 6, kExperts = 8, kChosen = 2, kHidden = 1536;
  const auto routing = [](Device& d) {
    std::vector<int32_t> ids;
    for (int32_t t = 0; t < kTokens; ++t) ids.insert(ids.end(), {t, t + 1});
    return Routing{d.Array(ids), kChosen, d.Array(std::vector<float>(kTokens * kChosen, .5f)),
                   kChosen,      kTokens, kChosen,
                   kExperts};
  };
  cases.push_back({"moe_route_kernel",
                   "6 tokens, 2 of 8 experts",
                   "token",
                   kTokens,
                   {kTokens * (kExperts * 4.0 + kChosen * 8.0), kTokens * kExperts * 3.0},
                   [=](Device& d) {
                     std::vector<float> logits;
                     for (int i = 0; i < kTokens * kExperts; ++i) logits.push_back(i * 7 % 11);
                     MoeRoute(routing(d), d.Array(logits), kExperts, d.queue());
                   }});
  cases.push_back({"sort_pairs_kernel",
                   "6 tokens, 2 of 8 experts",
                   "pair",
                   kTokens * kChosen,
                   // ids once, the counts written and read, both orders written
                   {kTokens * kChosen * 12.0 + 2 * (kExperts + 1) * 4.0, 0},
                   [=](Device& d) {
                     const PairOrder order = {d.Array(std::vector<int32_t>(kExperts + 1)),
                                              d.Array(std::vector<int32_t>(kTokens * kChosen)),
                                              d.Array(std::vector<int32_t>(kTokens * kChosen))};
                     SortPairs(order, routing(d), d.queue());
                   }});
  cases.push_back({"add_experts_kernel",
                   "6 tokens of 1536, 2 experts each",
                   "token",
                   kTokens,
                   {kTokens * kHidden * (kChosen * 4.0 + 8.0), kTokens * kHidden * kChosen * 2.0},
                   [=](Device& d) {
                     std::vector<int32_t> places;
                     for (int32_t i = 0; i < kTokens * kChosen; ++i) places.push_back(i);
                     auto* y = static_cast<float*>(d.Matrix(kTokens, kHidden, kF32));
                     auto* rows = static_cast<float*>(d.Matrix(kTokens * kChosen, kHidden, kF32));
                     AddExperts(y, kHidden, rows, d.Array(places), routing(d), kHidden, d.queue());
                   }});
}

// Causal attention of the last `tokens` of one sequence, in tiles as the backend cuts them.
struct Sequence {
  int tokens, context, heads, kv_heads, dims;
  Type type;
};
void RunAttention(Device& d, const Sequence& s) {
  const int group = s.heads / s.kv_heads, rows = s.tokens * group;
  const int blocks = CeilDiv(s.context, 16);
  AttentionProblem p = {.y = d.Out(s.tokens, s.heads * s.dims, s.type),
                        .q = d.In(s.tokens, s.heads * s.dims, s.type),
                        .keys = {},
                        .heads = s.heads,
                        .kv_heads = s.kv_heads,
                        .head_dim = s.dims,
                        .scale = 0.1f,
                        .type = s.type};
  const int64_t stride = int64_t{s.kv_heads} * 2 * 16 * s.dims;
  p.keys.blocks = {d.Matrix(blocks, stride, s.type), stride, 16, s.kv_heads, s.dims, s.type};
  std::vector<int32_t> table(blocks);
  for (int i = 0; i < blocks; ++i) table[i] = i;
  p.keys.block_tables = d.Array(table);
  p.keys.max_blocks = blocks;
  std::vector<AttentionTask> tasks;
  std::vector<MergeTask> merges;
  int partial = 0;
  for (int first = 0; first < rows; first += kTileRows) {
    const int n = std::min(kTileRows, rows - first);
    const int keys = s.context - s.tokens + 1 + (first + n - 1) / group;
    const int pieces = CeilDiv(keys, kSplitKeys);
    MergeTask merge = {0, first, n, s.context - s.tokens + 1, 1, pieces > 1 ? partial : -1};
    for (int i = 0; i < pieces; ++i) {
      tasks.push_back({0, first, n, merge.first_limit, 1, i * kSplitKeys,
                       std::min(keys, (i + 1) * kSplitKeys), 0, pieces > 1 ? partial + i * n : -1});
    }
    if (pieces == 1) continue;
    merges.push_back(merge);
    partial += pieces * n;
  }
  p.partials = d.Array(std::vector<float>(PartialBytes(partial, s.kv_heads, s.dims) / 4));
  Attention(p, d.Array(tasks), static_cast<int64_t>(tasks.size()), d.Array(merges),
            static_cast<int64_t>(merges.size()), d.queue());
}

// The pieces of one token alone, behind a task of no rows as recorded passes have them.
void RunMerge(Device& d, int context, int heads, int kv_heads, int dims) {
  const int group = heads / kv_heads, pieces = CeilDiv(context, kSplitKeys);
  AttentionProblem p = {.y = d.Out(1, heads * dims, kBf16),
                        .q = d.In(1, heads * dims, kBf16),
                        .keys = {},
                        .heads = heads,
                        .kv_heads = kv_heads,
                        .head_dim = dims,
                        .scale = 0.1f,
                        .type = kBf16};
  p.partials = d.Array(std::vector<float>(PartialBytes(pieces * group, kv_heads, dims) / 4, 1.f));
  Attention(p, d.Array(std::vector<AttentionTask>(1)), 1,
            d.Array(std::vector<MergeTask>{{0, 0, group, context, 1, 0}}), 1, d.queue());
}

void AddAttention(std::vector<Case>& cases) {
  const auto add = [&](const char* kernel, const std::string& shape, const Sequence& s) {
    const double wide = s.type == kF32 ? 4 : 2, n = s.tokens;
    // With pieces: each writes and the merge reads head_dim + 2 floats a row.
    const double pieces = s.context > kSplitKeys ? (s.context + kSplitKeys - 1) / kSplitKeys : 0;
    KernelCost least = AttentionCost(n, s.context, n * (s.context - (n - 1) / 2), s.heads,
                                     s.kv_heads, s.dims, wide, wide);
    least.bytes += pieces * n * s.heads * (s.dims + 2) * 8;
    cases.push_back(
        {kernel, shape, "query token", n, least, [=](Device& d) { RunAttention(d, s); }});
    if (pieces > 0) cases.back().launched.push_back("attention_merge_kernel");
  };
  add("attention_mma_kernel<64>", "decode at 500, 8 heads on 2", {1, 500, 8, 2, 64, kBf16});
  add("attention_mma_kernel<128>", "decode at 500, 8 heads on 2", {1, 500, 8, 2, 128, kBf16});
  add("attention_mma_kernel<128>", "decode at 1500, 8 heads on 2, with its merge",
      {1, 1500, 8, 2, 128, kBf16});
  add("attention_mma_kernel<128>", "prefill of 64 at 256, 4 heads on 4",
      {64, 256, 4, 4, 128, kBf16});
  add("attention_plain_kernel", "decode at 500, 8 heads on 2 of 64, float",
      {1, 500, 8, 2, 64, kF32});
  // Each piece's output, greatest score and sum.
  constexpr double kPieces = 3, kHeads = 8, kDims = 128;
  cases.push_back(
      {"attention_merge_kernel",
       "3 pieces of a decode, 8 heads of 128",
       "query token",
       1,
       {kPieces * kHeads * (kDims + 2) * 4 + kHeads * kDims * 2, kPieces * kHeads * kDims * 2},
       [](Device& d) { RunMerge(d, 1500, 8, 2, 128); },
       {"attention_mma_kernel<128>", "attention_merge_kernel"}});
}

// A window's end: 40 of 48 rows of spectra, each bin in one band or two, the first in none.
void AddSound(std::vector<Case>& cases) {
  constexpr int kMels = 80, kBins = 201, kHeard = 40, kAll = 48;
  std::vector<int32_t> first_bin, weights_at = {0};
  for (int m = 0; m < kMels; ++m) {  // bins [1, 201) in bands of five, half of them shared
    first_bin.push_back(1 + m * 5 / 2);
    weights_at.push_back(weights_at.back() + std::min(5, kBins - first_bin.back()));
  }
  const int32_t num_weights = weights_at.back();
  const double tables = 4.0 * (kMels + kMels + 1 + num_weights);
  const double spectra = kHeard * 2.0 * (kBins - 1) * 4;
  const auto bands = [=](Device& d) -> MelBands {
    return {d.Array(first_bin), d.Array(weights_at),
            d.Array(std::vector<float>(static_cast<size_t>(num_weights), 0.1f)), kMels, kBins};
  };
  const auto in = [=](Device& d) {
    return d.Array(std::vector<float>(size_t{kHeard} * 2 * kBins, 1.f));
  };
  cases.push_back({"log_mel_kernel",
                   "40 of 48 rows, 80 mels, to bf16",
                   "row",
                   kAll,
                   {spectra + kAll * kMels * 2.0 + tables, kHeard * (num_weights * 5.0 + kMels)},
                   [=](Device& d) {
                     LogMel(d.Out(kAll, kMels, kBf16), in(d), bands(d), kAll, kHeard, kAll,
                            d.Array(std::vector<float>{1.f}), 0.f, d.queue());
                   }});
  cases.push_back({"row_energies_kernel",
                   "80 mels",
                   "row",
                   kHeard,
                   {spectra + kHeard * 4.0 + tables, kHeard * num_weights * 5.0},
                   [=](Device& d) {
                     auto* energies = d.Array(std::vector<float>(kHeard));
                     RowEnergies(energies, in(d), bands(d), kHeard, d.queue());
                   }});
  cases.push_back(
      {"greatest_energy_kernel", "3000 rows", "row", 3000, {3000 * 4.0 + 4, 3000}, [=](Device& d) {
         auto* energies = d.Array(std::vector<float>(3000, 2.f));
         GreatestOf(d.Array(std::vector<float>(1)), energies, 3000, 0.f, false, d.queue());
       }});
}

// A strip of 12 rows that become 6 and a crop that hangs over the edge.
void AddPictures(std::vector<Case>& cases) {
  constexpr int kWidth = 700, kRowsIn = 12, kToWidth = 350, kToHeight = 6;
  struct Axis {
    std::vector<int32_t> first, weights_at;
    std::vector<float> weights;
  };
  const auto halve = [](int outputs) {  // two inputs each
    Axis axis;
    for (int k = 0; k < outputs; ++k) axis.first.push_back(2 * k);
    for (int k = 0; k <= outputs; ++k) axis.weights_at.push_back(2 * k);
    axis.weights.assign(2 * static_cast<size_t>(outputs), 0.5f);
    return axis;
  };
  const auto taps = [](Device& d, const Axis& a) -> ResizeTaps {
    return {d.Array(a.first), d.Array(a.weights_at), d.Array(a.weights),
            static_cast<int64_t>(a.first.size())};
  };
  const Axis columns = halve(kToWidth), rows = halve(kToHeight);
  const double z = kRowsIn * kToWidth * 3.0, y = kToHeight * kToWidth * 3.0;
  cases.push_back({"resize_columns_kernel",
                   "12 rows of 700 to 350",
                   "pixel",
                   kRowsIn * kWidth,
                   {kRowsIn * kWidth * 3.0 + z * 4 + (4 * kToWidth + 1) * 4.0, z * 6},
                   [=](Device& d) {
                     auto* pixels =
                         d.Array(std::vector<uint8_t>(size_t{3} * kRowsIn * kWidth, 200));
                     ResizeColumns(d.Array(std::vector<float>(static_cast<size_t>(z))), pixels,
                                   kWidth, taps(d, columns), kRowsIn, d.queue());
                   }});
  cases.push_back({"resize_rows_kernel",
                   "12 rows to 6 of 350",
                   "value of y",
                   y,
                   {z * 4 + y * 4 + (4 * kToHeight + 1) * 4.0, y * 4},
                   [=](Device& d) {
                     auto* in = d.Array(std::vector<float>(static_cast<size_t>(z), 0.5f));
                     ResizeRows(d.Array(std::vector<float>(static_cast<size_t>(y))), in,
                                taps(d, rows), kToWidth * 3, 0, kRowsIn, 0, kToHeight, d.queue());
                   }});
  constexpr int kSide = 4, kPatch = 14, kCrop = kSide * kPatch, kInside = 50;
  const double patches = kCrop * kCrop * 3.0;
  cases.push_back({"cut_crop_kernel",
                   "4 x 4 patches of 14 to bf16, 50 x 56 pixels inside",
                   "value",
                   patches,
                   {patches * 2 + kInside * kCrop * 3.0 * 4, patches * 2},
                   [=](Device& d) {
                     const CropOf crop = {
                         .picture = d.Array(std::vector<float>(size_t{3} * kInside * 80, 0.5f)),
                         .height = kInside,
                         .width = 80,
                         .x = 3,
                         .y = 0,
                         .per_side = kSide,
                         .patch_size = kPatch,
                         .mean = {0.5f, 0.5f, 0.5f},
                         .std = {0.25f, 0.25f, 0.25f}};
                     CutCrop(d.Out(kSide * kSide, kPatch * kPatch * 3, kBf16), crop, d.queue());
                   }});
}

// Two greedy choices with Whisper's bans, one draw with edits; the row is read once for each.
void AddChoices(std::vector<Case>& cases, int vocab = 51866) {
  struct Sent {
    int32_t banned[90] = {};
    TokenEdit edits[8] = {};
  };
  const auto run = [=](Device& d, Choice choice, int count) {
    std::vector<float> row(vocab);
    for (int i = 0; i < vocab; ++i) row[i] = static_cast<float>(i * 7919 % 1000) * 0.01f;
    Sent sent;
    for (int i = 0; i < 90; ++i) sent.banned[i] = i * 500;
    for (int i = 0; i < 8; ++i) sent.edits[i] = {i * 1000, 0.5f, 1.1f, 0.1f};
    const auto* arrays = d.Array(std::vector<Sent>{sent});
    choice.logits = d.Array(row);
    choice.banned[0] = offsetof(Sent, banned);
    choice.num_banned[0] = 90;
    choice.edits = offsetof(Sent, edits);
    choice.range_from[0] = vocab - 2, choice.range_to[0] = vocab;
    std::vector<Choice> choices(count, choice);
    for (int i = 0; i < count; ++i) {
      choices[i].answer = static_cast<uint32_t>(i * AnswerBytes(choice.num_likeliest, 0));
    }
    auto* answers = d.Array(std::vector<double>(count * AnswerBytes(choice.num_likeliest, 0) / 8));
    ChooseTokens(d.Array(choices), count, reinterpret_cast<const std::byte*>(arrays),
                 reinterpret_cast<std::byte*>(answers), vocab, choice.num_edits > 0, d.queue());
  };
  Choice greedy = {};
  greedy.timestamp_begin = -1;
  const KernelCost cost = ChooseTokensCost(1, vocab);
  cases.push_back({"choose_tokens_kernel", "greedy, 90 of 51866 ids banned", "choice", 1, cost,
                   [=](Device& d) { run(d, greedy, 1); }});
  Choice timed = greedy;
  timed.timestamp_begin = 50365;
  cases.push_back({"choose_tokens_kernel", "greedy, with the rule for times", "choice", 1, cost,
                   [=](Device& d) { run(d, timed, 1); }});
  Choice drawn = greedy;
  drawn.num_edits = 8;
  drawn.temperature = 0.7f;
  drawn.top_p = 0.9f;
  drawn.top_k = 40;
  drawn.log_min_p = -INFINITY;
  drawn.num_likeliest = 5;
  cases.push_back({"choose_tokens_kernel", "8 edits, top_k, top_p, a draw, 5 likeliest", "choice",
                   1, cost, [=](Device& d) { run(d, drawn, 1); }});
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  AddRows(cases);
  AddLinears(cases);
  AddMixture(cases);
  AddAttention(cases);
  AddSound(cases);
  AddPictures(cases);
  AddChoices(cases);
  return cases;
}

TEST(TrafficTest, EachKernelMovesWhatItsHeaderSaysAndTheTableTellsTheRest) {
  std::string table =
      "Counted while each kernel was executed by emulation (tests/cuda/traffic_test.cc), load by\n"
      "load. `least`: inputs and outputs once. `touched`: bytes of memory that were read or "
      "written\n"
      "at all, what the bus carries when caches hold the rest; the test fails beyond 2 % of the\n"
      "least. `asked`: what threads load and store in all, before a warp's equal addresses become\n"
      "one access and caches answer what was read before.\n\n"
      "| kernel | at | unit | least bytes a unit | FLOPs a unit | touched / least | asked / least "
      "|\n|---|---|---|---|---|---|---|\n";
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(c.kernel + ", " + c.shape);
    cuda_emu::Traffic traffic;
    {
      Device device;
      c.launch(device);
      device.queue().Wait();
      traffic = cuda_emu::TakeTraffic();
    }
    const double touched = static_cast<double>(traffic.touched_bytes) / c.least.bytes;
    EXPECT_NEAR(touched, 1, 0.02);
    EXPECT_GE(traffic.asked_bytes, traffic.touched_bytes);
    char row[400];
    std::snprintf(row, sizeof(row), "| `%s` | %s | %s | %.1f | %.1f | %.3f | %.2f |\n",
                  c.kernel.c_str(), c.shape.c_str(), c.unit.c_str(), c.least.bytes / c.units,
                  c.least.flops / c.units, touched,
                  static_cast<double>(traffic.asked_bytes) / c.least.bytes);
    table += row;
  }
  CheckCostsSection("Bytes and operations", table);
}

TEST(TrafficTest, EachKernelHasARowOfItsOwn) {
  std::set<const KernelLaunch*> with_row;
  for (const Case& c : AllCases()) with_row.insert(LaunchOf(c.kernel));
  for (const KernelLaunch& l : kLaunches) EXPECT_TRUE(with_row.contains(&l)) << l.kernel;
}

// kernel_launches.h, which the occupancy in cuda/COSTS.md is computed from.
TEST(TrafficTest, TheLaunchersAskForTheThreadsAndSharedMemoryThatTheTableHas) {
  std::vector<Case> cases = AllCases();
  // What is launched largest at other sizes than those above.
  const auto add = [&](const char* kernel, std::function<void(Device&)> launch) {
    cases.push_back({kernel, "at its largest", "", 1, {}, std::move(launch)});
  };
  add("attention_plain_kernel", [](Device& d) { RunAttention(d, {1, 9, 1, 1, 128, kF32}); });
  add("rope_kernel", [](Device& d) {
    Rope(d.Out(1, 256, kF32), d.Array(std::vector<int32_t>(1)),
         d.Array(std::vector<float>(128, .5f)), 1, 1, 128, d.queue());
  });
  add("store_kv_kernel", [](Device& d) {
    const KvLayer kv = {d.Matrix(1, 2 * 16 * 128, kBf16), 2 * 16 * 128, 16, 1, 128, kBf16};
    StoreKv(kv, d.In(1, 128, kBf16), d.In(1, 128, kBf16), d.Array<int64_t>({0}), 1, d.queue());
  });
  AddChoices(cases, 152064);

  std::map<const KernelLaunch*, cuda_emu::LaunchShape> largest;
  std::vector<cuda_emu::LaunchShape> launches;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.kernel + ", " + c.shape);
    launches.clear();
    {
      Device device;
      cuda_emu::RecordLaunches(&launches);
      c.launch(device);
      cuda_emu::RecordLaunches(nullptr);
      device.queue().Wait();
      cuda_emu::TakeTraffic();
    }
    ASSERT_EQ(launches.size(), c.launched.size());
    for (size_t i = 0; i < c.launched.size(); ++i) {
      const KernelLaunch* in_table = LaunchOf(c.launched[i]);
      ASSERT_NE(in_table, nullptr) << c.launched[i];
      cuda_emu::LaunchShape& most = largest[in_table];
      most.threads = std::max(most.threads, launches[i].threads);
      most.shared_bytes = std::max(most.shared_bytes, launches[i].shared_bytes);
    }
  }
  for (const KernelLaunch& l : kLaunches) {
    SCOPED_TRACE(l.kernel);
    EXPECT_EQ(largest[&l].threads, l.threads);
    EXPECT_EQ(largest[&l].shared_bytes, static_cast<size_t>(l.shared_bytes));
  }
}

}  // namespace
}  // namespace sensorium::cuda
