#include "runtime/cpu/gemm.h"

#include <algorithm>

#include "runtime/base/check.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* begin, unsigned long bytes);
extern "C" void __tsan_write_range(void* begin, unsigned long bytes);
#endif

namespace sensorium {
namespace {

// gemm_tiles.cc is compiled without ThreadSanitizer, which looks at a wide load byte by byte. What
// the tiles read and write is told here, once for many tiles.
#if defined(__SANITIZE_THREAD__)
void TellRead(const std::byte* x, int64_t rows, int64_t row_stride, int64_t row_bytes) {
  for (int64_t r = 0; r < rows; ++r) {
    __tsan_read_range(const_cast<std::byte*>(x) + r * row_stride, row_bytes);
  }
}
void TellWritten(float* c, int64_t n) { __tsan_write_range(c, sizeof(float) * n); }
#else
void TellRead(const std::byte*, int64_t, int64_t, int64_t) {}
void TellWritten(float*, int64_t) {}
#endif

// Tuned on Zen 4 (32 KiB L1d, 1 MiB L2): a block of x, kBlockRows x kBlockSteps x 4 B = 384 KiB,
// stays in L2 while kBlockPanels panels' blocks of kBlockSteps x 128 B = 32 KiB pass through L1.
constexpr int64_t kBlockSteps = 256;
constexpr int64_t kBlockRows = 384;
constexpr int64_t kBlockPanels = 4;
constexpr int64_t kCachedBytes = 12 << 20;  // what stays in L3 from one use to the next
constexpr int64_t kStreamBytes = 128 << 10;
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

  bool widens() const { return set.input == GemmInput::kRoundedFloat32; }
  int64_t step_bytes() const { return widens() ? 8 : 4; }

  // Bias, activation and store of sums c [rows, 32] that belong at (row, panel).
  void Finish(const float* c, int64_t row, int64_t rows, int64_t panel) const {
    const int64_t column = panel * kGemmPanel;
    const int64_t element = row * y.row_stride() + column;
    kernels.finish({.y = y.bytes() + element * static_cast<int64_t>(SizeOf(y.dtype())),
                    .y_stride = y.row_stride(),
                    .c = c,
                    .c_stride = kGemmPanel,
                    .bias = w.bias() + column,
                    .rows = rows,
                    .columns = std::min<int64_t>(kGemmPanel, w.out_features() - column),
                    .activation = activation,
                    .y_is_bfloat16 = y.dtype() == DType::kBFloat16,
                    .add = add});
  }

  // Few rows: every row's sums stay in registers from the first step to the last while panels
  // [begin, end) stream by.
  void Stream(int64_t begin, int64_t end) const {
    alignas(64) float c[kGemmMaxRows * kGemmPanel];
    for (int64_t tap = 0; tap < w.taps(); ++tap) {
      TellRead(a.data + tap * a.tap_stride, a.rows, a.row_stride, w.steps_per_tap() * step_bytes());
    }
    for (int64_t panel = begin; panel < end; ++panel) {
      TellRead(w.panel(panel), 1, 0, w.panel_bytes());
      for (int64_t tap = 0; tap < w.taps(); ++tap) {
        set.stream[a.rows]({.c = c,
                            .c_stride = kGemmPanel,
                            .a = reinterpret_cast<const char*>(a.data + tap * a.tap_stride),
                            .a_stride = a.row_stride,
                            .w = reinterpret_cast<const char*>(w.panel(panel)) +
                                 tap * w.steps_per_tap() * kGemmStepBytes,
                            .steps = w.steps_per_tap(),
                            .accumulate = tap > 0});
      }
      Finish(c, 0, a.rows, panel);
    }
  }

  // Many rows: block by block over the steps, so that a block of x stays in L2 and a panel's block
  // in L1; sums [rows, panels * 32] wait in `sums` between blocks. bfloat16 weights that the
  // kernels would widen in every tile are widened once per block, into `widened`: the chains of
  // multiply-adds stay the same.
  void Block(Range rows, Range panels, float* widened, float* sums) const {
    const int64_t num_rows = rows.end - rows.begin, num_panels = panels.end - panels.begin;
    const int64_t tiles = DivUp(num_rows, set.max_rows);
    const int64_t blocks = DivUp(w.steps_per_tap(), kBlockSteps * 4 / step_bytes());
    const bool widen = widens() && tiles > 1;
    const GemmKernelSet& tile_set = widen ? *kernels.float32 : set;
    const bool one_block = w.taps() * blocks == 1;
    for (int64_t tap = 0; tap < w.taps(); ++tap) {
      for (int64_t block = 0; block < blocks; ++block) {
        const Range steps = Part(w.steps_per_tap(), blocks, block);
        const bool first = tap == 0 && block == 0;
        const bool last = tap == w.taps() - 1 && block == blocks - 1;
        const std::byte* x = a.data + rows.begin * a.row_stride + tap * a.tap_stride;
        TellRead(x + steps.begin * step_bytes(), num_rows, a.row_stride,
                 (steps.end - steps.begin) * step_bytes());
        for (int64_t p = 0; p < num_panels; ++p) {
          const int64_t panel = panels.begin + p;
          const char* panel_steps = reinterpret_cast<const char*>(w.panel(panel)) +
                                    (tap * w.steps_per_tap() + steps.begin) * kGemmStepBytes;
          TellRead(reinterpret_cast<const std::byte*>(panel_steps), 1, 0,
                   (steps.end - steps.begin) * kGemmStepBytes);
          if (widen) {
            kernels.widen(widened, panel_steps, steps.end - steps.begin);
            panel_steps = reinterpret_cast<const char*>(widened);
          }
          for (int64_t t = 0; t < tiles; ++t) {
            const Range tile = Part(num_rows, tiles, t);
            const int64_t row = rows.begin + tile.begin, count = tile.end - tile.begin;
            float* c = one_block ? sums : sums + (p * num_rows + tile.begin) * kGemmPanel;
            TellWritten(c, count * kGemmPanel);
            tile_set.tile[count]({.c = c,
                                  .c_stride = kGemmPanel,
                                  .a = reinterpret_cast<const char*>(x + tile.begin * a.row_stride +
                                                                     steps.begin * step_bytes()),
                                  .a_stride = a.row_stride,
                                  .w = panel_steps,
                                  .steps = (steps.end - steps.begin) * (widen ? 2 : 1),
                                  .accumulate = !first});
            if (last) Finish(c, row, count, panel);
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
    // Runs of neighbouring panels of some kStreamBytes: long enough for the prefetches, which reach
    // past a panel's end, to serve the thread that made them; at least four runs a thread.
    const int64_t most = std::max<int64_t>(1, panels / (4 * pool.threads()));
    const int64_t run = std::clamp<int64_t>(kStreamBytes / w.panel_bytes(), 1, most);
    pool.ParallelFor(DivUp(panels, run),
                     [&](int64_t i) { gemm.Stream(i * run, std::min((i + 1) * run, panels)); });
    return;
  }

  const int64_t row_blocks = DivUp(a.rows, kBlockRows);
  const int64_t tasks_wanted = pool.threads() == 1 ? 1 : kTasksPerThread * pool.threads();
  const int64_t panel_blocks =
      std::min(panels, std::max(DivUp(panels, kBlockPanels), DivUp(tasks_wanted, row_blocks)));
  // Per thread: a widened block of a panel, then the sums of the largest block there is, so that
  // the scratch is taken by the first call and never again.
  constexpr int64_t widened_bytes = kBlockSteps * kGemmStepBytes;
  constexpr int64_t thread_bytes =
      widened_bytes + kBlockRows * kBlockPanels * kGemmPanel * sizeof(float);
  std::byte* sums = scratch.sums.Reserve(thread_bytes * pool.threads());
  // Tasks next to each other run at the same time and share either panels or rows of x; the other
  // operand comes from memory again each time, unless it is small. Whichever moves fewer bytes.
  const int64_t w_bytes = panels * w.panel_bytes(), x_bytes = a.rows * a.row_stride;
  const bool share_panels = w_bytes + x_bytes * (x_bytes > kCachedBytes ? panel_blocks : 1) <=
                            x_bytes + w_bytes * (w_bytes > kCachedBytes ? row_blocks : 1);
  pool.ParallelForWorkers(row_blocks * panel_blocks, [&](int64_t task, int worker) {
    const int64_t row_block = share_panels ? task % row_blocks : task / panel_blocks;
    const int64_t panel_block = share_panels ? task / row_blocks : task % panel_blocks;
    std::byte* scratch_of_worker = sums + worker * thread_bytes;
    gemm.Block(Part(a.rows, row_blocks, row_block), Part(panels, panel_blocks, panel_block),
               reinterpret_cast<float*>(scratch_of_worker),
               reinterpret_cast<float*>(scratch_of_worker + widened_bytes));
  });
}

}  // namespace sensorium
