#!/usr/bin/env bash
# Installs what building and testing Sensorium needs, from Debian 12's own packages: the one list of
# them, used by server/run.sh, tests/run.sh and the Dockerfiles. Does nothing when all are there.
# Works as root and through sudo; asks no questions.
#
#   bash docker/install-deps.sh          the packages of the CPU build
#   bash docker/install-deps.sh --cuda   says what the CUDA build needs besides, and whether it is there
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config ccache git ca-certificates
  libgrpc++-dev libgrpc-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc grpc-proto
  libabsl-dev libspdlog-dev libyaml-cpp-dev nlohmann-json3-dev libcli11-dev
  libspng-dev libjpeg62-turbo-dev libwebp-dev libsndfile1-dev libsoxr-dev
  libpcre2-dev libutf8proc-dev libssl-dev zlib1g-dev
  libgtest-dev libgmock-dev libbenchmark-dev libboost-context-dev
)

say() { printf 'install-deps: %s\n' "$*"; }
die() { printf 'install-deps: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
  "") ;;
  --help|-h) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  --cuda)
    nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
    if [ -n "$nvcc" ]; then
      say "CUDA toolkit: $("$nvcc" --version | tail -n 2 | head -n 1) ($nvcc)"
    else
      say "the CUDA build needs NVIDIA's toolkit 12.8 or newer (nvcc, cudart, cuBLASLt) in"
      say "/usr/local/cuda; Debian 12 does not package it. The CPU build does without."
    fi
    cudnn=$(ls /usr/local/cuda/include/cudnn_graph.h /usr/include/cudnn_graph.h \
      /usr/include/x86_64-linux-gnu/cudnn_graph.h 2>/dev/null | head -n 1 || true)
    if [ -n "$cudnn" ]; then
      say "cuDNN 9: $cudnn"
    else
      say "convolutions under 'determinism: fast' want cuDNN 9 (cudnn_graph.h, libcudnn) beside it;"
      say "-DSENSORIUM_CUDNN=OFF builds without."
    fi
    exit 0 ;;
  *) die "unknown argument '$1' (--help tells)" ;;
esac

command -v dpkg-query >/dev/null || die "this is no Debian: dpkg-query is missing"
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null ||
    die "${#missing[@]} packages are missing and installing needs root or sudo: ${missing[*]}"
  as_root=(sudo)
fi
say "installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
say "done"
