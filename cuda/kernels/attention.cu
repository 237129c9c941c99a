// attention.cu: y = softmax(scale q k^T) v, for decode rows, ragged prefill chunks and encoders.
//
// Source    Vaswani et al. 2017 (arXiv:1706.03762), eq. 1, with the running maximum and sum of
//           Milakov & Gimelshein 2018 (arXiv:1805.02867), tiled as in Dao 2023 (arXiv:2307.08691)
//           and cut over the keys as in Flash-Decoding (Dao et al. 2023); blocks as in Kwon et al.
//           2023 (arXiv:2309.06180); grouped queries as in Ainslie et al. 2023 (arXiv:2305.13245).
// Shapes    q, y [tokens, heads, head_dim], any token stride, float or bfloat16; keys and values in
//           KV blocks (store_kv.h) or rows [keys, kv_heads, head_dim].
// Launch    grid (tasks, kv_heads); a recorded pass has as many tasks as its longest contexts need,
//           most of them without rows. attention_mma, bfloat16 of head_dim 64 and 128: 128
//           threads, each warp 16 of the 64 query rows; tiles of 64 or 32 keys, two stages: 46080
//           or 52224 B of shared memory. attention_plain, all else: 128 threads, each warp 4 rows
//           at a time; tiles of 32 keys: 22656 B at head_dim 64, 43136 B at 128, 84096 B at 256.
//           attention_merge: grid (cut tiles, kv_heads), 128 threads.
// Traffic   K and V of a sequence once for each 64 rows of (token, query head): once for a decode
//           step, which is bound by them. Cut rows write and read (head_dim + 2) floats for each
//           512 keys.
// Numerics  scores, weights' sums and outputs in fp32; for bfloat16 the weights are rounded before
//           they are summed, so that they add up to 1. A row's order of keys is fixed
//           (attention.h); a key that a row does not see contributes nothing to it, whatever it
//           holds: the matrix units multiply its weight of zero, so where some row of a tile does
//           not see all keys, values that are no numbers are left out there and added behind.
//           Bit for bit the same whatever the neighbours: for finite keys and values. An infinite
//           value whose weight has underflowed to zero is a NaN in a tile without such a row, and
//           an infinity in one with it.
#include "cuda/kernels/attention.h"

#include "cuda/kernels/launch.h"
#include "cuda/kernels/ptx.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr int kWarps = kThreads / 32;

// The keys that row r of a sequence's pairs sees.
template <typename Task>
__device__ __forceinline__ int Limit(const Task& t, int row, int group) {
  return t.first_limit + row / group * t.limit_step;
}

// First element of a row's query head in q or y.
template <typename Task>
__device__ __forceinline__ int64_t RowAt(const Task& t, int row, int group, int kv_head, int dims,
                                         int64_t stride) {
  return (t.query_begin + row / group) * stride + int64_t{kv_head * group + row % group} * dims;
}

// A key's (or its value's) elements.
struct KeyAt {
  const void* data;
  int64_t at;
  Type type;
};
__device__ __forceinline__ KeyAt FindKey(const AttentionKeys& keys, bool value, int64_t sequence,
                                         int64_t key, int64_t kv_head, int64_t dims) {
  if (keys.block_tables == nullptr) {
    const ConstRows& rows = value ? keys.v : keys.k;
    return {rows.data, (sequence * keys.kv_len + key) * rows.stride + kv_head * dims, rows.type};
  }
  const KvLayer& kv = keys.blocks;
  const int64_t block = keys.block_tables[sequence * keys.max_blocks + key / kv.block_size];
  const int64_t offset = key % kv.block_size + (value ? kv.block_size : 0);
  return {kv.data, block * kv.block_stride + kv_head * kv.head_elements() + offset * dims, kv.type};
}

// ---- bfloat16 on the matrix units --------------------------------------------------------------

template <int kDims>
struct MmaShape {
  static constexpr int kKeys = kDims == 64 ? 64 : 32;  // of a tile
  static constexpr int kPitch = kDims + 8;             // rows fall into all banks of ldmatrix
  struct Shared {
    __nv_bfloat16 q[kTileRows][kPitch];
    __nv_bfloat16 k[2][kKeys][kPitch];
    __nv_bfloat16 v[2][kKeys][kPitch];
  };
};

// Keys [first, first + kKeys) of K and V into one stage, zeros at and behind `end`.
template <int kDims>
__device__ __forceinline__ void LoadKeys(typename MmaShape<kDims>::Shared& s, int stage,
                                         const AttentionKeys& keys, bool aligned, int64_t sequence,
                                         int kv_head, int first, int end) {
  constexpr int kChunks = kDims / 8;
  for (int i = threadIdx.x; i < 2 * MmaShape<kDims>::kKeys * kChunks; i += kThreads) {
    const bool value = i >= MmaShape<kDims>::kKeys * kChunks;
    const int r = i / kChunks % MmaShape<kDims>::kKeys, c = i % kChunks * 8;
    const bool there = first + r < end;
    const KeyAt from = FindKey(keys, value, sequence, there ? first + r : first, kv_head, kDims);
    __nv_bfloat16* to = value ? &s.v[stage][r][c] : &s.k[stage][r][c];
    if (aligned) {
      cp_async_16(to, static_cast<const __nv_bfloat16*>(from.data) + from.at + c, there ? 16 : 0);
    } else {
      for (int e = 0; e < 8; ++e) {
        to[e] = __float2bfloat16(there ? Load(from.data, from.type, from.at + c + e) : 0.f);
      }
    }
  }
}

// Two bfloat16 with zeros for those that are NaN or infinite (all bits of the exponent set); *seen
// becomes nonzero when one is.
__device__ __forceinline__ uint32_t FiniteOrZero(uint32_t pair, uint32_t* seen) {
  uint32_t bad = 0;
  if ((pair & 0x7f80u) == 0x7f80u) bad |= 0xffffu;
  if ((pair & 0x7f800000u) == 0x7f800000u) bad |= 0xffff0000u;
  *seen |= bad;
  return pair & ~bad;
}

// Every loop over an array of registers is unrolled, or the array would lie in memory.
template <int kDims>
__global__ __launch_bounds__(kThreads) void attention_mma_kernel(AttentionProblem p,
                                                                 const AttentionTask* tasks,
                                                                 bool aligned) {
  using Shape = MmaShape<kDims>;
  constexpr int kKeys = Shape::kKeys;
  auto& s = shared_memory<typename Shape::Shared>();
  const AttentionTask t = tasks[blockIdx.x];
  if (t.num_rows == 0) return;  // all of the CTA
  const int kv_head = static_cast<int>(blockIdx.y), group = p.heads / p.kv_heads;
  const int lane = threadIdx.x % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;

  LoadKeys<kDims>(s, 0, p.keys, aligned, t.sequence, kv_head, t.first_key, t.end_key);
  cp_async_commit();
  for (int i = threadIdx.x; i < kTileRows * kDims; i += kThreads) {
    const int r = i / kDims, d = i % kDims;
    float v = 0.f;
    if (r < t.num_rows) {
      v = Load(p.q.data, p.q.type,
               RowAt(t, t.first_row + r, group, kv_head, kDims, p.q.stride) + d);
    }
    s.q[r][d] = __float2bfloat16(v);
  }

  // This thread's two rows of its warp's 16: lane / 4 and + 8. A row that is not there sees no key.
  int limit[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = warp_row + lane / 4 + 8 * h;
    limit[h] = r < t.num_rows ? Limit(t, t.first_row + r, group) : 0;
  }
  const bool warp_has_rows = warp_row < t.num_rows;
  // Keys that all of the warp's rows see: later rows see more.
  const int seen_by_all = Limit(t, t.first_row + warp_row, group);
  const float scale = p.scale * 1.44269504089f;  // log2 e: the weights are powers of 2
  float acc[kDims / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  const int tiles = (t.end_key - t.first_key + kKeys - 1) / kKeys;
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = t.first_key + tile * kKeys, stage = tile % 2;
    cp_async_wait<0>();
    __syncthreads();  // this tile has landed for all, and all are done with the one filled next
    if (tile + 1 < tiles) {
      LoadKeys<kDims>(s, 1 - stage, p.keys, aligned, t.sequence, kv_head, first + kKeys, t.end_key);
      cp_async_commit();
    }
    if (!warp_has_rows) continue;

    float score[kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < kDims; d += 16) {
      uint32_t a[4];
      ldmatrix_x4(a, &s.q[warp_row + lane % 16][d + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        uint32_t b[4];  // two tiles of 8 keys
        ldmatrix_x4(b, &s.k[stage][j * 8 + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
        mma_bf16_16816(score[j], a, b[0], b[1]);
        mma_bf16_16816(score[j + 1], a, b[2], b[3]);
      }
    }

    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = first + j * 8 + lane % 4 * 2 + e % 2;
        score[j][e] = key < limit[e / 2] ? score[j][e] * scale : -INFINITY;
        top[e / 2] = fmaxf(top[e / 2], score[j][e]);
      }
    }
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {  // over the four lanes of a row
      top[h] = fmaxf(top[h], __shfl_xor_sync(kWholeWarpMask, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(kWholeWarpMask, top[h], 2));
      top[h] = fmaxf(top[h], max[h]);
      const float base = top[h] == -INFINITY ? 0.f : top[h];  // no key yet: weights of zero
      keep[h] = exp2f(max[h] - base);
      max[h] = top[h];
      top[h] = base;
      sum[h] *= keep[h];
    }
#pragma unroll
    for (int n = 0; n < kDims / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[n][e] *= keep[e / 2];
    }
    const int end = first + kKeys < t.end_key ? first + kKeys : t.end_key;
    const bool masked = end > seen_by_all;
    uint32_t not_finite = 0;
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 2) {
      // The scores' layout is that of the left operand, two tiles of 8 keys to one of 16.
      float weight[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          weight[i][e] = RoundToBf16(exp2f(score[j + i][e] - top[e / 2]));
          sum[e / 2] += weight[i][e];
        }
      }
      const uint32_t a[4] = {
          PackBf16(weight[0][0], weight[0][1]), PackBf16(weight[0][2], weight[0][3]),
          PackBf16(weight[1][0], weight[1][1]), PackBf16(weight[1][2], weight[1][3])};
#pragma unroll
      for (int n = 0; n < kDims / 8; n += 2) {
        uint32_t b[4];  // two tiles of 8 dims of 16 keys
        ldmatrix_x4_trans(b, &s.v[stage][j * 8 + lane % 16][n * 8 + lane / 16 * 8]);
        if (masked) {
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i] = FiniteOrZero(b[i], &not_finite);
        }
        mma_bf16_16816(acc[n], a, b[0], b[1]);
        mma_bf16_16816(acc[n + 1], a, b[2], b[3]);
      }
    }
    // What was left out, for the rows that see it: a number times a NaN or an infinity is one.
    if (__any_sync(kWholeWarpMask, not_finite != 0)) {
      for (int key = first; key < end; ++key) {
#pragma unroll
        for (int n = 0; n < kDims / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float v = ToFloat(s.v[stage][key - first][n * 8 + lane % 4 * 2 + e % 2]);
            if (key < limit[e / 2] && v - v != 0.f) acc[n][e] += v;
          }
        }
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {  // each lane summed its own keys
    sum[h] += __shfl_xor_sync(kWholeWarpMask, sum[h], 1);
    sum[h] += __shfl_xor_sync(kWholeWarpMask, sum[h], 2);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = warp_row + lane / 4 + 8 * h;
    if (r >= t.num_rows) continue;
    const int64_t at = RowAt(t, t.first_row + r, group, kv_head, kDims, p.y.stride);
    float* partial = nullptr;
    if (t.partial >= 0) {
      partial = p.partials + (int64_t{t.partial + r} * p.kv_heads + kv_head) * (kDims + 2);
      if (lane % 4 == 0) partial[kDims] = max[h], partial[kDims + 1] = sum[h];
    }
#pragma unroll
    for (int n = 0; n < kDims / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int d = n * 8 + lane % 4 * 2 + e;
        const float v = acc[n][2 * h + e];
        if (partial != nullptr) {
          partial[d] = v;
        } else {
          Store(p.y.data, p.y.type, at + d, v / sum[h]);
        }
      }
    }
  }
}

// ---- Any type, any head_dim --------------------------------------------------------------------

constexpr int kPlainKeys = 32;  // of a tile: one a lane
constexpr int kRowsAtOnce = 4;  // of a warp

// Floats: q of each warp's rows, a tile's keys (an odd pitch: lanes read down a column) and values,
// the weights of each warp's rows.
struct PlainShared {
  float *q, *k, *v, *weights;
  __host__ __device__ static size_t Bytes(int dims) {
    return sizeof(float) * (kWarps * kRowsAtOnce * dims + kPlainKeys * (dims + 1) +
                            kPlainKeys * dims + kWarps * kRowsAtOnce * kPlainKeys);
  }
};

__global__ __launch_bounds__(kThreads) void attention_plain_kernel(AttentionProblem p,
                                                                   const AttentionTask* tasks) {
  const int dims = p.head_dim, pitch = dims + 1;
  PlainShared s;
  s.q = &shared_memory<float>();
  s.k = s.q + kWarps * kRowsAtOnce * dims;
  s.v = s.k + kPlainKeys * pitch;
  s.weights = s.v + kPlainKeys * dims;
  const AttentionTask t = tasks[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y), group = p.heads / p.kv_heads;
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool round = p.type == Type::kBFloat16;
  constexpr int kEach = kMaxHeadDim / 32;  // dims of a lane: lane, lane + 32, ...

  for (int begin = 0; begin < t.num_rows; begin += kWarps * kRowsAtOnce) {
    const int warp_row = begin + warp * kRowsAtOnce;
    float* q = s.q + warp * kRowsAtOnce * dims;
    float* weights = s.weights + warp * kRowsAtOnce * kPlainKeys;
    int limit[kRowsAtOnce];
    float acc[kRowsAtOnce][kEach] = {}, max[kRowsAtOnce], sum[kRowsAtOnce] = {};
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const bool there = warp_row + r < t.num_rows;
      const int row = t.first_row + warp_row + r;
      limit[r] = there ? Limit(t, row, group) : 0;
      max[r] = -INFINITY;
      const int64_t at = there ? RowAt(t, row, group, kv_head, dims, p.q.stride) : 0;
      for (int d = lane; d < dims; d += 32) {
        const float v = there ? Load(p.q.data, p.q.type, at + d) : 0.f;
        q[r * dims + d] = round ? RoundToBf16(v) : v;
      }
    }
    for (int first = t.first_key; first < t.end_key; first += kPlainKeys) {
      __syncthreads();  // all are done with the last tile
      for (int i = threadIdx.x; i < kPlainKeys * dims; i += kThreads) {
        const int r = i / dims, d = i % dims;
        float k = 0.f, v = 0.f;
        if (first + r < t.end_key) {
          const KeyAt key = FindKey(p.keys, false, t.sequence, first + r, kv_head, dims);
          const KeyAt value = FindKey(p.keys, true, t.sequence, first + r, kv_head, dims);
          k = Load(key.data, key.type, key.at + d);
          v = Load(value.data, value.type, value.at + d);
        }
        s.k[r * pitch + d] = round ? RoundToBf16(k) : k;
        s.v[r * dims + d] = round ? RoundToBf16(v) : v;
      }
      __syncthreads();  // the tile has landed, and so have the warp's rows of q
      float score[kRowsAtOnce] = {};
      for (int d = 0; d < dims; ++d) {
        const float k = s.k[lane * pitch + d];
        for (int r = 0; r < kRowsAtOnce; ++r) score[r] += q[r * dims + d] * k;
      }
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const float mine = first + lane < limit[r] ? score[r] * p.scale : -INFINITY;
        const float top = fmaxf(max[r], WarpMax(mine));
        const float base = top == -INFINITY ? 0.f : top;  // no key yet: weights of zero
        float weight = expf(mine - base);
        if (round) weight = RoundToBf16(weight);
        const float keep = expf(max[r] - base);
        sum[r] = sum[r] * keep + weight;  // of this lane's keys
        max[r] = top;
        weights[r * kPlainKeys + lane] = weight;
        for (int i = 0; i < kEach; ++i) acc[r][i] *= keep;
      }
      __syncwarp();
      for (int key = 0; key < kPlainKeys; ++key) {
        for (int i = 0; i < kEach; ++i) {
          const int d = lane + 32 * i;
          if (d >= dims) break;
          const float v = s.v[key * dims + d];
          for (int r = 0; r < kRowsAtOnce; ++r) {
            const float weight = weights[r * kPlainKeys + key];
            if (weight != 0.f) acc[r][i] += weight * v;  // else v may be NaN: a row does not see it
          }
        }
      }
    }
    for (int r = 0; r < kRowsAtOnce; ++r) {
      sum[r] = WarpSum(sum[r]);
      if (warp_row + r >= t.num_rows) continue;
      const int64_t at = RowAt(t, t.first_row + warp_row + r, group, kv_head, dims, p.y.stride);
      float* partial = nullptr;
      if (t.partial >= 0) {
        partial =
            p.partials + (int64_t{t.partial + warp_row + r} * p.kv_heads + kv_head) * (dims + 2);
        // The merge's powers are of 2.
        if (lane == 0) partial[dims] = max[r] * 1.44269504089f, partial[dims + 1] = sum[r];
      }
      for (int i = 0; i < kEach; ++i) {
        const int d = lane + 32 * i;
        if (d >= dims) break;
        if (partial != nullptr) {
          partial[d] = acc[r][i];
        } else {
          Store(p.y.data, p.y.type, at + d, acc[r][i] / sum[r]);
        }
      }
    }
  }
}

// ---- The pieces of a row's keys ----------------------------------------------------------------

__global__ __launch_bounds__(kThreads) void attention_merge_kernel(AttentionProblem p,
                                                                   const MergeTask* merges) {
  const MergeTask t = merges[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y), group = p.heads / p.kv_heads;
  const int lane = threadIdx.x % 32, dims = p.head_dim;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < t.num_rows; r += kWarps) {
    // As many pieces as the row has keys for, however many its neighbours have.
    const int pieces = (Limit(t, t.first_row + r, group) + kSplitKeys - 1) / kSplitKeys;
    const auto piece = [&](int i) {
      return p.partials +
             (int64_t{t.partial + i * t.num_rows + r} * p.kv_heads + kv_head) * (dims + 2);
    };
    float max = piece(0)[dims];
    for (int i = 1; i < pieces; ++i) max = fmaxf(max, piece(i)[dims]);
    const float first_weight = exp2f(piece(0)[dims] - max);
    float sum = first_weight * piece(0)[dims + 1];
    for (int i = 1; i < pieces; ++i) sum += exp2f(piece(i)[dims] - max) * piece(i)[dims + 1];
    const int64_t at = RowAt(t, t.first_row + r, group, kv_head, dims, p.y.stride);
    for (int d = lane; d < dims; d += 32) {
      float v = first_weight * piece(0)[d];
      for (int i = 1; i < pieces; ++i) v += exp2f(piece(i)[dims] - max) * piece(i)[d];
      Store(p.y.data, p.y.type, at + d, v / sum);
    }
  }
}

// ---- Launch ------------------------------------------------------------------------------------

template <int kDims>
void RunMma(const AttentionProblem& p, const AttentionTask* tasks, dim3 grid, Queue& queue) {
  const auto vectors = [](ConstRows rows) {
    return rows.type == Type::kBFloat16 && rows.stride % 8 == 0 &&
           reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
  };
  const bool aligned = p.keys.block_tables != nullptr || (vectors(p.keys.k) && vectors(p.keys.v));
  launch(attention_mma_kernel<kDims>, grid, kThreads, sizeof(typename MmaShape<kDims>::Shared),
         queue, p, tasks, aligned);
}

}  // namespace

void Attention(const AttentionProblem& problem, const AttentionTask* tasks, int64_t num_tasks,
               const MergeTask* merges, int64_t num_merges, Queue& queue) {
  if (num_tasks == 0) return;
  const dim3 grid(static_cast<unsigned>(num_tasks), static_cast<unsigned>(problem.kv_heads));
  if (problem.type == Type::kBFloat16 && problem.head_dim == 64) {
    RunMma<64>(problem, tasks, grid, queue);
  } else if (problem.type == Type::kBFloat16 && problem.head_dim == 128) {
    RunMma<128>(problem, tasks, grid, queue);
  } else {
    launch(attention_plain_kernel, grid, kThreads, PlainShared::Bytes(problem.head_dim), queue,
           problem, tasks);
  }
  if (num_merges == 0) return;
  launch(attention_merge_kernel, dim3(static_cast<unsigned>(num_merges), grid.y), kThreads, 0,
         queue, problem, merges);
}

}  // namespace sensorium::cuda
