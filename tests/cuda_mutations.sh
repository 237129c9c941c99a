#!/usr/bin/env bash
# Takes one barrier, one wait or one bound at a time out of the CUDA kernels and runs the emulated
# tests of that kernel, which must fail on each: what survives is either not tested or not needed.
# Works on a copy of the working tree under build/mutations, where a mutation compiles one file anew.
#
#   bash tests/cuda_mutations.sh [NAME ...]    only the mutations whose names contain one of these
#   JOBS=2 bash tests/cuda_mutations.sh        compiles with so many jobs; default: one a core
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/build/mutations
jobs=${JOBS:-$(nproc)}

# name | file under cuda/ | perl substitution over the whole file
mutations=$(cat <<'TABLE'
block_reduce.first_barrier|primitives.cuh|s/__syncthreads\(\);  \/\/ a former result.*\n//
block_reduce.second_barrier|primitives.cuh|s/__syncthreads\(\);  \/\/ the warps' results.*\n//
block_scan.barrier|primitives.cuh|s/__syncthreads\(\);  \/\/ the warps' sums.*\n//
block_scan.lane|primitives.cuh|s/if \(lane >= step\) v \+= before;/v += before;/
pad_rows.bound|kernels/convert_rows.cu|s/there && c < columns \?/there ?/
pad_rows.rows|kernels/convert_rows.cu|s/there && c < columns \?/c < columns ?/
finish_linear.bound|kernels/linear.cu|s/(finish_linear_kernel\(LinearProblem.*?const int64_t end = )[^;]*/$1begin + kFinishColumns/s
embed_rows.bound|kernels/convert_rows.cu|s/(embed_rows_kernel\(float.*?const int64_t end = )[^;]*/$1begin + kColumns/s
convert_rows.bound|kernels/convert_rows.cu|s/(convert_rows_kernel\(Y.*?const int64_t end = )[^;]*/$1begin + kColumns/s
embed_rows.skip|kernels/convert_rows.cu|s/if \(id < 0\) return;//
gather_rows.bound|kernels/convert_rows.cu|s/(gather_rows_kernel\(T.*?const int64_t end = )[^;]*/$1begin + kColumns/s
scatter_add_rows.bound|kernels/convert_rows.cu|s/(scatter_add_rows_kernel\(float.*?const int64_t end = )[^;]*/$1begin + kColumns/s
mean_rows.bound|kernels/convert_rows.cu|s/(mean_rows_kernel\(T.*?const int64_t end = )[^;]*/$1begin + kColumns/s
rms_norm.bound|kernels/rms_norm.cu|s/c < columns;/c < columns + 1;/
layer_norm.bound|kernels/layer_norm.cu|s/c < columns;/c < columns + 1;/
silu_mul.bound|kernels/silu_mul.cu|s/const int64_t end = [^;]*/const int64_t end = begin + kColumns/
rope.bound|kernels/rope.cu|s/i < half;/i < half + 1;/
store_kv.skip|kernels/store_kv.cu|s/if \(slot < 0\) return;//
store_kv.bound|kernels/store_kv.cu|s/d < kv.head_dim;/d < kv.head_dim + 1;/
choose_tokens.ranges_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ the sets hold.*\n//
choose_tokens.sets_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ the sets are whole.*\n//
choose_tokens.bins_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ the bins are empty.*\n//
choose_tokens.count_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ all is counted.*\n//
choose_tokens.found_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ the bin is found.*\n//
choose_tokens.list_barrier|kernels/choose_tokens.cu|s/__syncthreads\(\);  \/\/ the list is there.*\n//
choose_tokens.mass_bound|kernels/choose_tokens.cu|s/id < to; id \+= kThreads/id < to + 1; id += kThreads/
choose_tokens.descent_bound|kernels/choose_tokens.cu|s/id < vocab; id \+= kThreads\) \{\n      const float v/id < vocab + 1; id += kThreads) {\n      const float v/
choose_tokens.range_end|kernels/choose_tokens.cu|s/to < 32 \? ~\(~0u << to\) : ~0u/~0u/
choose_tokens.zeros|kernels/choose_tokens.cu|s/v == v \? v \+ 0\.f : -INFINITY/v == v ? v : -INFINITY/
choose_tokens.ties|kernels/choose_tokens.cu|s/kIdMask - static_cast<Bits64>\(id\)/static_cast<Bits64>(id)/
choose_tokens.floor|kernels/choose_tokens.cu|s/if \(kth\.there\) floor/if (false) floor/
conv1d.border|kernels/conv1d.cu|s/frame >= 0 && frame < s.frames/true/
linear_bf16.wait|kernels/linear.cu|s/cp_async_wait<kStages - 2>/cp_async_wait<kStages - 1>/
linear_bf16.barrier|kernels/linear.cu|s/__syncthreads\(\);  \/\/ this stage.*\n//
linear_bf16.tail|kernels/linear.cu|s/e < left \? ToFloat\(from\[e\]\) : 0\.f/ToFloat(from[e])/
linear_bf16.aligned_tail|kernels/linear.cu|s/left >= 8 \? 16 : left > 0 \? static_cast<int>\(left\) \* 2 : 0/16/
linear_bf16.rows|kernels/linear.cu|s/if \(row >= t\.rows \|\| out >= p\.out\) continue;/if (out >= p.out) continue;/
linear_bf16.outputs|kernels/linear.cu|s/if \(row >= t\.rows \|\| out >= p\.out\) continue;/if (row >= t.rows) continue;/
linear_float32.first_barrier|kernels/linear.cu|s/__syncthreads\(\);  \/\/ all are done with the last stage\n//
linear_float32.second_barrier|kernels/linear.cu|s/__syncthreads\(\);\n(\s+for \(int c = 0; c < kPlainStep)/$1/
linear_float32.tail|kernels/linear.cu|s/ && k \+ c < p\.in//
linear_float32.rows|kernels/linear.cu|s/if \(row \+ r >= t\.rows \|\| (.*?)\) continue;/if ($1) continue;/
linear_float32.outputs|kernels/linear.cu|s/if \(row \+ r >= t\.rows \|\| (.*?)\) continue;/if (row + r >= t.rows) continue;/
log_mel.bound|kernels/log_mel.cu|s/(log_mel_kernel\(Y.*?m < bands\.mels)/$1 + 1/s
log_mel.heard|kernels/log_mel.cu|s/row < heard \? (BandEnergy.*?) : 0\.f/$1/s
log_mel.frames|kernels/log_mel.cu|s/if \(row < frames\)/if (true)/
row_energies.bound|kernels/log_mel.cu|s/(row_energies_kernel\(float.*?m < bands\.mels)/$1 - 1/s
row_energies.barrier|kernels/log_mel.cu|s/__syncthreads\(\);  \/\/ every warp.*\n//
log_mel.greatest|kernels/log_mel.cu|s/greatest != nullptr \? \*greatest : known/known/
greatest_energy.first|kernels/log_mel.cu|s/keep \? fmaxf\(v, \*greatest\) : v/fmaxf(v, *greatest)/
greatest_energy.others|kernels/log_mel.cu|s/keep \? fmaxf\(v, \*greatest\) : v/v/
greatest_energy.known|kernels/log_mel.cu|s/float v = known;/float v = 0.f;/
greatest_energy.bound|kernels/log_mel.cu|s/i < n; i \+= kGreatestThreads/i < n - 1; i += kGreatestThreads/
resize_columns.bound|kernels/picture.cu|s/(resize_columns_kernel\(float.*?const int end = )[^;]*/$1begin + kValues/s
resize_rows.bound|kernels/picture.cu|s/(resize_rows_kernel\(float.*?const int64_t end = )[^;]*/$1begin + kValues/s
resize_rows.begin|kernels/picture.cu|s/first < first_row \? y\[i\] : 0\.f/y[i]/
resize_rows.continue|kernels/picture.cu|s/first < first_row \? y\[i\] : 0\.f/0.f/
resize_rows.from|kernels/picture.cu|s/first > first_row \? first : first_row/first/
resize_rows.to|kernels/picture.cu|s/last < first_row \+ num_rows \? last : first_row \+ num_rows/last/
cut_crop.rows|kernels/picture.cu|s/row >= 0 && row < crop\.height && //
cut_crop.columns|kernels/picture.cu|s/ && column >= 0 && column < crop\.width//
cut_crop.bound|kernels/picture.cu|s/i < row_values \* size;/i < row_values * size + 1;/
moe_route.bound|kernels/moe.cu|s/e < r\.experts; e \+= 32/e < r.experts + 1; e += 32/
moe_route.order|kernels/moe.cu|s/v == last && e > last_id/v == last/
sort_pairs.first_barrier|kernels/moe.cu|s/__syncthreads\(\);\n  if/if/
sort_pairs.second_barrier|kernels/moe.cu|s/__syncthreads\(\);\n  for/for/
add_experts.bound|kernels/moe.cu|s/(add_experts_kernel\(float.*?const int64_t end = )[^;]*/$1begin + kColumns/s
attention_mma.wait|kernels/attention.cu|s/cp_async_wait<0>\(\);/cp_async_wait<1>();/
attention_mma.barrier|kernels/attention.cu|s/__syncthreads\(\);  \/\/ this tile.*\n//
attention_mma.end|kernels/attention.cu|s/const bool there = first \+ r < end;/const bool there = true;/
attention_mma.mask|kernels/attention.cu|s/key < limit\[e \/ 2\] \? score\[j\]\[e\] \* scale : -INFINITY/score[j][e] * scale/
attention_mma.finite|kernels/attention.cu|s/b\[i\] = FiniteOrZero\(b\[i\], &not_finite\)/FiniteOrZero(b[i], &not_finite)/
attention_mma.seen|kernels/attention.cu|s/if \(key < limit\[e \/ 2\] && v - v != 0\.f\)/if (v - v != 0.f)/
attention_mma.rows|kernels/attention.cu|s/if \(r >= t\.num_rows\) continue;//
attention_plain.first_barrier|kernels/attention.cu|s/__syncthreads\(\);  \/\/ all are done with the last tile\n//
attention_plain.second_barrier|kernels/attention.cu|s/__syncthreads\(\);  \/\/ the tile has landed.*\n//
attention_plain.warp_barrier|kernels/attention.cu|s/__syncwarp\(\);//
attention_plain.end|kernels/attention.cu|s/if \(first \+ r < t\.end_key\)/if (true)/
attention_plain.mask|kernels/attention.cu|s/first \+ lane < limit\[r\] \? score\[r\] \* p\.scale : -INFINITY/score[r] * p.scale/
attention_plain.seen|kernels/attention.cu|s/if \(weight != 0\.f\) acc/acc/
attention_plain.rows|kernels/attention.cu|s/if \(warp_row \+ r >= t\.num_rows\) continue;//
attention_merge.pieces|kernels/attention.cu|s/const int pieces = [^;]*/const int pieces = 2/
TABLE
)

chosen() {
  [ "$#" -eq 1 ] && return 0
  local name=$1 wanted
  shift
  for wanted in "$@"; do [[ $name == *"$wanted"* ]] && return 0; done
  return 1
}
# The tests that know a kernel.
tests_of() {
  case $1 in
    block_reduce.*) echo '*Norm*:*ChooseTokens*' ;;
    block_scan.*|choose_tokens.*) echo '*ChooseTokens*' ;;
    convert_rows.*) echo '*Copies*' ;;
    pad_rows.*|finish_linear.*) echo '*Fast*:*EndOfAProduct*' ;;
    embed_rows.*) echo '*Embed*' ;;
    gather_rows.*|scatter_add_rows.*|mean_rows.*) echo '*RowsAreGathered*' ;;
    rms_norm.*) echo '*RmsNorm*' ;;
    layer_norm.*) echo '*LayerNorm*' ;;
    silu_mul.*) echo '*SiluMul*' ;;
    rope.*) echo '*Rope*' ;;
    store_kv.*) echo '*Store*' ;;
    conv1d.*) echo '*Conv1d*' ;;
    linear*) echo '*Linear*:*Aligned*:*Conv1d*:*TallTile*' ;;
    log_mel.*|row_energies.*|greatest_energy.*) echo '*LogMel*:*Loudest*' ;;
    resize_*) echo '*Resize*' ;;
    cut_crop.*) echo '*Crops*' ;;
    moe_*|sort_*|add_*) echo '*Mixture*:*Router*' ;;
    attention_*) echo '*Paged*:*Long*:*Encoder*:*Aligned*:*WhatALaterToken*' ;;
  esac
}
# Both binaries, each stopped at its first failure: a mutant may also hang or crash. What a shell has
# to say of a crash, one of their own says into the log.
suite_passes() {  # FILTER
  local test
  for test in tests/cuda/cuda_backend_test tests/runtime/backend/cuda_emulated_ops_test; do
    GTEST_FAIL_FAST=1 bash -c 'timeout 300 "$@"; exit $?' - "$work/build/$test" \
      --gtest_filter="$1" >"$work/last.log" 2>&1 || return 1
  done
}
build() { cmake --build "$work/build" --target cuda_backend_test cuda_emulated_ops_test -- -j "$jobs"; }

# What is of the same content keeps its time: only what changed since the last run compiles again.
mkdir -p "$work/source"
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -rd '' file; do
    [ -f "$file" ] || continue
    cmp -s "$file" "$work/source/$file" || install -D "$file" "$work/source/$file"
  done
# -O1: half the time to compile a mutant, and fibers cost the tests the most.
cmake -S "$work/source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DSENSORIUM_SERVER=OFF -DSENSORIUM_BENCHMARKS=OFF >/dev/null
build >"$work/build.log" 2>&1 || { echo "mutations: nothing to begin with: see $work/build.log" >&2; exit 1; }

declare -A passed  # filters whose tests pass without a mutation
survivors=0 tried=0
while IFS='|' read -r name file substitution; do
  chosen "$name" ${@+"$@"} || continue
  tried=$((tried + 1))
  filter=$(tests_of "$name")
  if [ -z "${passed[$filter]:-}" ]; then
    build >"$work/build.log" 2>&1
    suite_passes "$filter" || {
      echo "mutations: '$filter' fails without any; see $work/last.log" >&2
      exit 1
    }
    passed[$filter]=1
  fi
  cp "$work/source/cuda/$file" "$work/original"
  perl -0pi -e "$substitution" "$work/source/cuda/$file"
  if cmp -s "$work/original" "$work/source/cuda/$file"; then
    echo "$name: its pattern matches nothing" >&2
    exit 1
  fi
  verdict=found
  if ! build >"$work/build.log" 2>&1; then
    echo "$name: does not compile, see $work/build.log" >&2
    verdict=error
  elif suite_passes "$filter"; then
    verdict=SURVIVES
    survivors=$((survivors + 1))
  fi
  echo "$name: $verdict"
  cp "$work/original" "$work/source/cuda/$file"
  [ "$verdict" != error ] || exit 1
done <<<"$mutations"
echo "mutations: $tried tried, $survivors survive"
[ "$survivors" -eq 0 ]
