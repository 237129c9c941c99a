// Times in microseconds, kept as counts in buckets 0.8 % wide: 128 to an octave, exact below 128
// us. Any number of samples in the same few kilobytes; the sum and the largest are exact.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace sensorium {

class LatencyHistogram {
 public:
  void Add(int64_t us) {
    us = std::max<int64_t>(us, 0);
    const size_t bucket = BucketOf(us);
    if (bucket >= counts_.size()) counts_.resize(bucket + 1);
    ++counts_[bucket];
    ++count_;
    sum_ += us;
    max_ = std::max(max_, us);
  }

  int64_t count() const { return count_; }
  int64_t max_us() const { return max_; }
  double mean_us() const {
    return count_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(count_);
  }
  // The middle of the bucket that holds it, at most max_us(). 0 without samples.
  int64_t QuantileUs(double quantile) const {
    int64_t left = static_cast<int64_t>(quantile * static_cast<double>(count_ - 1)) + 1;
    for (size_t b = 0; b < counts_.size(); ++b) {
      left -= counts_[b];
      if (left <= 0) return std::min(max_, Middle(b));
    }
    return max_;
  }
  // (time, share of the samples up to it), by rising time; ends with share 1.
  std::vector<std::pair<int64_t, double>> Cdf() const {
    std::vector<std::pair<int64_t, double>> cdf;
    int64_t below = 0;
    for (size_t b = 0; b < counts_.size(); ++b) {
      if (counts_[b] == 0) continue;
      below += counts_[b];
      cdf.emplace_back(std::min(max_, Middle(b)),
                       static_cast<double>(below) / static_cast<double>(count_));
    }
    return cdf;
  }
  bool operator==(const LatencyHistogram&) const = default;

 private:
  static constexpr int kBits = 7;
  static size_t BucketOf(int64_t us) {
    const int width = static_cast<int>(std::bit_width(static_cast<uint64_t>(us)));
    const int octave = std::max(0, width - kBits - 1);
    return (static_cast<size_t>(octave) << kBits) + static_cast<size_t>(us >> octave);
  }
  static int64_t Middle(size_t bucket) {
    if (bucket < 2u << kBits) return static_cast<int64_t>(bucket);
    const int octave = static_cast<int>(bucket >> kBits) - 1;
    const int64_t low = static_cast<int64_t>((bucket & 127) | 128) << octave;
    return low + (int64_t{1} << octave) / 2;
  }

  std::vector<int64_t> counts_;
  int64_t count_ = 0, sum_ = 0, max_ = 0;
};

}  // namespace sensorium
