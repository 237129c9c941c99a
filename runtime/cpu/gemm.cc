#include "runtime/cpu/gemm.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace sensorium {
namespace {

// Tuned on Zen 4 (32 KiB L1d, 1 MiB L2): a block of x, kBlockRows x kBlockSteps x 4 B = 384 KiB,
// stays in L2 while kBlockPanels panels' blocks of kBlockSteps x 128 B = 32 KiB pass through L1.
constexpr int64_t kBlockSteps = 256;
constexpr int64_t kBlockRows = 384;
constexpr int64_t kBlockPanels = 4;
constexpr int64_t kTasksPerThread = 4;  // enough for the threads to end level

constexpr int64_t DivUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part i of n of [0, size), parts as equal as can be.
struct Range {
  int64_t begin, end;
};
constexpr Range Part(int64_t size, int64_t n, int64_t i) {
  return {size * i / n, size * (i + 1) / n};
}

struct Gemm {
  const PackedLinear& w;
  const GemmKernels& kernels;
  const GemmKernelSet& set;
  TensorView y;
  const GemmActivations& a;
  Activation activation;
  bool add;

  int64_t step_bytes() const { return set.input == GemmInput::kRoundedFloat32 ? 8 : 4; }

  // Bias, activation and store of sums c [rows, panels * 32] that belong at (row, panel).
  void Finish(const float* c, int64_t c_stride, int64_t row, int64_t rows, int64_t panel,
              int64_t panels) const {
    const int64_t column = panel * kGemmPanel;
    const int64_t element = row * y.row_stride() + column;
    kernels.finish({.y = y.bytes() + element * static_cast<int64_t>(SizeOf(y.dtype())),
                    .y_stride = y.row_stride(),
                    .c = c,
                    .c_stride = c_stride,
                    .bias = w.bias() + column,
                    .rows = rows,
                    .columns = std::min(panels * kGemmPanel, w.out_features() - column),
                    .activation = activation,
                    .y_is_bfloat16 = y.dtype() == DType::kBFloat16,
                    .add = add});
  }

  // Few rows: every row's sums stay in registers from the first step to the last, several panels
  // stream by at once. Panels [begin, end).
  void Stream(int64_t begin, int64_t end) const {
    const int rows = static_cast<int>(a.rows);
    alignas(64) float c[kGemmMaxRows * 4 * kGemmPanel];
    for (int64_t panel = begin; panel < end;) {
      const int panels = end - panel >= set.stream_panels[rows] ? set.stream_panels[rows] : 1;
      const GemmTileFn tile = panels > 1 ? set.stream[rows] : set.tile[rows];
      const int64_t c_stride = panels * kGemmPanel;
      for (int64_t tap = 0; tap < w.taps(); ++tap) {
        tile({.c = c,
              .c_stride = c_stride,
              .a = reinterpret_cast<const char*>(a.data + tap * a.tap_stride),
              .a_stride = a.row_stride,
              .w = reinterpret_cast<const char*>(w.panel(panel)) +
                   tap * w.steps_per_tap() * kGemmStepBytes,
              .w_stride = w.panel_bytes(),
              .steps = w.steps_per_tap(),
              .accumulate = tap > 0});
      }
      Finish(c, c_stride, 0, rows, panel, panels);
      panel += panels;
    }
  }

  // Many rows: block by block over the steps, so that a block of x stays in L2 and a panel's block
  // in L1; sums [rows, panels * 32] wait in `sums` between blocks.
  void Block(Range rows, Range panels, float* sums) const {
    const int64_t num_rows = rows.end - rows.begin, num_panels = panels.end - panels.begin;
    const int64_t tiles = DivUp(num_rows, set.max_rows);
    const int64_t blocks = DivUp(w.steps_per_tap(), kBlockSteps);
    const bool one_block = w.taps() * blocks == 1;
    for (int64_t tap = 0; tap < w.taps(); ++tap) {
      for (int64_t block = 0; block < blocks; ++block) {
        const Range steps = Part(w.steps_per_tap(), blocks, block);
        const bool first = tap == 0 && block == 0;
        const bool last = tap == w.taps() - 1 && block == blocks - 1;
        for (int64_t p = 0; p < num_panels; ++p) {
          const int64_t panel = panels.begin + p;
          const std::byte* panel_steps =
              w.panel(panel) + (tap * w.steps_per_tap() + steps.begin) * kGemmStepBytes;
          for (int64_t t = 0; t < tiles; ++t) {
            const Range tile = Part(num_rows, tiles, t);
            const int64_t row = rows.begin + tile.begin, count = tile.end - tile.begin;
            float* c = one_block ? sums : sums + (p * num_rows + tile.begin) * kGemmPanel;
            set.tile[count](
                {.c = c,
                 .c_stride = kGemmPanel,
                 .a = reinterpret_cast<const char*>(
                     a.data + row * a.row_stride + tap * a.tap_stride + steps.begin * step_bytes()),
                 .a_stride = a.row_stride,
                 .w = reinterpret_cast<const char*>(panel_steps),
                 .w_stride = 0,
                 .steps = steps.end - steps.begin,
                 .accumulate = !first});
            if (last) Finish(c, kGemmPanel, row, count, panel, 1);
          }
        }
      }
    }
  }
};

}  // namespace

const GemmKernelSet& KernelSet(const PackedLinear& w) {
  const GemmKernels& kernels = GemmKernelsFor(w.level());
  return w.storage() == DType::kBFloat16 ? *kernels.bfloat16 : *kernels.float32;
}

int64_t InputRowBytes(const PackedLinear& w) {
  return w.steps_per_tap() * (KernelSet(w).input == GemmInput::kRoundedFloat32 ? 8 : 4);
}

int64_t SpreadStride(int64_t row_bytes) { return (row_bytes / 64 + 1) / 2 * 128 + 64; }

void RunGemm(const PackedLinear& w, ThreadPool& pool, GemmScratch& scratch, TensorView y,
             const GemmActivations& a, Activation activation, bool add) {
  CHECK(y.rank() == 2 && y.rows() == a.rows && y.dim(1) == w.out_features());
  CHECK(y.dtype() == DType::kFloat32 || (y.dtype() == DType::kBFloat16 && !add));
  CHECK(!add || activation == Activation::kNone);
  if (y.empty()) return;
  const Gemm gemm = {w, GemmKernelsFor(w.level()), KernelSet(w), y, a, activation, add};
  const int64_t panels = w.num_panels();

  if (a.rows <= gemm.set.max_rows && gemm.set.stream[a.rows] != nullptr) {
    const int64_t group = gemm.set.stream_panels[a.rows];
    const int64_t groups = DivUp(panels, group);
    pool.ParallelFor(groups,
                     [&](int64_t i) { gemm.Stream(i * group, std::min((i + 1) * group, panels)); });
    return;
  }

  const int64_t row_blocks = DivUp(a.rows, kBlockRows);
  const int64_t tasks_wanted = pool.threads() == 1 ? 1 : kTasksPerThread * pool.threads();
  const int64_t panel_blocks =
      std::min(panels, std::max(DivUp(panels, kBlockPanels), DivUp(tasks_wanted, row_blocks)));
  const int64_t sums_bytes =
      DivUp(a.rows, row_blocks) * DivUp(panels, panel_blocks) * kGemmPanel * sizeof(float);
  std::byte* sums = scratch.sums.Reserve(sums_bytes * pool.threads());
  // Neighbouring tasks share panels, so that both threads read the same weights at a time.
  pool.ParallelForWorkers(row_blocks * panel_blocks, [&](int64_t task, int worker) {
    gemm.Block(Part(a.rows, row_blocks, task % row_blocks),
               Part(panels, panel_blocks, task / row_blocks),
               reinterpret_cast<float*>(sums + worker * sums_bytes));
  });
}

}  // namespace sensorium
