#!/usr/bin/env bash
# For whoever has an NVIDIA GPU: builds the CUDA backend, runs the op suite (strict and fast), the
# models' goldens and recorded decodes on the device, then prints time, bytes and share of the peak of
# each op and tokens per second, as a table and as JSON. Fails at the first thing that does.
#
#   bash benchmarks/gpu.sh [RESULTS.json]                    default build/cuda/gpu.json
#   bash benchmarks/gpu.sh --emulated BUILD [RESULTS.json]   the same steps on the emulated device, at
#                             small sizes and untimed, with what is built in BUILD: tests this script
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  --help|-h) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  --emulated)
    [ $# -ge 2 ] || { echo "gpu: --emulated wants a build folder" >&2; exit 2; }
    build=$2 json=${3:-$2/gpu.json}
    bench=("$build/tests/cuda/cuda_emulated_gpu_bench" --small)
    tests='^cuda_emulated_ops_test$'
    # The suite itself is a test of its own: here a few of its cases, unless the caller wants others.
    export GTEST_FILTER=${GTEST_FILTER:-*RmsNorm*seed1*:*MixtureOfExperts*seed1*} ;;
  -*) echo "gpu: unknown argument '$1' (--help tells)" >&2; exit 2 ;;
  *)
    build=build/cuda json=${1:-build/cuda/gpu.json}
    bench=("$build/benchmarks/gpu_bench")
    tests='^cuda_(ops|molmo_golden|whisper_golden|replayed_decode)_test$'
    bash docker/install-deps.sh
    bash docker/install-deps.sh --cuda
    cmake --preset cuda >/dev/null
    cmake --build --preset cuda --target cuda_ops_test cuda_molmo_golden_test \
      cuda_whisper_golden_test cuda_replayed_decode_test gpu_bench -- -j "$(nproc)" ;;
esac

"${bench[0]}" --probe  # no device: says so and ends here
ctest --test-dir "$build" --output-on-failure --no-tests=error -R "$tests"
"${bench[@]}" --json "$json"
echo "gpu: also written to $json"
