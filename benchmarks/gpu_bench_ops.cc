// The ops that gpu_bench times, at sizes of the published models.
#include <bit>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "benchmarks/gpu_bench.h"
#include "runtime/base/check.h"
#include "runtime/engine/device_media.h"
#include "runtime/media/log_mel.h"

namespace sensorium {
namespace {

constexpr DType kBf16 = DType::kBFloat16, kF32 = DType::kFloat32;

}  // namespace

void GpuBench::Run() {
  Linears(kBf16);
  Rows();
  MovedRows();
  Attention();
  CrossAttention();
  Convolution();
  Mixture();
  Choices();
  Media();
}

void GpuBench::RunFast() {
  fast_ = true;
  Linears(kBf16);
  Convolution();
}

void GpuBench::RunFloat32() {
  peak_.flops_per_us = 0;
  Linears(kF32);
}

// Molmo 7B-D: qkv and both halves of the MLP.
void GpuBench::Linears(DType type) {
  const auto element = static_cast<double>(SizeOf(type));
  struct Shape {
    const char* name;
    int64_t in, out;
  };
  for (const Shape& s :
       {Shape{"qkv", 3584, 4608}, {"up_gate", 3584, 37888}, {"down", 18944, 3584}}) {
    const int64_t in = Size(s.in), out = Size(s.out);
    std::vector<std::shared_ptr<LinearWeight>> weights;  // of each set, whatever its rows
    for (int64_t rows : {1, 8, 64, 512}) {
      if (fast_ && rows < 64) continue;  // our kernels do these, as when it is strict
      // The library's are of 32 rows and more.
      const int64_t count = fast_ && small_ ? rows / 64 + 32 : Count(rows);
      const double n = static_cast<double>(count), i = static_cast<double>(in),
                   o = static_cast<double>(out);
      size_t set = 0;
      Add("linear " + std::string(s.name) + (type == kF32 ? " float32, " : ", ") +
              std::to_string(rows) + " rows" + (fast_ ? ", fast" : ""),
          [&]() -> Op {
            if (set == weights.size()) weights.push_back(Weight(out, in));
            const TensorView x = Array(type, {count, in}), y = Array(type, {count, out});
            return {element * (i * o + n * i + n * o), 2 * n * i * o,
                    [this, x, y, w = weights[set++]] { be_.Linear(y, x, *w); }};
          });
    }
  }
}

void GpuBench::Rows() {
  const int64_t rows = Count(512), hidden = Size(3584), ffn = Size(18944);
  const double n = static_cast<double>(rows * hidden), f = static_cast<double>(rows * ffn);
  const auto vector = [&] {
    return ConstTensorView(Array(kF32, {1, hidden}).bytes(), kF32, {hidden});
  };
  Add("rms_norm, 512 rows", [&]() -> Op {
    return {6 * n, 4 * n,
            [this, h = Array(kBf16, {rows, hidden}), x = Array(kF32, {rows, hidden}),
             w = vector()] { be_.RmsNorm(h, x, w, 1e-6f); }};
  });
  Add("layer_norm, 512 rows", [&]() -> Op {
    return {6 * n, 8 * n,
            [this, h = Array(kBf16, {rows, hidden}), x = Array(kF32, {rows, hidden}), w = vector(),
             b = vector()] { be_.LayerNorm(h, x, w, b, 1e-6f); }};
  });
  Add("silu_mul, 512 rows", [&]() -> Op {
    return {6 * f, 6 * f, [this, up = Array(kBf16, {rows, ffn}), gate = Array(kBf16, {rows, ffn})] {
              be_.SiluMul(up, up, gate);
            }};
  });
  std::vector<int32_t> positions(rows);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<float> inv_freq(32, 0.1f);
  Add("rope, 512 rows", [&]() -> Op {
    return {4 * n, 3 * n, [this, &positions, &inv_freq, h = Array(kBf16, {rows, hidden})] {
              be_.Rope(h.SplitColumns(h.dim(1) / 64), positions, inv_freq);
            }};
  });
}

// Rows that are only moved, or added up: a step's embeddings, the features among them, the means of
// a crop's patches.
void GpuBench::MovedRows() {
  const int64_t rows = Count(512), hidden = Size(3584), ids = small_ ? 50 : 152064;
  const double n = static_cast<double>(rows * hidden);
  std::vector<uint16_t> values(static_cast<size_t>(ids * hidden), 0x3c00);
  const ConstTensorView part(reinterpret_cast<const std::byte*>(values.data()), kBf16,
                             {ids, hidden});
  const auto table = be_.MakeTable({&part, 1});
  const auto floats = [&] { return Array(kF32, {rows, hidden}); };
  const auto halves = [&](int64_t times = 1) { return Array(kBf16, {times * rows, hidden}); };
  std::vector<int32_t> places(rows);
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), rng_);
  Add("embed, 512 rows", [&]() -> Op {
    std::vector<int32_t> picked(rows);
    for (int32_t& id : picked) {
      id = static_cast<int32_t>(rng_() % static_cast<uint64_t>(ids));
    }
    return {6 * n, n,
            [this, &table, x = floats(), picked] { be_.Embed(x, *table, picked, /*add=*/false); }};
  });
  Add("gather_rows, 512 rows", [&]() -> Op {
    return {4 * n, n,
            [this, &places, y = halves(), x = halves()] { be_.GatherRows(y, x, places); }};
  });
  Add("scatter_add_rows, 512 rows", [&]() -> Op {
    return {10 * n, n,
            [this, &places, y = floats(), x = halves()] { be_.ScatterAddRows(y, x, places); }};
  });
  Add("mean_rows, 512 rows of 4", [&]() -> Op {
    return {10 * n, 4 * n, [this, y = halves(), x = halves(4)] { be_.MeanRows(y, x, 4); }};
  });
  Add("convert_rows, 512 rows", [&]() -> Op {
    return {6 * n, n, [this, y = halves(), x = floats()] { be_.Copy(y, x); }};
  });

  const int32_t block = 16, kv_heads = 4, dims = 128;
  const int64_t blocks = (rows + block - 1) / block;
  const KvLayout layout = {
      .layers = 1, .kv_heads = kv_heads, .head_dim = dims, .block_size = block};
  const size_t stride = be_.KvBlockBytes(layout);
  const std::vector<int64_t> slots(places.begin(), places.end());
  const auto moved = static_cast<double>(2 * rows * kv_heads * dims);
  Add("store_kv, 512 rows", [&]() -> Op {
    const TensorView arena = Array(kBf16, {blocks, static_cast<int64_t>(stride / 2)}),
                     k = Array(kBf16, {rows, kv_heads * dims}),
                     v = Array(kBf16, {rows, kv_heads * dims});
    const KvCacheView kv = {arena.bytes(), stride, static_cast<int32_t>(blocks), layout};
    return {4 * moved, moved, [this, &slots, kv, k, v, kv_heads] {
              be_.StoreKv(kv, 0, k.SplitColumns(kv_heads), v.SplitColumns(kv_heads), slots);
            }};
  });
}

// The second convolution of Whisper large's stem.
void GpuBench::Convolution() {
  const int64_t frames = small_ ? 50 : 3000, width = Size(1280), kernel = 3, stride = 2;
  const std::vector<float> values(static_cast<size_t>(width * width * kernel), 0.01f);
  const double n = static_cast<double>(frames), c = static_cast<double>(width);
  Add(std::string("conv1d, Whisper large's second") + (fast_ ? ", fast" : ""), [&]() -> Op {
    const std::shared_ptr<LinearWeight> w = be_.PackConv1d(
        {reinterpret_cast<const std::byte*>(values.data()), kF32, {width, width, kernel}}, {});
    const TensorView x = Array(kBf16, {frames, width}), y = Array(kBf16, {frames / stride, width});
    return {2 * (n * c + n / 2 * c + 3 * c * c), 2 * n / 2 * c * c * 3,
            [this, x, y, w, kernel, stride] {
              be_.Conv1d(y, x, *w, 1, kernel, stride, Activation::kGelu);
            }};
  });
}

// Whisper large: 20 heads of each new token over a window's 1500 positions, which lie in blocks.
void GpuBench::CrossAttention() {
  const int32_t keys = static_cast<int32_t>(Size(1500)), block = 16, dims = 64,
                heads = static_cast<int32_t>(Count(20)), blocks = (keys + block - 1) / block;
  const KvLayout layout = {.layers = 1, .kv_heads = heads, .head_dim = dims, .block_size = block};
  const size_t stride = be_.KvBlockBytes(layout);
  for (int32_t seqs : {1, 8}) {
    const int32_t n = static_cast<int32_t>(Count(seqs));
    std::vector<BlockId> tables(n * blocks);
    std::iota(tables.begin(), tables.end(), 0);
    std::vector<int32_t> start(n + 1), length(n, keys);
    std::iota(start.begin(), start.end(), 0);
    const AttentionBatch batch = {start, length, tables, blocks};
    const double read = double{1} * n * keys * heads * dims;
    Add("cross_attention, decode of " + std::to_string(seqs) + " at 1500", [&]() -> Op {
      const TensorView arena = Array(kBf16, {n * blocks, static_cast<int64_t>(stride / 2)}),
                       q = Array(kBf16, {n, heads * dims}), y = Array(kBf16, {n, heads * dims});
      const KvCacheView kv = {arena.bytes(), stride, n * blocks, layout};
      return {4 * read + 4.0 * n * heads * dims, 4 * read, [this, q, y, kv, batch, heads] {
                be_.PagedAttention(y.SplitColumns(heads), q.SplitColumns(heads), kv, 0, batch,
                                   0.125f, /*causal=*/false);
              }};
    });
  }
}

// Molmo 7B-D's decoder, ViT-L at 336 pixels, Whisper large's encoder.
void GpuBench::Attention() {
  const int32_t most = small_ ? 640 : 8192, block = 16, dims = 128, kv_heads = 4, heads = 28,
                seqs = static_cast<int32_t>(Count(8));
  const KvLayout layout = {
      .layers = 1, .kv_heads = kv_heads, .head_dim = dims, .block_size = block};
  const size_t stride = be_.KvBlockBytes(layout);
  const auto add = [&](const std::string& name, int32_t n, int32_t rows, int32_t context) {
    const int32_t blocks = (context + block - 1) / block;
    std::vector<BlockId> tables(n * blocks);
    std::iota(tables.begin(), tables.end(), 0);
    std::vector<int32_t> start(n + 1), length(n, context);
    for (int32_t s = 0; s <= n; ++s) start[s] = s * rows;
    const AttentionBatch batch = {start, length, tables, blocks};
    // A row sees no key behind its own token's: the last one all, each before it one less.
    const double keys = double{1} * n * context,
                 seen = double{1} * n * rows * (context - (rows - 1) / 2.0);
    Add(name, [&]() -> Op {
      const TensorView arena = Array(kBf16, {n * blocks, static_cast<int64_t>(stride / 2)}),
                       q = Array(kBf16, {n * rows, heads * dims}),
                       y = Array(kBf16, {n * rows, heads * dims});
      const KvCacheView kv = {arena.bytes(), stride, n * blocks, layout};
      return {keys * kv_heads * dims * 4 + 4.0 * n * rows * heads * dims, 4 * seen * heads * dims,
              [this, q, y, kv, batch, heads] {
                be_.PagedAttention(y.SplitColumns(heads), q.SplitColumns(heads), kv, 0, batch,
                                   0.088f, /*causal=*/true);
              }};
    });
  };
  const auto context = static_cast<int32_t>(Size(2048));
  add("paged_attention, decode of 1 at 2048", 1, 1, context);
  add("paged_attention, decode of 8 at 2048", seqs, 1, context);
  add("paged_attention, split and merged, decode of 1 at 8192", 1, 1, most);
  add("paged_attention, split and merged, decode of 8 at 8192", seqs, 1, most);
  add("paged_attention, prefill of 512 at 2048", 1, static_cast<int32_t>(Size(512)), context);
  for (const auto& [name, n, length, count] :
       {std::tuple<const char*, int64_t, int64_t, int64_t>{"encoder_attention, 5 ViT crops", 5, 577,
                                                           16},
        {"encoder_attention, Whisper window", 1, 1500, 20}}) {
    const int64_t of = Count(n), rows = of * (small_ ? 70 : length), h = Count(count);
    const double per_seq = static_cast<double>(rows / of),
                 elements = static_cast<double>(rows * h * 64);
    Add(name, [&]() -> Op {
      const auto array = [&] { return Array(kBf16, {rows, h * 64}); };
      return {8 * elements, 4 * elements * per_seq,
              [this, q = array(), k = array(), v = array(), y = array(), of, h] {
                be_.EncoderAttention(y.SplitColumns(h), q.SplitColumns(h), k.SplitColumns(h),
                                     v.SplitColumns(h), of, 0.125f);
              }};
    });
  }
}

// MolmoE-1B: 8 of 64 experts.
void GpuBench::Mixture() {
  const int64_t hidden = Size(2048), ffn = Size(1024), experts = small_ ? 8 : 64,
                k = small_ ? 2 : 8;
  std::vector<ExpertWeights> weights;
  for (int64_t e = 0; e < experts; ++e) {
    weights.push_back({Weight(2 * ffn, hidden), Weight(hidden, ffn)});
  }
  for (int64_t rows : {1, 8, 512}) {
    const int64_t n = Count(rows);
    Add("moe, " + std::to_string(rows) + " rows", [&]() -> Op {
      const TensorView logits = Array(kF32, {n, experts}), x = Array(kBf16, {n, hidden}),
                       y = Array(kF32, {n, hidden}), w = Array(kF32, {n, k});
      buffers_.push_back(*be_.Allocate(n * k * 4));
      const TensorView ids(buffers_.back()->data(), DType::kInt32, {n, k});
      // The experts that these tokens chose are read once, whoever else chose them.
      be_.MoeRoute(ids, w, logits);
      std::vector<float> bits(n * k);  // copied as they are, whatever they mean
      be_.CopyToHost(bits, ConstTensorView(ids.bytes(), kF32, {n, k}));
      std::set<int32_t> used;
      for (float b : bits) used.insert(std::bit_cast<int32_t>(b));
      CHECK(*used.begin() >= 0 && *used.rbegin() < experts) << *used.begin();
      const double one = 3.0 * hidden * ffn, all = static_cast<double>(n * hidden);
      return {2 * static_cast<double>(used.size()) * one + 10 * all,
              2 * static_cast<double>(n * k) * one, [this, &weights, logits, x, y, w, ids] {
                be_.MoeRoute(ids, w, logits);
                be_.AddMoe(y, x, ids, w, weights);
              }};
    });
  }
}

// Tokens of Molmo 7B-D's and Whisper turbo's vocabularies, each with the wait that ends its step.
// The least is to read each row once.
void GpuBench::Choices() {
  struct Kind {
    const char* name;
    int64_t vocab;
    TokenChoice choice;
  };
  std::vector<int32_t> banned(90);
  std::iota(banned.begin(), banned.end(), 0);
  TokenChoice heard = {.banned = {banned, {}}}, drawn = {.temperature = 0.7f}, listed;
  heard.timestamp_begin = small_ ? 100 : 50365;
  drawn.top_k = 40, drawn.top_p = 0.9f;
  listed.num_likeliest = 6;
  for (const Kind& kind :
       {Kind{"choose_tokens, greedy", 152064, {}}, Kind{"choose_tokens, a draw", 152064, drawn},
        Kind{"choose_tokens, Whisper", 51866, heard},
        Kind{"choose_tokens, the likeliest 6", 51866, listed}}) {
    const int64_t vocab = Size(kind.vocab);
    for (int64_t rows : {1, 64}) {
      const int64_t n = Count(rows);
      std::vector<TokenChoice> choices(n, kind.choice);
      for (int64_t i = 0; i < n; ++i) choices[i].row = static_cast<int32_t>(i);
      const double values = static_cast<double>(n * vocab);
      Add(std::string(kind.name) + ", " + std::to_string(rows) + " rows", [&]() -> Op {
        return {4 * values, 3 * values, [this, &choices, logits = Array(kF32, {n, vocab})] {
                  be_.ChooseTokens(chosen_, logits, choices);
                  be_.Wait();
                }};
      });
    }
  }
}

// A window of Whisper large-v3's sound, and a photograph of 12 megapixels for Molmo: with the way
// up of samples and pixels, which is most of it.
void GpuBench::Media() {
  MediaOps& ops = *be_.media_ops();
  const LogMelExtractor extractor(128);
  const std::vector<float> filters = SlaneyMelFilters(128, 400);
  const auto tables =
      ops.MakeLogMel({.window = extractor.window(), .filters = filters, .hop = 160});
  const int64_t frames = small_ ? 50 : 3000;
  const std::vector<float> samples(static_cast<size_t>(frames * 160), 0.1f);
  const double n = static_cast<double>(frames), spectra = n * 402 * 4;
  // What a recording is heard with before its first window: spectra, each row's greatest energy,
  // the greatest of those, which the step's wait brings back.
  Add("listen, 30 s", [&]() -> Op {
    auto greatest = std::make_shared<GreatestEnergy>();
    greatest->device = Array(kF32, {1, 1}).as<float>();
    return {n * 160 * 4 + 2 * spectra + 2 * n * 4, 2 * n * 400 * 402,
            [this, &ops, &tables, &samples, frames, greatest] {
              ops.Listen(*greatest, *tables, {samples, 0}, 0, frames);
              be_.Wait();
            }};
  });
  Add("log_mel, Whisper window", [&]() -> Op {
    return {n * 160 * 4 + 2 * spectra + n * 128 * 2, 2 * n * 400 * 402,
            [&ops, &tables, &samples, frames, mel = Array(kBf16, {frames, 128})] {
              ops.LogMel(mel, *tables, {samples, 0}, 0, frames, {.device = nullptr, .host = 1.f});
            }};
  });

  const int64_t width = small_ ? 120 : 4000, height = small_ ? 90 : 3000;
  MolmoImageConfig config;
  const auto layout =
      LayOutMolmoImage(static_cast<int32_t>(width), static_cast<int32_t>(height), config);
  CHECK(layout.ok()) << layout.status();
  const DevicePicture picture(
      RgbImage{static_cast<int32_t>(width), static_cast<int32_t>(height),
               std::vector<uint8_t>(static_cast<size_t>(3 * width * height), 100)},
      *layout, config);
  const auto resized = [&] {
    buffers_.push_back(*be_.Allocate(DevicePicture::StateBytes(config)));
    std::byte* const state = buffers_.back()->data();
    picture.Resize(ops, 0, picture.units(), state);
    return state;
  };
  const double pixels = static_cast<double>(3 * width * height);
  Add("resize, photograph of 12 megapixels", [&]() -> Op {
    return {2 * pixels, 8 * pixels, [&ops, &picture, state = resized()] {
              picture.Resize(ops, 0, picture.units(), state);
            }};
  });
  Add("cut_crop, 336 x 336", [&]() -> Op {
    return {336.0 * 336 * 3 * 6, 336.0 * 336 * 3 * 2,
            [&ops, &picture, state = resized(), patches = Array(kBf16, {576, 588})] {
              picture.CutCrops(ops, 0, state, patches);
            }};
  });
}

}  // namespace sensorium
