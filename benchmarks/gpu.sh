#!/usr/bin/env bash
# For whoever has an NVIDIA GPU: builds the CUDA backend, runs the op suite and the models' goldens on
# the device, then prints time, bytes and share of the peak of each kernel and tokens per second.
#
#   bash benchmarks/gpu.sh [RESULTS.json]    default build/cuda/gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
json=${1:-build/cuda/gpu.json}

bash docker/install-deps.sh
bash docker/install-deps.sh --cuda
cmake --preset cuda >/dev/null
cmake --build --preset cuda --target cuda_ops_test cuda_molmo_golden_test cuda_whisper_golden_test \
  gpu_bench -- -j "$(nproc)"
build/cuda/benchmarks/gpu_bench --probe
ctest --preset cuda --no-tests=error -R '^cuda_(ops|molmo_golden|whisper_golden)_test$'
build/cuda/benchmarks/gpu_bench --json "$json"
echo "gpu: also written to $json"
