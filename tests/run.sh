#!/usr/bin/env bash
# Runs every test: installs what is missing, builds, tests. Repeat runs build only what changed.
#
#   bash tests/run.sh [PRESET] [ctest arguments]    PRESET: cpu (default), cuda, asan or tsan
#   bash tests/run.sh all [ctest arguments]    cpu, then the engine, op, media, loader and emulated
#                                              CUDA tests again under asan and tsan, and where
#                                              nvcc is, what it makes of the kernels; the default
#                                              where CI=true
#   bash tests/run.sh PRESET -L '^emulated$'   what runs on the emulated CUDA device, in one of them
set -euo pipefail
cd "$(dirname "$0")/.."

presets=(cpu)
if [ $# -eq 0 ] && [ "${CI:-}" = true ]; then set -- all; fi
case "${1:-}" in
  cpu|cuda|asan|tsan) presets=("$1"); shift ;;
  all)
    presets=(cpu asan tsan)
    # Where CMake and install-deps.sh look, too.
    if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then presets+=(cuda); fi
    shift ;;
  --help|-h) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

bash docker/install-deps.sh
jobs=$(nproc)
# A compiler of gRPC's headers takes about 1 GiB.
memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if [ "$memory_gib" -lt "$jobs" ]; then jobs=$(( memory_gib > 1 ? memory_gib : 1 )); fi

for preset in "${presets[@]}"; do
  chosen=() built=all
  if [ ${#presets[@]} -gt 1 ] && [ "$preset" = cuda ]; then
    chosen=(-R '^cuda_(costs|refuses)') built=cuda_compiler_tests  # see tests/cuda/CMakeLists.txt
  elif [ ${#presets[@]} -gt 1 ] && [ "$preset" != cpu ]; then
    chosen=(-L '^sanitized$') built=sanitized_tests  # see tests/CMakeLists.txt
  fi
  echo "tests: building preset $preset with $jobs jobs"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" --target "$built" -- -j "$jobs"
  echo "tests: running preset $preset: ${chosen[*]:-every test}"
  ctest --preset "$preset" --no-label-summary -j "$jobs" "${chosen[@]}" "$@"
done
