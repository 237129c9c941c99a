#!/usr/bin/env bash
# Runs every test: installs what is missing, builds, tests. Repeat runs build only what changed.
#
#   bash tests/run.sh [PRESET] [ctest arguments]    PRESET: cpu (default), cuda, asan or tsan
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
case "${1:-}" in
  cpu|cuda|asan|tsan) preset=$1; shift ;;
  --help|-h) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

bash docker/install-deps.sh
jobs=$(nproc)
# A compiler of gRPC's headers takes about 1 GiB.
memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if [ "$memory_gib" -lt "$jobs" ]; then jobs=$(( memory_gib > 1 ? memory_gib : 1 )); fi

echo "tests: building preset $preset with $jobs jobs"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" -- -j "$jobs"
echo "tests: running"
exec ctest --preset "$preset" -j "$jobs" "$@"
