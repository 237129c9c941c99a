// How the launchers of cuda/kernels launch them at their largest. What the compiler's numbers are
// turned into occupancy with (costs_test.cc), and checked against what the emulated device was
// asked for (traffic_test.cc).
#pragma once

#include <regex>
#include <string>

namespace sensorium {

struct KernelLaunch {
  const char* kernel;         // one's: regular expression over the name without its namespace
  int threads, shared_bytes;  // of a block; dynamic shared memory
};

inline constexpr KernelLaunch kLaunches[] = {
    {"attention_mma_kernel<64>", 128, 46080},
    {"attention_mma_kernel<128>", 128, 52224},
    {"attention_plain_kernel", 128, 43136},  // head_dim 128
    {"attention_merge_kernel", 128, 0},
    {"linear_bf16_kernel<.*, 64>", 128, 30720},
    {"linear_bf16_kernel<.*, 16>", 128, 19200},
    {"linear_float32_kernel<64>", 256, 8704},
    {"linear_float32_kernel<16>", 256, 5632},
    {"rms_norm_kernel(<.*>)?", 256, 128},
    {"layer_norm_kernel(<.*>)?", 256, 128},
    {"log_mel_kernel(<.*>)?", 128, 0},
    {"row_energies_kernel", 128, 16},
    {"greatest_energy_kernel", 256, 32},
    {"resize_columns_kernel", 128, 0},
    {"resize_rows_kernel", 128, 0},
    {"cut_crop_kernel(<.*>)?", 128, 0},
    {"moe_route_kernel", 32, 0},
    {"sort_pairs_kernel", 256, 0},
    {"convert_rows_kernel(<.*>)?", 128, 0},
    {"pad_rows_kernel(<.*>)?", 128, 0},
    {"embed_rows_kernel(<.*>)?", 128, 0},
    {"gather_rows_kernel(<.*>)?", 128, 0},
    {"scatter_add_rows_kernel(<.*>)?", 128, 0},
    {"mean_rows_kernel(<.*>)?", 128, 0},
    {"conv1d_windows_kernel(<.*>)?", 128, 0},
    {"silu_mul_kernel(<.*>)?", 128, 0},
    {"rope_kernel(<.*>)?", 128, 0},
    {"store_kv_kernel(<.*>)?", 128, 0},
    {"add_experts_kernel", 128, 0},
    {"finish_linear_kernel(<.*>)?", 128, 0},
    {"choose_tokens_kernel", 512, 55712},  // edits over 152064 ids
};

// null: not in the list.
inline const KernelLaunch* LaunchOf(const std::string& kernel) {
  for (const KernelLaunch& l : kLaunches) {
    if (std::regex_match(kernel, std::regex(l.kernel))) return &l;
  }
  return nullptr;
}

}  // namespace sensorium
