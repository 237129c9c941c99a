// Each op of the CUDA backend at sizes of the published models, and a bundled model's decode: time,
// bytes, operations and their share of the device's peak, as a table and as JSON. An op may be
// several kernels: a mixture's, a library's product with what pads and ends it. cuda/COSTS.md is
// per kernel.
//
//   gpu_bench [--small] [--json FILE]     --small: tiny sizes, to test this program itself
//   gpu_bench --probe                     says which device there is, or fails
//
// Bytes and operations are the least an op has to move and do (its inputs once, its outputs once),
// so a share of the peak is of the ideal. Runs take turns over as many sets of operands as no cache
// holds, so that what an op reads comes from memory, not from the run before. On the emulated
// device nothing is timed: there is no time to tell.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <span>
#include <utility>

#include "benchmarks/gpu_bench.h"
#include "cuda/cuda_backend.h"
#include "tests/runtime/models/model_runner.h"

namespace sensorium {
namespace {

// Twice the largest L2 there is (B200: 126 MB): that much later nothing is left of what was read.
constexpr double kMoreThanCaches = 256 << 20;

Peak PeakOf(const std::string& device) {
  Peak peak;
  int khz = 0, bits = 0;
  cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, 0);
  cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, 0);
  peak.bytes_per_us = 2.0 * khz * 1e3 * bits / 8 / 1e6;  // two transfers a clock
  // The first that the name has: "H100" would be "H100 PCIe" too, and "L4" "L40".
  const std::pair<const char*, double> kTeraflops[] = {
      {"H100 PCIe", 756}, {"H100 NVL", 835}, {"H100", 989}, {"H200", 989}, {"B200", 2250},
      {"A100", 312},      {"L40S", 362},     {"L40", 181},  {"L4", 121}};
  for (const auto& [name, teraflops] : kTeraflops) {
    if (device.find(name) == device.npos) continue;
    peak.flops_per_us = teraflops * 1e6;
    break;
  }
  return peak;
}

}  // namespace

GpuBench::GpuBench(Backend& be, bool small) : be_(be), small_(small) {
  emulated_ = be.description().find("emulated") != std::string::npos;
  peak_ = PeakOf(be.description());
}

TensorView GpuBench::Array(DType type, std::initializer_list<int64_t> shape) {
  int64_t rows = *shape.begin(), elements = 1;
  for (int64_t n : shape) elements *= n;
  buffers_.push_back(*be_.Allocate(static_cast<size_t>(elements) * SizeOf(type)));
  const int64_t columns = elements / rows;
  const TensorView flat(buffers_.back()->data(), type, {rows, columns});
  std::normal_distribution<float> normal;
  while (static_cast<int64_t>(pool_.size()) < columns + kPlaces) pool_.push_back(normal(rng_));
  for (int64_t r = 0; r < rows; ++r) {
    const auto from = static_cast<size_t>(rng_() % kPlaces);
    be_.CopyFromHost(flat.Rows(r, r + 1),
                     std::span(pool_).subspan(from, static_cast<size_t>(columns)));
  }
  return {buffers_.back()->data(), type, shape};
}

std::unique_ptr<LinearWeight> GpuBench::Weight(int64_t out, int64_t in) {
  std::vector<float> values(out * in);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * static_cast<float>(i % 17);
  const LinearSource source = {
      {reinterpret_cast<const std::byte*>(values.data()), DType::kFloat32, {out, in}}, {}};
  return be_.PackLinear({&source, 1});
}

void GpuBench::Add(const std::string& name, const std::function<Op()>& make) {
  const size_t kept = buffers_.size();
  std::vector<Op> sets = {make()};
  const double wanted = emulated_ ? 2 : 1 + kMoreThanCaches / sets[0].bytes;
  while (static_cast<double>(sets.size()) < wanted) sets.push_back(make());
  double bytes = 0, flops = 0;
  for (const Op& set : sets) {
    set.run();  // kernels are loaded, clocks come up
    bytes += set.bytes / static_cast<double>(sets.size());
    flops += set.flops / static_cast<double>(sets.size());
  }
  Wait();
  nlohmann::json row = {{"name", name}, {"bytes", bytes}, {"flops", flops}};
  if (!emulated_) {
    using Clock = std::chrono::steady_clock;
    double us = 0;
    for (size_t n = sets.size(); us < 1e5; n *= 4) {
      const auto begin = Clock::now();
      for (size_t i = 0; i < n; ++i) sets[i % sets.size()].run();
      Wait();
      us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
      row["us"] = us / static_cast<double>(n);
    }
    const double one = row["us"];
    row["share_of_bandwidth"] = bytes / one / peak_.bytes_per_us;
    if (peak_.flops_per_us > 0) row["share_of_flops"] = flops / one / peak_.flops_per_us;
  }
  rows_.push_back(row);
  sets.clear();
  buffers_.resize(kept);
}

// Tokens a second of one and of eight sequences decoding side by side: each kernel launched by
// itself, and replayed as a graph.
void GpuBench::AddDecode(const std::string& model) {
  ModelRunner runner(model, DType::kBFloat16);
  // Steps before the clock starts: caches, clocks and lazily loaded kernels.
  const int32_t kTokens = small_ ? 2 : 128, kWarmUp = small_ ? 1 : 16;
  for (const auto& [seqs, replay] :
       {std::pair<int32_t, bool>{1, false}, {8, false}, {1, true}, {8, true}}) {
    const int32_t n = static_cast<int32_t>(Count(seqs));
    std::vector<BlockTable> tables;
    for (int32_t s = 0; s < n; ++s) tables.push_back(runner.NewTable());
    if (replay && runner.model().decode_shapes.empty()) {
      tables[0].Grow(1);
      RecordDecodes(runner.backend(), runner.model(), static_cast<int32_t>(Count(8)),
                    runner.model().max_positions(), tables[0], nullptr, runner.pass_memory());
    }
    std::chrono::steady_clock::time_point begin;
    const int32_t token = 5, first = 0;
    for (int32_t position = -kWarmUp; position < kTokens; ++position) {
      if (position == 0) begin = std::chrono::steady_clock::now();
      StepBatch batch;
      for (BlockTable& table : tables) {
        table.Grow(kWarmUp + position + 1);
        const int32_t row = batch.Add({.tokens = std::span(&token, 1),
                                       .first_position = kWarmUp + position,
                                       .self = &table,
                                       .cross = nullptr,
                                       .cross_len = 0,
                                       .wanted = std::span(&first, 1),
                                       .features = {},
                                       .feature_rows = {},
                                       .feature_offsets = {}});
        batch.Choose(row, {});
      }
      runner.ForwardAndChoose(batch);
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    nlohmann::json row = {{"name", "decode of molmo-mini, " + std::to_string(seqs) + " sequences" +
                                       (replay ? ", replayed" : "")}};
    if (!emulated_) row["tokens_per_second"] = n * kTokens / seconds;
    rows_.push_back(row);
  }
}

void GpuBench::Print() const {
  std::printf("%s%s%s\n", be_.description().c_str(),
              emulated_ ? ": executed by emulation, never timed" : "",
              small_ ? "; at tiny sizes, not those named" : "");
  std::printf(
      "Per op, which may be several kernels; its operands come from memory, not from L2.\n");
  std::printf("\n%-56s %10s %10s %10s %7s %7s\n", "", "us", "MB", "GFLOP", "memory", "math");
  const auto number = [](const nlohmann::json& row, const char* key, double scale, int digits) {
    char text[32] = "-";
    if (row.contains(key)) {
      std::snprintf(text, sizeof(text), "%.*f", digits, row[key].get<double>() * scale);
    }
    return std::string(text);
  };
  for (const auto& row : rows_) {
    if (!row.contains("bytes")) {
      std::printf("%-56s %s tokens/s\n", row["name"].get<std::string>().c_str(),
                  number(row, "tokens_per_second", 1, 1).c_str());
      continue;
    }
    std::printf("%-56s %10s %10s %10s %6s%% %6s%%\n", row["name"].get<std::string>().c_str(),
                number(row, "us", 1, 1).c_str(), number(row, "bytes", 1e-6, 2).c_str(),
                number(row, "flops", 1e-9, 2).c_str(),
                number(row, "share_of_bandwidth", 100, 1).c_str(),
                number(row, "share_of_flops", 100, 1).c_str());
  }
}

namespace {

int Main(int argc, char** argv) {
  bool small = false, probe = false;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--small") == 0) {
      small = true;
    } else if (std::strcmp(argv[i], "--probe") == 0) {
      probe = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "usage: gpu_bench [--probe] [--small] [--json FILE]\n");
      return 2;
    }
  }
  auto backend = CudaBackend::Create({.dtype = DType::kBFloat16});
  if (!backend.ok()) {
    std::fprintf(stderr, "gpu_bench: %s\n", std::string(backend.status().message()).c_str());
    return 1;
  }
  if (probe) {
    std::printf("%s\n", (*backend)->description().c_str());
    return 0;
  }
  GpuBench bench(**backend, small);
  bench.Run();
  {
    auto float32 = CudaBackend::Create({.dtype = DType::kFloat32});
    CHECK(float32.ok()) << float32.status();
    GpuBench products(**float32, small);
    products.RunFloat32();
    bench.Take(products);
  }
  {
    auto fast = CudaBackend::Create({.dtype = DType::kBFloat16, .determinism = Determinism::kFast});
    CHECK(fast.ok()) << fast.status();
    GpuBench products(**fast, small);
    products.RunFast();
    bench.Take(products);
  }
  bench.AddDecode(std::string(SENSORIUM_MODELS) + "/molmo-mini");
  bench.Print();
  if (!json.empty()) std::ofstream(json) << bench.Json().dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace sensorium

int main(int argc, char** argv) { return sensorium::Main(argc, argv); }
