// The matrix products on real layer shapes, as a share of what the machine gives then.
//
//   ops_bench [--level=auto] [--threads=N] [Google Benchmark's flags]
//
// prefill/... prints GFLOP/s of its best iteration, the peak of register-only multiply-adds
// (measured before and after, the higher one), and of_peak, their ratio. decode/... prints GB/s of
// weights, the read bandwidth probed before and after each pass, and of_bandwidth, the median over
// the passes of the ratio to the two probes around it; best_of_best is the best pass over the best
// probe. Decode weights are many copies, more than the caches hold, used in turn.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/machine_peak.h"
#include "runtime/cpu/packed_linear.h"

namespace sensorium {
namespace {

struct Shape {
  const char* model;
  int64_t rows;  // of prefill: what the model's encoder or prompt has
  int64_t in, out;
};

constexpr Shape kShapes[] = {
    {"whisper_base", 1500, 512, 512},    {"whisper_base", 1500, 512, 2048},
    {"whisper_base", 1500, 2048, 512},   {"whisper_turbo", 1500, 1280, 1280},
    {"whisper_turbo", 1500, 1280, 5120}, {"whisper_turbo", 1500, 5120, 1280},
    {"clip_l", 577, 1024, 1024},         {"clip_l", 577, 1024, 4096},
    {"clip_l", 577, 4096, 1024},         {"qwen2_7b", 512, 3584, 4608},
    {"qwen2_7b", 512, 3584, 3584},       {"qwen2_7b", 512, 3584, 37888},
    {"qwen2_7b", 512, 18944, 3584},
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Normal numbers of about 1, cheaply: a product of denormals or infinities has another speed.
AlignedBuffer RandomActivations(int64_t elements, DType dtype) {
  AlignedBuffer buffer(elements * SizeOf(dtype));
  uint32_t state = 12345;
  for (int64_t i = 0; i < elements; ++i) {
    state = state * 1664525 + 1013904223;
    const float v = static_cast<float>(state >> 8) * 0x1p-23f - 1;
    if (dtype == DType::kFloat32) {
      std::memcpy(buffer.data() + i * 4, &v, 4);
    } else {
      std::memcpy(buffer.data() + i * 2, reinterpret_cast<const char*>(&v) + 2, 2);
    }
  }
  return buffer;
}

std::unique_ptr<PackedLinear> RandomLinear(const Shape& s, DType storage, CpuLevel level,
                                           ThreadPool& pool, WeightSlabs& slabs) {
  // All outputs share some rows: packing reads them as it would a checkpoint's.
  const AlignedBuffer w = RandomActivations(s.in * 64, DType::kFloat32);
  std::vector<LinearSource> parts;
  for (int64_t o = 0; o < s.out; o += 64) {
    parts.push_back({{w.data(), DType::kFloat32, {std::min<int64_t>(64, s.out - o), s.in}}, {}});
  }
  return PackedLinear::Pack(parts, storage, level, pool, slabs);
}

double Median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

void Prefill(benchmark::State& state, const Shape& s, DType dtype, CpuLevel level,
             ThreadPool& pool) {
  WeightSlabs slabs;
  const auto w = RandomLinear(s, dtype, level, pool, slabs);
  const AlignedBuffer x = RandomActivations(s.rows * s.in, dtype);
  AlignedBuffer y(s.rows * s.out * SizeOf(dtype));
  GemmScratch scratch;
  const auto run = [&] {
    const double start = Now();
    RunLinear(*w, pool, scratch, {y.data(), dtype, {s.rows, s.out}},
              {x.data(), dtype, {s.rows, s.in}}, Activation::kNone, false);
    return Now() - start;
  };
  run();  // y and the scratch buffers get their pages, which in a model they have
  double peak = PeakGflops(pool, level, dtype), best = 1e30, total = 0;
  for (auto _ : state) {
    const double seconds = run();
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
    total += seconds;
  }
  peak = std::max(peak, PeakGflops(pool, level, dtype));
  const double gflop = 2e-9 * s.rows * s.in * s.out;
  state.counters["gflops"] = gflop / best;
  state.counters["mean_gflops"] = gflop * state.iterations() / total;
  state.counters["peak"] = peak;
  state.counters["of_peak"] = gflop / best / peak;
}

void Decode(benchmark::State& state, const Shape& s, int64_t rows, DType dtype, CpuLevel level,
            ThreadPool& pool) {
  constexpr size_t kMemory = size_t{160} << 20;  // five times the L3 of the machines at hand
  WeightSlabs slabs;  // the copies lie side by side, as a model's weights do
  std::vector<std::unique_ptr<PackedLinear>> copies;
  size_t bytes = 0;
  while (bytes < kMemory) {
    copies.push_back(RandomLinear(s, dtype, level, pool, slabs));
    bytes += copies.back()->size_bytes();
  }
  AlignedBuffer probe(kMemory);
  std::memset(probe.data(), 1, kMemory);
  const AlignedBuffer x = RandomActivations(rows * s.in, dtype);
  AlignedBuffer y(rows * s.out * SizeOf(dtype));
  GemmScratch scratch;
  std::vector<double> achieved, ratios;
  std::vector<double> probed = {ReadBandwidth(pool, probe.data(), kMemory)};
  for (auto _ : state) {  // an iteration: every copy once
    const double start = Now();
    for (const auto& w : copies) {
      RunLinear(*w, pool, scratch, {y.data(), dtype, {rows, s.out}},
                {x.data(), dtype, {rows, s.in}}, Activation::kNone, false);
    }
    const double seconds = Now() - start;
    state.SetIterationTime(seconds);
    achieved.push_back(bytes / seconds / 1e9);
    probed.push_back(ReadBandwidth(pool, probe.data(), kMemory));
    ratios.push_back(achieved.back() * 2 / (probed.back() + probed[probed.size() - 2]));
  }
  state.counters["GB/s"] = Median(achieved);
  state.counters["probed"] = Median(probed);
  state.counters["of_bandwidth"] = Median(ratios);
  state.counters["best_of_best"] = *std::max_element(achieved.begin(), achieved.end()) /
                                   *std::max_element(probed.begin(), probed.end());
  state.counters["us"] = bytes / copies.size() / Median(achieved) / 1e3;
}

void RegisterAll(CpuLevel level, ThreadPool& pool) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const Shape& s : kShapes) {
      const std::string shape = std::string(Name(dtype)) + "/" + s.model + "/" +
                                std::to_string(s.in) + "x" + std::to_string(s.out);
      benchmark::RegisterBenchmark(
          ("prefill/" + shape + "/rows:" + std::to_string(s.rows)).c_str(),
          [&s, dtype, level, &pool](benchmark::State& st) { Prefill(st, s, dtype, level, pool); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
    for (const Shape& s : kShapes) {
      for (int64_t rows : {1, 2, 4, 8}) {
        const std::string shape = std::string(Name(dtype)) + "/" + s.model + "/" +
                                  std::to_string(s.in) + "x" + std::to_string(s.out);
        benchmark::RegisterBenchmark(("decode/" + shape + "/rows:" + std::to_string(rows)).c_str(),
                                     [&s, rows, dtype, level, &pool](benchmark::State& st) {
                                       Decode(st, s, rows, dtype, level, pool);
                                     })
            ->UseManualTime()
            ->Iterations(15)
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

// Takes "--name=value" out of the arguments, which Google Benchmark would refuse.
std::string TakeFlag(int& argc, char** argv, const std::string& name, const std::string& fallback) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], prefix.c_str(), prefix.size()) != 0) continue;
    const std::string value = argv[i] + prefix.size();
    std::copy(argv + i + 1, argv + argc, argv + i);
    --argc;
    return value;
  }
  return fallback;
}

int Main(int argc, char** argv) {
  const auto level = ParseCpuLevel(TakeFlag(argc, argv, "level", "auto"));
  if (!level.ok()) {
    std::fprintf(stderr, "%s\n", level.status().ToString().c_str());
    return 1;
  }
  const std::string cores = std::to_string(std::max(1u, std::thread::hardware_concurrency()));
  const int threads = std::atoi(TakeFlag(argc, argv, "threads", cores).c_str());
  if (threads < 1) {
    std::fprintf(stderr, "--threads must be at least 1\n");
    return 1;
  }
  ThreadPool pool(threads);
  RegisterAll(*level, pool);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("level", std::string(Name(*level)));
  benchmark::AddCustomContext("threads", std::to_string(threads));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace sensorium

int main(int argc, char** argv) { return sensorium::Main(argc, argv); }
