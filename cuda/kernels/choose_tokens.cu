// choose_tokens.cu: bans, edits, log-softmax, the likeliest tokens and one draw for each choice.
//
// Source    Whisper's filters: openai/whisper, decoding.py. top-k, top-p, min-p: see
//           runtime/backend/token_choice.h. Philox: Salmon et al., "Parallel random numbers: as
//           easy as 1, 2, 3", SC 2011.
// Shapes    logits [vocab] float, one row a choice, which may be shared; choices, arrays and
//           answers as choose_tokens.h says.
// Launch    grid choices, 512 threads: one CTA per choice, whatever else runs. Dynamic shared
//           memory 17696 B for a histogram and a list, vocab / 8 bytes for the banned ids, as many
//           again for the edited ones where there are any.
// Traffic   the row once from HBM, and again from L2 for each pass: two for a greedy choice without
//           edits, one more for the timestamp rule, 4 to 14 more for a draw, 6 more for the
//           likeliest. A few KiB beside it.
// Numerics  nothing is sorted: the k-th likeliest token, the last one of the nucleus and the drawn
//           one are each found digit by digit. A key is 52 bits, the logit's bits made monotonous,
//           then the id turned around, so that the lowest id is the highest of equal logits. Five
//           passes, each a histogram of 11 or 10 bits of those keys that share the digits found so
//           far, narrow it down to the one key at which the count, or the mass, from the top
//           reaches what is wanted. A probability's mass is an integer, exp(x - max) in units of
//           2^-44, and so is every sum of them: additions of integers may come in any order, so the
//           shared memory's atomics take nothing from the bits. A sum of n terms is right to n
//           2^-45 of the largest one; a token less than 2^-45 as likely as the likeliest is never
//           drawn.
#include "cuda/kernels/choose_tokens.h"

#include "cuda/kernels/launch.h"
#include "cuda/primitives.cuh"

namespace sensorium::cuda {
namespace {

using Bits64 = unsigned long long;  // what CUDA's atomics take

constexpr unsigned kThreads = 512;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kThreads;
constexpr float kMassOfOne = 0x1p44f;   // and kMostVocab of them are less than 2^63
constexpr float kLowestScaled = -87.f;  // a draw has 24 bits

struct Shared {
  Bits64 bins[kBins];
  Bits64 scratch[32];
  Bits64 listed[kMostLikeliest];  // keys
  Bits64 digits, above, weight;   // of a descent
  unsigned num_listed;
  int found;
};  // then the banned ids as bits, and the edited ones

// ---- Keys: the order of likelihood, lowest id first on ties ------------------------------------

constexpr int kIdBits = 20;
constexpr Bits64 kIdMask = (Bits64{1} << kIdBits) - 1;
constexpr int kKeyBits = 32 + kIdBits;
constexpr int kValueLevels = 3, kKeyLevels = 5;  // digits of 11, 11, 10 bits, then 10, 10

__device__ __forceinline__ Bits64 KeyOf(float v, int id) {
  const unsigned bits = __float_as_uint(v);
  const unsigned order = bits >> 31 ? ~bits : bits | 0x80000000u;
  return Bits64{order} << kIdBits | (kIdMask - static_cast<Bits64>(id));
}
__device__ __forceinline__ float ValueOf(Bits64 key) {
  const auto order = static_cast<unsigned>(key >> kIdBits);
  return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}
__device__ __forceinline__ int IdOf(Bits64 key) {
  return static_cast<int>(kIdMask - (key & kIdMask));
}

// ---- A row of logits ---------------------------------------------------------------------------

// NaN counts as -inf. Zeros are of one sign, so that they tie.
__device__ __forceinline__ float Clean(float v) { return v == v ? v + 0.f : -INFINITY; }
__host__ __device__ constexpr int SetWords(int vocab) { return (vocab + 31) / 32; }
__device__ __forceinline__ bool Has(const unsigned* set, int id) {
  return set[id / 32] >> (id % 32) & 1;
}

struct Row {
  const float* logits;
  int vocab;
  int first;  // ids below are banned
  const unsigned* banned;
  const unsigned* edited;  // null: none
  const TokenEdit* edits;
  int num_edits;

  __device__ __forceinline__ float Filtered(int id) const {
    return id < first || Has(banned, id) ? -INFINITY : Clean(logits[id]);
  }
  __device__ __forceinline__ float Edited(int id) const {
    float v = Filtered(id);
    if (edited == nullptr || !Has(edited, id)) return v;
    int begin = 0, end = num_edits - 1;
    while (begin < end) {
      const int middle = (begin + end) / 2;
      if (edits[middle].id < id) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    const TokenEdit e = edits[begin];
    v += e.bias;
    v = v > 0.f ? v / e.repetition : __fmul_rn(v, e.repetition);  // not to become a multiply-add
    return Clean(v - e.penalty);
  }
};

__device__ __forceinline__ Bits64 MassOf(float x) { return __float2ull_rn(expf(x) * kMassOfOne); }

__device__ __forceinline__ Bits64 BlockMax(Bits64 v, Shared& s) {
  return BlockReduce(v, s.scratch, [](Bits64 a, Bits64 b) { return a > b ? a : b; });
}

// The mass of ids [from, to), of value(id) - max each.
template <typename Value>
__device__ __forceinline__ Bits64 MassOver(int from, int to, float max, Shared& s, Value value) {
  Bits64 mass = 0;
  for (int id = from + static_cast<int>(threadIdx.x); id < to; id += kThreads) {
    mass += MassOf(value(id) - max);
  }
  return BlockReduce(mass, s.scratch, [](Bits64 a, Bits64 b) { return a + b; });
}

// log(sum(exp(value(id)))) over ids [from, to), the largest of which is `max`.
template <typename Value>
__device__ __forceinline__ double LogSumExp(int from, int to, float max, Shared& s, Value value) {
  if (isinf(max)) return static_cast<double>(max);
  const Bits64 mass = MassOver(from, to, max, s, value);
  return static_cast<double>(max) + log(static_cast<double>(mass) * 0x1p-44);
}

__device__ __forceinline__ float LogProb(float v, double log_sum_exp) {
  if (v == -INFINITY) return v;
  if (isinf(log_sum_exp)) return v == INFINITY ? 0.f : -INFINITY;
  return static_cast<float>(static_cast<double>(v) - log_sum_exp);
}

// ---- The descent -------------------------------------------------------------------------------

struct Found {
  bool there;     // false: all weights together are less than the target
  Bits64 digits;  // the key's first ones
  Bits64 above;   // weight of all keys above those digits
  Bits64 weight;  // of the keys that have them
};

// The highest key at which the sum of weights from the highest on reaches `target`, at least 1: its
// first `levels` digits. weight(value(id)) is an id's weight, 0 of one that is not there.
template <typename Value, typename Weight>
__device__ __forceinline__ Found Descend(int vocab, Bits64 target, int levels, Shared& s,
                                         Value value, Weight weight) {
  Found found = {true, 0, 0, 0};
  int shift = kKeyBits;
  for (int level = 0; level < levels; ++level) {
    const int above = shift;
    shift -= level < 2 ? 11 : 10;
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) s.bins[b] = 0;
    __syncthreads();  // the bins are empty
    if (threadIdx.x == 0) s.found = 0;
    for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kThreads) {
      const float v = value(id);
      const Bits64 key = KeyOf(v, id);
      if (key >> above != found.digits) continue;
      const Bits64 w = weight(v);
      if (w != 0) atomicAdd(&s.bins[key >> shift & ((Bits64{1} << (above - shift)) - 1)], w);
    }
    __syncthreads();  // all is counted
    // Thread 0 has the highest bins.
    const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    Bits64 own = 0;
    for (int b = 0; b < kBinsPerThread; ++b) own += s.bins[highest - b];
    const Bits64 upto = found.above + BlockScan(own, s.scratch);
    Bits64 before = upto - own;
    if (before < target && target <= upto) {  // in one thread at most
      int b = highest;
      for (; before + s.bins[b] < target; --b) before += s.bins[b];
      s.digits = found.digits << (above - shift) | static_cast<Bits64>(b);
      s.above = before;
      s.weight = s.bins[b];
      s.found = 1;
    }
    __syncthreads();  // the bin is found
    found = {s.found != 0, s.digits, s.above, s.weight};
    if (!found.there) break;
  }
  return found;
}

// ---- The draw ----------------------------------------------------------------------------------

// Philox 4x32-10's first word, as a multiple of 2^-24 in [0, 1): runtime/cpu/counter_rng.h.
__device__ __forceinline__ float Uniform(uint64_t seed, uint64_t stream, uint64_t position) {
  unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32);
  unsigned c2 = static_cast<unsigned>(stream), c3 = static_cast<unsigned>(stream >> 32);
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Bits64 p0 = Bits64{0xD2511F53u} * c0, p1 = Bits64{0xCD9E8D57u} * c2;
    c0 = static_cast<unsigned>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<unsigned>(p1);
    c2 = static_cast<unsigned>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<unsigned>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<float>(c0 >> 8) * 0x1p-24f;
}

// Steps 5 to 9 of token_choice.h; `max` is the edited row's largest logit, and finite.
__device__ __forceinline__ int Draw(const Choice& c, const Row& row, float max, Shared& s) {
  const auto scaled = [&](int id) { return (row.Edited(id) - max) / c.temperature; };
  float floor = kLowestScaled;
  if (c.top_k > 0 && c.top_k < row.vocab) {
    const Found kth = Descend(row.vocab, static_cast<Bits64>(c.top_k), kValueLevels, s, scaled,
                              [](float x) { return static_cast<Bits64>(x >= kLowestScaled); });
    if (kth.there) floor = ValueOf(kth.digits << kIdBits);
  }
  if (c.log_min_p > floor) floor = c.log_min_p;
  const auto mass_of = [floor](float x) { return x >= floor ? MassOf(x) : 0; };
  Bits64 mass = 0;
  for (int id = static_cast<int>(threadIdx.x); id < row.vocab; id += kThreads) {
    mass += mass_of(scaled(id));
  }
  mass = BlockReduce(mass, s.scratch, [](Bits64 a, Bits64 b) { return a + b; });
  // First the last token of the nucleus, which says how much is left, then the one that is drawn:
  // the cumulative mass is to reach top_p of all, and then to exceed the draw.
  int token = 0;
  for (int pass = c.top_p < 1.f ? 0 : 1; pass < 2; ++pass) {
    const double wanted =
        static_cast<double>(mass) *
        static_cast<double>(pass == 0 ? c.top_p : Uniform(c.seed, c.stream, c.position));
    Bits64 target = static_cast<Bits64>(pass == 0 ? ceil(wanted) : ::floor(wanted) + 1.0);
    if (target > mass) target = mass;
    const Found found = Descend(row.vocab, target, kKeyLevels, s, scaled, mass_of);
    mass = found.above + found.weight;
    token = IdOf(found.digits);
  }
  return token;
}

// The likeliest tokens of the filtered row, best first, and how many there are.
__device__ __forceinline__ int ListLikeliest(LikelyToken* out, int wanted, const Row& row,
                                             double log_sum_exp, Shared& s) {
  const auto filtered = [&](int id) { return row.Filtered(id); };
  if (threadIdx.x == 0) s.num_listed = 0;
  const Found last = Descend(row.vocab, static_cast<Bits64>(wanted), kKeyLevels, s, filtered,
                             [](float v) { return static_cast<Bits64>(v > -INFINITY); });
  const Bits64 least = last.there ? last.digits : 0;
  for (int id = static_cast<int>(threadIdx.x); id < row.vocab; id += kThreads) {
    const float v = row.Filtered(id);
    const Bits64 key = KeyOf(v, id);
    if (v > -INFINITY && key >= least) s.listed[atomicAdd(&s.num_listed, 1u)] = key;
  }
  __syncthreads();  // the list is there, in any order
  const int count = static_cast<int>(s.num_listed);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const Bits64 key = s.listed[i];
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += s.listed[j] > key;
    out[rank] = {IdOf(key), LogProb(ValueOf(key), log_sum_exp)};
  }
  return count;
}

// ---- One choice --------------------------------------------------------------------------------

__device__ __forceinline__ void AddToSet(unsigned* set, int id) {
  atomicOr(&set[id / 32], 1u << (id % 32));
}

// The banned and the edited ids as bits.
__device__ __forceinline__ void MakeSets(const Choice& c, const std::byte* arrays, int vocab,
                                         unsigned* banned, unsigned* edited) {
  for (int w = static_cast<int>(threadIdx.x); w < SetWords(vocab); w += kThreads) {
    unsigned bits = 0;
    for (int r = 0; r < 4; ++r) {
      const int from = c.range_from[r] - w * 32, to = c.range_to[r] - w * 32;
      if (from >= to || from >= 32 || to <= 0) continue;
      bits |= (from > 0 ? ~0u << from : ~0u) & (to < 32 ? ~(~0u << to) : ~0u);
    }
    banned[w] = bits;
    if (c.num_edits > 0) edited[w] = 0;
  }
  __syncthreads();  // the sets hold the ranges
  for (int list = 0; list < 2; ++list) {
    const auto* ids = reinterpret_cast<const int32_t*>(arrays + c.banned[list]);
    for (int i = static_cast<int>(threadIdx.x); i < c.num_banned[list]; i += kThreads) {
      AddToSet(banned, ids[i]);
    }
  }
  const auto* edits = reinterpret_cast<const TokenEdit*>(arrays + c.edits);
  for (int i = static_cast<int>(threadIdx.x); i < c.num_edits; i += kThreads) {
    AddToSet(edited, edits[i].id);
  }
  __syncthreads();  // the sets are whole
}

// Two CTAs on a multiprocessor suffice: without that ptxas spills for the sake of four.
__global__ void __launch_bounds__(kThreads, 2)
    choose_tokens_kernel(const Choice* choices, const std::byte* arrays, std::byte* answers,
                         int vocab) {
  const Choice& c = choices[blockIdx.x];
  Shared& s = shared_memory<Shared>();
  unsigned* banned = reinterpret_cast<unsigned*>(&s + 1);
  unsigned* edited = banned + SetWords(vocab);
  MakeSets(c, arrays, vocab, banned, edited);
  Row row = {c.logits,
             vocab,
             0,
             banned,
             c.num_edits > 0 ? edited : nullptr,
             reinterpret_cast<const TokenEdit*>(arrays + c.edits),
             c.num_edits};
  auto* answer = reinterpret_cast<ChoiceAnswer*>(answers + c.answer);
  auto* likeliest = reinterpret_cast<LikelyToken*>(answer + 1);

  if (c.num_asked > 0) {
    const auto raw = [&](int id) { return Clean(c.logits[id]); };
    Bits64 best = 0;
    for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kThreads) {
      const Bits64 key = KeyOf(raw(id), id);
      best = key > best ? key : best;
    }
    best = BlockMax(best, s);
    const double log_sum_exp = LogSumExp(0, vocab, ValueOf(best), s, raw);
    if (threadIdx.x == 0) answer->raw_log_sum_exp = log_sum_exp;
    const auto* ids = reinterpret_cast<const int32_t*>(arrays + c.asked);
    auto* out = reinterpret_cast<float*>(likeliest + c.num_likeliest);
    for (int i = static_cast<int>(threadIdx.x); i < c.num_asked; i += kThreads) {
      out[i] = c.logits[ids[i]];
    }
  }

  // Step 2. Times are the ids from `split` on, text those below; without the rule all are times.
  const auto filtered = [&](int id) { return row.Filtered(id); };
  const int split = c.timestamp_begin > 0 ? c.timestamp_begin : 0;
  Bits64 text = 0, times = 0;
  for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kThreads) {
    const Bits64 key = KeyOf(row.Filtered(id), id);
    if (id < split) {
      text = key > text ? key : text;
    } else {
      times = key > times ? key : times;
    }
  }
  text = BlockMax(text, s);
  times = BlockMax(times, s);
  Bits64 best = text > times ? text : times;
  double log_sum_exp = 0;
  if (split > 0 && times > 0) {
    log_sum_exp = LogSumExp(split, vocab, ValueOf(times), s, filtered);
    if (log_sum_exp > static_cast<double>(ValueOf(text))) {
      row.first = split;
      best = times;
    }
  }
  if (row.first == 0) log_sum_exp = LogSumExp(0, vocab, ValueOf(best), s, filtered);

  // Steps 3 to 9.
  if (c.num_edits > 0) {
    best = 0;
    for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kThreads) {
      const Bits64 key = KeyOf(row.Edited(id), id);
      best = key > best ? key : best;
    }
    best = BlockMax(best, s);
  }
  int token = IdOf(best);
  if (c.temperature > 0.f && !isinf(ValueOf(best))) token = Draw(c, row, ValueOf(best), s);
  int count = 0;
  if (c.num_likeliest > 0) count = ListLikeliest(likeliest, c.num_likeliest, row, log_sum_exp, s);
  if (threadIdx.x == 0) {
    answer->token = token;
    answer->logprob = LogProb(row.Filtered(token), log_sum_exp);
    answer->num_likeliest = count;
  }
}

}  // namespace

void ChooseTokens(const Choice* choices, int64_t count, const std::byte* arrays, std::byte* answers,
                  int64_t vocab, bool edits, Queue& queue) {
  if (count == 0) return;
  const size_t set_bytes =
      static_cast<size_t>(SetWords(static_cast<int>(vocab))) * sizeof(unsigned);
  launch(choose_tokens_kernel, static_cast<unsigned>(count), kThreads,
         sizeof(Shared) + set_bytes * (edits ? 2 : 1), queue, choices, arrays, answers,
         static_cast<int>(vocab));
}

}  // namespace sensorium::cuda
