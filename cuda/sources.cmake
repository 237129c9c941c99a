# What cuda/ is made of, for nvcc (CMakeLists.txt) and for the emulated device (tests/cuda_emu).
set(SENSORIUM_CUDA_HOST_SOURCES
  cuda_attention.cc cuda_backend.cc cuda_media.cc cuda_products.cc device_memory.cc device_weights.cc
  library_gemm.cc recorded_passes.cc token_answers.cc uploads.cc)
# library_conv.cc needs cuDNN; no_library_conv.cc stands in for it.
set(SENSORIUM_CUDA_KERNELS
  attention choose_tokens conv1d convert_rows layer_norm linear log_mel moe picture rms_norm rope
  silu_mul store_kv)
