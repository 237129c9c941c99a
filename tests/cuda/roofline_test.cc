// Predicted step times of published models on published GPUs: what the kernels have to move and to
// do (kernel_costs.h) over the GPU's bandwidth and arithmetic. The section of cuda/COSTS.md that
// lists them is checked here. Predictions, never measurements: the kernels are executed by
// emulation alone, and never timed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "gtest/gtest.h"
#include "tests/cuda/costs_file.h"
#include "tests/cuda/kernel_costs.h"

namespace sensorium {
namespace {

// NVIDIA's data sheets: HBM bandwidth, dense bfloat16 of the tensor cores (half of what they print
// "with sparsity").
struct Gpu {
  const char* name;
  double gigabytes_per_s, teraflops;
};
constexpr Gpu kGpus[] = {
    {"A100 80 GB SXM", 2039, 312},  // "NVIDIA A100 Tensor Core GPU", data sheet, June 2021
    {"L4", 300, 121},               // "NVIDIA L4 Tensor Core GPU", data sheet, March 2023
    {"H100 SXM", 3350, 989},        // "NVIDIA H100 Tensor Core GPU", data sheet, 2023
    {"B200", 8000, 2250},           // "NVIDIA DGX B200", data sheet, 2024: 64 TB/s, 36 PFLOPS of 8
};

// A sum over kernels: each is bound by its bytes or by its operations.
class Step {
 public:
  explicit Step(const Gpu& gpu) : gpu_(gpu) {}
  void Add(const KernelCost& cost, double times = 1) {
    us_ += times *
           std::max(cost.bytes / (gpu_.gigabytes_per_s * 1e3), cost.flops / (gpu_.teraflops * 1e6));
    total_ += cost * times;
  }
  double us() const { return us_; }
  const KernelCost& total() const { return total_; }

 private:
  const Gpu& gpu_;
  double us_ = 0;
  KernelCost total_;
};

constexpr double kF32 = 4, kBf16 = 2;

// The config.json of allenai/MolmoE-1B-0924 and allenai/Molmo-7B-D-0924.
struct Llm {
  const char* name;
  double layers, hidden, heads, kv_heads, head_dim, ffn, experts, chosen, vocab;
};
constexpr Llm kMolmoE1B = {"MolmoE-1B", 16, 2048, 16, 16, 128, 1024, 64, 8, 50304};
constexpr Llm kMolmo7BD = {"Molmo 7B-D", 28, 3584, 28, 4, 128, 18944, 0, 0, 152064};

// The page of ops of runtime/models/llm_decoder.cc: `n` sequences decode with `context` tokens
// each.
void AddDecode(Step& step, const Llm& m, double n, double context) {
  const double q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  step.Add(ElementwiseCost(n * m.hidden, kBf16 + kF32, 0));  // embedding
  step.Add(RmsNormCost(n, m.hidden, kF32, kBf16), m.layers);
  step.Add(LinearCost(n, m.hidden, q + 2 * kv, kBf16, kBf16, kBf16), m.layers);
  step.Add(RopeCost(n, m.heads + m.kv_heads, m.head_dim, kBf16), m.layers);
  step.Add(StoreKvCost(n, m.kv_heads, m.head_dim, kBf16, kBf16), m.layers);
  step.Add(
      AttentionCost(n, n * context, n * context, m.heads, m.kv_heads, m.head_dim, kBf16, kBf16),
      m.layers);
  step.Add(LinearCost(n, q, m.hidden, kBf16, 2 * kF32, kBf16), m.layers);  // onto the residual
  step.Add(RmsNormCost(n, m.hidden, kF32, kBf16), m.layers);
  if (m.experts == 0) {
    step.Add(LinearCost(n, m.hidden, 2 * m.ffn, kBf16, kBf16, kBf16), m.layers);
    step.Add(SiluMulCost(n * m.ffn, kBf16, kBf16), m.layers);
    step.Add(LinearCost(n, m.ffn, m.hidden, kBf16, 2 * kF32, kBf16), m.layers);
  } else {
    // Experts that some token chose, were each choice as likely as any other.
    const double used = m.experts * (1 - std::pow(1 - m.chosen / m.experts, n));
    const double pairs = n * m.chosen;
    step.Add(LinearCost(n, m.hidden, m.experts, kBf16, kF32, kBf16), m.layers);
    step.Add(LinearCost(pairs / used, m.hidden, 2 * m.ffn, kBf16, kF32, kBf16) * used, m.layers);
    step.Add(SiluMulCost(pairs * m.ffn, kF32, kBf16), m.layers);
    step.Add(LinearCost(pairs / used, m.ffn, m.hidden, kBf16, kF32, kBf16) * used, m.layers);
    step.Add(ElementwiseCost(n * m.hidden, m.chosen * kF32 + 2 * kF32, 2 * m.chosen), m.layers);
  }
  step.Add(RmsNormCost(n, m.hidden, kF32, kBf16));
  step.Add(LinearCost(n, m.hidden, m.vocab, kBf16, kF32, kBf16));
  step.Add(ChooseTokensCost(n, m.vocab));
}

// The config.json of openai/whisper-large-v3-turbo.
struct Whisper {
  double encoder_layers = 32, decoder_layers = 4, hidden = 1280, heads = 20, ffn = 5120,
         vocab = 51866, mels = 128, frames = 3000;
};

void AddMlp(Step& step, const Whisper& w, double rows, double layers) {
  step.Add(LayerNormCost(rows, w.hidden, kF32, kBf16), layers);
  step.Add(LinearCost(rows, w.hidden, w.ffn, kBf16, kBf16, kBf16), layers);
  step.Add(LinearCost(rows, w.ffn, w.hidden, kBf16, 2 * kF32, kBf16), layers);
}

// A token of each of `n` sequences, 64 behind it, over its window of 1500 positions.
void AddWhisperDecode(Step& step, const Whisper& w, double n) {
  const double dims = w.hidden / w.heads, past = 64, window = w.frames / 2;
  step.Add(ElementwiseCost(n * w.hidden, 2 * kBf16 + kF32, 1));
  step.Add(LayerNormCost(n, w.hidden, kF32, kBf16), 2 * w.decoder_layers);
  step.Add(LinearCost(n, w.hidden, 3 * w.hidden, kBf16, kBf16, kBf16), w.decoder_layers);
  step.Add(StoreKvCost(n, w.heads, dims, kBf16, kBf16), w.decoder_layers);
  step.Add(AttentionCost(n, n * past, n * past, w.heads, w.heads, dims, kBf16, kBf16),
           w.decoder_layers);
  step.Add(LinearCost(n, w.hidden, w.hidden, kBf16, 2 * kF32, kBf16), 2 * w.decoder_layers);
  step.Add(LinearCost(n, w.hidden, w.hidden, kBf16, kBf16, kBf16), w.decoder_layers);
  step.Add(AttentionCost(n, n * window, n * window, w.heads, w.heads, dims, kBf16, kBf16),
           w.decoder_layers);
  AddMlp(step, w, n, w.decoder_layers);
  step.Add(LayerNormCost(n, w.hidden, kF32, kBf16));
  step.Add(LinearCost(n, w.hidden, w.vocab, kBf16, kF32, kBf16));
  step.Add(ChooseTokensCost(n, w.vocab));
}

// `n` windows of 30 s through the encoder.
void AddWhisperEncode(Step& step, const Whisper& w, double n) {
  const double dims = w.hidden / w.heads, rows = n * w.frames / 2;
  step.Add(LinearCost(n * w.frames, 3 * w.mels, w.hidden, kBf16, kBf16, kBf16));
  step.Add(LinearCost(rows, 3 * w.hidden, w.hidden, kBf16, kF32, kBf16));
  step.Add(LayerNormCost(rows, w.hidden, kF32, kBf16), w.encoder_layers + 1);
  step.Add(LinearCost(rows, w.hidden, 3 * w.hidden, kBf16, kBf16, kBf16), w.encoder_layers);
  step.Add(AttentionCost(rows, rows, rows * w.frames / 2, w.heads, w.heads, dims, kBf16, kBf16),
           w.encoder_layers);
  step.Add(LinearCost(rows, w.hidden, w.hidden, kBf16, 2 * kF32, kBf16), w.encoder_layers);
  AddMlp(step, w, rows, w.encoder_layers);
}

// Three digits that mean something.
std::string Digits(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), v < 1000 ? " %.3g |" : " %.0f |", v);
  return text;
}

template <typename F>
std::string Row(const std::string& what, F add) {
  Step any(kGpus[0]);
  add(any);
  std::string row = "| ";
  row += what + " |" + Digits(any.total().bytes / 1e9) + Digits(any.total().flops / 1e9);
  for (const Gpu& gpu : kGpus) {
    Step step(gpu);
    add(step);
    row += Digits(step.us() / 1e3);
  }
  return row + "\n";
}

TEST(RooflineTest, ThePageOfPredictionsIsWhatTheCostsSay) {
  std::string table =
      "**Predictions, never measurements.** A step's kernels one behind the other, each as long "
      "as\n"
      "its least bytes take at the GPU's published bandwidth or its operations at the published "
      "dense\n"
      "bfloat16 rate, whichever is longer (tests/cuda/roofline_test.cc). No step can be faster "
      "with\n"
      "every kernel's inputs and outputs from and to memory, where activations may in truth stay "
      "in\n"
      "L2; a real one adds launches, waits and what a kernel loses on either roof, `mma.sync` on "
      "sm_90\n"
      "and sm_100 much of their arithmetic. bfloat16 weights and KV; Molmo decodes at 2048 tokens "
      "of\n"
      "context, Whisper turbo at 64 over its window. Milliseconds.\n\n"
      "| step | GB | GFLOP |";
  std::string rule = "|---|---|---|";
  for (const Gpu& gpu : kGpus) {
    table += std::string(" ") + gpu.name + " |";
    rule += "---|";
  }
  table += "\n" + rule + "\n";
  for (const Llm& m : {kMolmoE1B, kMolmo7BD}) {
    for (const int n : {1, 8, 64}) {
      table += Row(std::string(m.name) + ", decode of " + std::to_string(n),
                   [&](Step& step) { AddDecode(step, m, n, 2048); });
    }
  }
  for (const int n : {1, 8, 64}) {
    table += Row("Whisper turbo, decode of " + std::to_string(n),
                 [&](Step& step) { AddWhisperDecode(step, Whisper(), n); });
  }
  for (const int n : {1, 8, 64}) {
    table +=
        Row("Whisper turbo, encode of " + std::to_string(n) + (n == 1 ? " window" : " windows"),
            [&](Step& step) { AddWhisperEncode(step, Whisper(), n); });
  }
  CheckCostsSection("Predicted step times", table);
}

// What the page adds up is the model: a decode of one reads every weight once but the embedding.
TEST(RooflineTest, ADecodeReadsEachWeightOnce) {
  const Llm& m = kMolmo7BD;
  Step step(kGpus[0]);
  AddDecode(step, m, 1, 0);
  // Qwen2-7B, which it began as, has 6.53 B parameters beside its embedding and head (model card of
  // Qwen2.5-7B, the same shape).
  const double head = m.vocab * m.hidden;
  EXPECT_NEAR(step.total().bytes / kBf16 - head, 6.53e9, 0.01e9);
}

// MolmoE's 64 experts: a single token reads 8 of them, a large batch all and no more.
TEST(RooflineTest, ABatchReadsTheExpertsThatItsTokensChose) {
  const auto bytes = [](double n) {
    Step step(kGpus[0]);
    AddDecode(step, kMolmoE1B, n, 0);
    return step.total().bytes;
  };
  const double expert = 3.0 * 2048 * 1024 * kBf16 * 16;     // of all layers
  const double token = (bytes(4096) - bytes(2048)) / 2048;  // its activations alone
  EXPECT_NEAR((bytes(64) - bytes(1) - 63 * token) / expert, 56, 0.1);
}

}  // namespace
}  // namespace sensorium
