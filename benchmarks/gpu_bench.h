// What gpu_bench.cc times, op by op (gpu_bench_ops.cc): operands, runs, rows of the table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "runtime/backend/backend.h"

namespace sensorium {

// Of a device.
struct Peak {
  double bytes_per_us = 0;  // from the device's own memory clock and bus
  double flops_per_us = 0;  // dense bfloat16, NVIDIA's data sheets; 0: not in the list
};

class GpuBench {
 public:
  GpuBench(Backend& be, bool small);

  void Run();
  // Of a backend that is fast: what the libraries make, with the kernels around it.
  void RunFast();
  // Of a backend in float32: its products alone, whose peak is not that of the matrix units.
  void RunFloat32();
  void Take(const GpuBench& other) {
    rows_.insert(rows_.end(), other.rows_.begin(), other.rows_.end());
  }
  void AddDecode(const std::string& model);
  void Print() const;
  nlohmann::json Json() const {
    return {{"device", be_.description()}, {"emulated", emulated_}, {"ops", rows_}};
  }

 private:
  int64_t Size(int64_t n) const { return small_ ? std::max<int64_t>(64, n / 64 / 64 * 64) : n; }
  int64_t Count(int64_t n) const { return small_ ? std::min<int64_t>(n, 3) : n; }

  // A device array of normally distributed numbers, each row its own piece of a pool of them.
  TensorView Array(DType type, std::initializer_list<int64_t> shape);
  std::unique_ptr<LinearWeight> Weight(int64_t out, int64_t in);
  void Wait() {
    float value;
    be_.CopyToHost({&value, 1}, one_);
  }

  // An op over one set of operands, and the least it moves and does.
  struct Op {
    double bytes, flops;
    std::function<void()> run;
  };
  // Makes sets of operands (which live until Add returns) and runs the op over one after the other
  // until that has taken a tenth of a second; the average of one run.
  void Add(const std::string& name, const std::function<Op()>& make);

  void Linears(DType type);
  void Rows();
  void MovedRows();
  void Attention();
  void CrossAttention();
  void Convolution();
  void Mixture();
  void Choices();
  void Media();

  static constexpr int64_t kPlaces = 1 << 20;  // where in the pool a row may begin

  Backend& be_;
  const bool small_;
  bool emulated_ = false, fast_ = false;
  Peak peak_;
  std::mt19937 rng_{1};
  std::vector<float> pool_;
  ChosenTokens chosen_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  TensorView one_ = Array(DType::kFloat32, {1, 1});
  nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace sensorium
