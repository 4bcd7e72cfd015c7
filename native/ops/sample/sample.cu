// Chooses one token a row, one block a row, without sorting and without leaving the device.
//
// Weights exp((logit - largest) / temperature) are integers, in units of 2^-44: sums of them do not
// depend on their order, so the result repeats, and errors are far below those of exp itself.
// Top-k and top-p both keep a shortest prefix of the tokens sorted by logit (ties to the lower id),
// the one whose mass (tokens, or weight) reaches a target. Its end, a `Cut`, is found by refinement:
// a histogram of mass over the distance from the largest logit, then of the one bin that matters
// over 11, 11 and 10 bits of the logit. The draw, and the cut between equal logits, look for the
// first token in ascending id at which a running mass exceeds a target: sums of 32 pieces, then of
// 32 pieces of the right piece, and so on. A pass over the row reads the L2 cache.
//
// A kernel cannot fail the stream. What the contract refuses (NaN or +inf among the logits, nothing
// but -inf, impossible settings) gives token 0 with log-probability NaN, and leaves `seen` alone.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"
#include "ops/sample/uniform.h"

namespace loza::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 32;  // of distance between logits
constexpr int kMaxVocab = 1 << 18;  // so that sums of weights fit into 64 bits
constexpr int kMaxAlternatives = 256;
constexpr float kWeightUnits = 0x1p44f;
constexpr int32_t kNoToken = INT32_MAX;

struct SampleArgs {
  int32_t* tokens;               // [rows]
  float* logprobs;               // [rows]
  Rows<int32_t> top_tokens;      // [rows, alternatives]
  Rows<float> top_logprobs;      // [rows, alternatives]
  Rows<const float> logits;      // [rows, vocab]
  Rows<const float> settings;    // [rows, 4]
  Rows<const int32_t> integers;  // [rows, 4]
  Rows<uint32_t> seen;           // [rows, ceil(vocab / 32)], or null
  int32_t vocab, alternatives;
};

struct Settings {
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  uint64_t seed;
  uint32_t counter;

  __device__ Settings(const float* reals, const int32_t* integers)
      : temperature(reals[0]),
        top_p(reals[1]),
        min_p(reals[2]),
        penalty(reals[3]),
        top_k(integers[0]),
        seed(static_cast<uint64_t>(static_cast<uint32_t>(integers[2])) << 32 |
             static_cast<uint32_t>(integers[1])),
        counter(static_cast<uint32_t>(integers[3])) {}

  __device__ bool usable() const {
    return temperature >= 0 && !isnan(top_p) && min_p <= 1 && penalty > 0 && top_k >= 0;
  }
};

struct Shared {
  uint32_t bins_low[kBins], bins_high[kBins];  // the two halves of each bin's mass
  uint64_t sums[kMaxWarps];
  float floats[kMaxWarps];
  uint64_t bin_before, bin_mass;
  int32_t bin;
  uint64_t kept[kMaxAlternatives];
  int32_t kept_count;
};

// Unsigned integers in the reverse order of the floats, so that the most likely token has the lowest
// rank. -0 counts as 0.
__device__ __forceinline__ uint32_t rank_of(float logit) {
  const uint32_t bits = logit == 0 ? 0u : __float_as_uint(logit);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

__device__ __forceinline__ float logit_of_rank(uint32_t rank) {
  return __uint_as_float(rank & 0x80000000u ? rank : ~rank & 0x7fffffffu);
}

// Sorts tokens by logit, ties to the lower id.
__device__ __forceinline__ uint64_t sort_key(float logit, int32_t id) {
  return static_cast<uint64_t>(rank_of(logit)) << 32 | static_cast<uint32_t>(id);
}

// A row of logits after the repetition penalty.
struct Row {
  const float* logits;
  const uint32_t* seen;  // null: no penalty
  float penalty;
  int32_t vocab;

  __device__ __forceinline__ float penalised(int32_t id, float logit) const {
    if (seen == nullptr || (seen[id / 32] >> (id % 32) & 1u) == 0) return logit;
    return logit > 0 ? logit / penalty : logit * penalty;
  }

  __device__ __forceinline__ float operator[](int32_t id) const {
    return penalised(id, logits[id]);
  }

  // body(id, logit) for every token, dealt out to the threads of the block.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const bool aligned = reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0;
    const int32_t vectors = aligned ? vocab / 4 : 0;
#pragma unroll 2
    for (int32_t i = threadIdx.x; i < vectors; i += kThreads) {
      const float4 four = reinterpret_cast<const float4*>(logits)[i];
      body(4 * i, penalised(4 * i, four.x));
      body(4 * i + 1, penalised(4 * i + 1, four.y));
      body(4 * i + 2, penalised(4 * i + 2, four.z));
      body(4 * i + 3, penalised(4 * i + 3, four.w));
    }
#pragma unroll 2
    for (int32_t id = 4 * vectors + threadIdx.x; id < vocab; id += kThreads) body(id, (*this)[id]);
  }
};

// The weight of a logit; the largest logit weighs one.
struct Weight {
  float largest, temperature;

  __device__ __forceinline__ float real(float logit) const {
    return expf((logit - largest) / temperature);
  }
  __device__ __forceinline__ uint64_t operator()(float logit) const {
    const float weight = real(logit);
    return weight > 0 ? __float2ull_rn(weight * kWeightUnits) : 0;  // NaN is no weight
  }
};

// A prefix of the sorted tokens: ranks below `rank`, and of those at it the ids up to `last_id`.
struct Cut {
  uint32_t rank = UINT32_MAX;
  int32_t last_id = kNoToken;

  __device__ __forceinline__ bool keeps(uint32_t token_rank, int32_t id) const {
    return token_rank < rank || (token_rank == rank && id <= last_id);
  }
};

// The first id at which the running mass exceeds target_of(total mass), which must be below the
// total. mass(id): u64. Every thread of the block gets it.
template <class Mass, class Target>
__device__ int32_t first_beyond(int32_t vocab, Shared& shared, const Mass& mass,
                                const Target& target_of) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int32_t begin = 0, end = vocab;
  uint64_t target = 0;
  for (bool first = true;; first = false) {
    const auto piece =
        static_cast<int32_t>(ceil_div(ceil_div(end - begin, kWarps), kWarpSize) * kWarpSize);
    const int32_t to = min(begin + (warp + 1) * piece, end);
    uint64_t sum = 0;
#pragma unroll 4
    for (int32_t id = begin + warp * piece + lane; id < to; id += kWarpSize) sum += mass(id);
    sum = warp_sum(sum);
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
    uint64_t total = 0;
    for (int i = 0; i < kWarps; i++) total += shared.sums[i];
    if (first) target = target_of(total);
    int chosen = 0;
    while (chosen + 1 < kWarps && shared.sums[chosen] <= target) target -= shared.sums[chosen++];
    __syncthreads();
    begin = min(begin + chosen * piece, vocab - 1);
    end = min(begin + piece, end);
    if (piece == kWarpSize) break;
  }
  // At most 32 tokens are left; every warp looks at them, which needs no more barriers.
  const int32_t id = begin + lane;
  const uint64_t running = warp_inclusive_sum(id < end ? mass(id) : uint64_t{0});
  const unsigned beyond = __ballot_sync(kFullWarp, running > target);
  return beyond == 0 ? begin : begin + __ffs(beyond) - 1;
}

__device__ __forceinline__ void add_to_bin(Shared& shared, int32_t bin, uint64_t mass) {
  const auto low = static_cast<uint32_t>(mass);
  auto high = static_cast<uint32_t>(mass >> 32);
  const uint32_t before = atomicAdd(&shared.bins_low[bin], low);
  high += before + low < before;  // the carry
  if (high != 0) atomicAdd(&shared.bins_high[bin], high);
}

// Finds the bin in which the running mass reaches target_of(total), into shared.bin, with the mass
// before it and its own.
template <class Target>
__device__ void find_bin(Shared& shared, const Target& target_of) {
  constexpr int kPerThread = kBins / kThreads;
  uint64_t masses[kPerThread], sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    const int bin = threadIdx.x * kPerThread + i;
    masses[i] = static_cast<uint64_t>(shared.bins_high[bin]) << 32 | shared.bins_low[bin];
    sum += masses[i];
  }
  auto [before, total] = block_prefix(sum, shared.sums);
  const uint64_t target = target_of(total);
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    if (before < target && target <= before + masses[i]) {
      shared.bin = threadIdx.x * kPerThread + i;
      shared.bin_before = before;
      shared.bin_mass = masses[i];
    }
    before += masses[i];
  }
  __syncthreads();
}

// The bin of a token in one pass, or -1 when it lies outside what the passes before chose.
// Pass 0: distance from the largest logit. Passes 1 to 3: bits of the rank, within chosen[0].
struct Bins {
  float largest;
  int32_t distance_bin = 0;  // chosen in pass 0
  uint32_t rank = 0;         // the bits chosen so far

  __device__ __forceinline__ int32_t distance(float logit) const {
    return static_cast<int32_t>(fminf((largest - logit) * kBinsPerUnit, kBins - 1));
  }
  __device__ __forceinline__ int32_t operator()(int pass, float logit, uint32_t token_rank) const {
    if (pass == 0) return distance(logit);
    if (distance(logit) != distance_bin) return -1;
    if (pass == 1) return static_cast<int32_t>(token_rank >> 21);
    if (pass == 2 ? token_rank >> 21 != rank >> 21 : token_rank >> 10 != rank >> 10) return -1;
    return static_cast<int32_t>(pass == 2 ? token_rank >> 10 & 2047 : token_rank & 1023);
  }
  __device__ __forceinline__ void choose(int pass, int32_t bin) {
    if (pass == 0) {
      distance_bin = bin;
    } else {
      rank |= static_cast<uint32_t>(bin) << (pass == 1 ? 21 : pass == 2 ? 10 : 0);
    }
  }
};

// The shortest prefix within `within` whose mass reaches target_of(its total): a target above 0 and
// not above the total. mass(logit): u64, the same for equal logits.
template <class Mass, class Target>
__device__ Cut cut_at(const Row& row, float largest, const Cut& within, Shared& shared,
                      const Mass& mass, const Target& target_of) {
  Bins bins{.largest = largest};
  uint64_t target = 0;
  for (int pass = 0; pass < 4; pass++) {
    for (int i = threadIdx.x; i < kBins; i += kThreads)
      shared.bins_low[i] = shared.bins_high[i] = 0;
    if (threadIdx.x == 0) shared.bin = 0;
    __syncthreads();
    row.for_each([&](int32_t id, float logit) {
      const uint32_t rank = rank_of(logit);
      const int32_t bin = bins(pass, logit, rank);
      if (bin < 0 || !within.keeps(rank, id)) return;
      const uint64_t token_mass = mass(logit);
      if (token_mass != 0) add_to_bin(shared, bin, token_mass);
    });
    __syncthreads();
    find_bin(shared, [&](uint64_t total) {
      if (pass == 0) target = target_of(total);
      return target;
    });
    bins.choose(pass, shared.bin);
    target -= shared.bin_before;
    __syncthreads();
  }
  // All tokens left are equally likely: so many of them are needed.
  const uint64_t each = max(mass(logit_of_rank(bins.rank)), uint64_t{1});
  const uint64_t needed = (target + each - 1) / each;
  if (needed >= shared.bin_mass / each)
    return {bins.rank, bins.rank == within.rank ? within.last_id : kNoToken};
  const auto counts = [&](int32_t id) -> uint64_t {
    const uint32_t rank = rank_of(row[id]);
    return rank == bins.rank && within.keeps(rank, id);
  };
  const int32_t last_id =
      first_beyond(row.vocab, shared, counts, [&](uint64_t) { return needed - 1; });
  return {bins.rank, last_id};
}

// Draws from what top-k, top-p and min-p keep.
__device__ int32_t draw(const Row& row, const Settings& settings, float largest, Shared& shared) {
  const Weight weight{largest, settings.temperature};
  Cut cut;
  if (settings.top_k > 0 && settings.top_k < row.vocab) {
    const auto one = [](float) -> uint64_t { return 1; };
    const auto target = [&](uint64_t) -> uint64_t { return settings.top_k; };
    cut = cut_at(row, largest, cut, shared, one, target);
  }
  if (settings.top_p < 1) {
    const double top_p = settings.top_p;
    const auto target = [top_p](uint64_t total) -> uint64_t {
      const double wanted = ceil(fmax(top_p, 0.0) * static_cast<double>(total));
      return min(max(static_cast<uint64_t>(wanted), uint64_t{1}), total);
    };
    cut = cut_at(row, largest, cut, shared, weight, target);
  }
  const auto kept = [&](int32_t id) -> uint64_t {
    const float logit = row[id];
    if (!cut.keeps(rank_of(logit), id)) return 0;
    return weight.real(logit) < settings.min_p ? 0 : weight(logit);
  };
  const double number = uniform(settings.seed, settings.counter);
  return first_beyond(row.vocab, shared, kept, [number](uint64_t total) -> uint64_t {
    const auto target = static_cast<uint64_t>(number * static_cast<double>(total));
    return total == 0 ? 0 : min(target, total - 1);
  });
}

// The `alternatives` largest logits in order: their prefix, gathered as it comes and then ranked.
template <class Logprob>
__device__ void list_alternatives(const SampleArgs& args, const Row& raw, float largest,
                                  Shared& shared, const Logprob& logprob) {
  const int32_t wanted = args.alternatives;
  const auto one = [](float) -> uint64_t { return 1; };
  const auto target = [wanted](uint64_t) -> uint64_t { return wanted; };
  const Cut cut = cut_at(raw, largest, Cut{}, shared, one, target);
  if (threadIdx.x == 0) shared.kept_count = 0;
  __syncthreads();
  raw.for_each([&](int32_t id, float logit) {
    if (!cut.keeps(rank_of(logit), id)) return;
    const int32_t at = atomicAdd(&shared.kept_count, 1);
    if (at < kMaxAlternatives) shared.kept[at] = sort_key(logit, id);
  });
  __syncthreads();
  if (static_cast<int32_t>(threadIdx.x) >= wanted) return;
  const uint64_t key = shared.kept[threadIdx.x];
  int32_t place = 0;
  for (int32_t i = 0; i < wanted; i++) place += shared.kept[i] < key;
  const auto id = static_cast<int32_t>(static_cast<uint32_t>(key));
  args.top_tokens[blockIdx.x][place] = id;
  args.top_logprobs[blockIdx.x][place] = logprob(id);
}

// What a row gets that cannot be sampled from: ids that exist, and NaN.
__device__ void give_up(const SampleArgs& args) {
  const float nan = __int_as_float(0x7fc00000);
  if (threadIdx.x == 0) {
    args.tokens[blockIdx.x] = 0;
    args.logprobs[blockIdx.x] = nan;
  }
  for (int32_t i = threadIdx.x; i < args.alternatives; i += kThreads) {
    args.top_tokens[blockIdx.x][i] = i;
    args.top_logprobs[blockIdx.x][i] = nan;
  }
}

__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleArgs args) {
  __shared__ Shared shared;
  launch_dependents();
  wait_for_prerequisites();
  const int64_t at = blockIdx.x;
  const Settings settings(args.settings[at], args.integers[at]);
  uint32_t* seen = args.seen.data == nullptr ? nullptr : args.seen[at];
  const Row raw{args.logits[at], nullptr, 1, args.vocab};
  const Row row{raw.logits, settings.penalty == 1 ? nullptr : seen, settings.penalty, args.vocab};

  float largest = -INFINITY;
  uint64_t best = UINT64_MAX;
  int bad = 0;
  raw.for_each([&](int32_t id, float logit) {
    bad |= !(logit < INFINITY);
    largest = fmaxf(largest, logit);
    best = min(best, sort_key(row.penalised(id, logit), id));
  });
  bad = __syncthreads_or(bad);
  largest = block_max(largest, shared.floats);
  best = ~block_max(~best, shared.sums);
  const float largest_penalised = logit_of_rank(static_cast<uint32_t>(best >> 32));
  if (bad || !isfinite(largest) || !isfinite(largest_penalised) || !settings.usable())
    return give_up(args);  // the whole block

  const Weight plain{largest, 1};
  uint64_t sum = 0;
  raw.for_each([&](int32_t, float logit) { sum += plain(logit); });
  sum = block_sum(sum, shared.sums);
  const double log_total = log(static_cast<double>(sum) / kWeightUnits);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(static_cast<double>(raw.logits[token]) - largest - log_total);
  };

  auto token = static_cast<int32_t>(static_cast<uint32_t>(best));
  if (settings.temperature > 0) token = draw(row, settings, largest_penalised, shared);
  __syncthreads();  // nobody reads `seen` any more
  if (threadIdx.x == 0) {
    args.tokens[at] = token;
    args.logprobs[at] = logprob(token);
    if (seen != nullptr) seen[token / 32] |= 1u << token % 32;
  }
  if (args.alternatives > 0) list_alternatives(args, raw, largest, shared, logprob);
}

}  // namespace

void launch(const SampleParams& params, CudaStream& stream) {
  const int64_t rows = params.logits.dim(0), vocab = params.logits.dim(1);
  if (rows == 0) return;
  const int64_t alternatives = params.top_tokens ? params.top_tokens.dim(1) : 0;
  loza::check(vocab > 0 && vocab <= kMaxVocab && alternatives <= kMaxAlternatives,
              "sample: cannot choose one token and ", alternatives, " alternatives of ", vocab,
              " on CUDA");
  const SampleArgs args{.tokens = params.tokens.as<int32_t>(),
                        .logprobs = params.logprobs.as<float>(),
                        .top_tokens = rows_of<int32_t>(params.top_tokens),
                        .top_logprobs = rows_of<float>(params.top_logprobs),
                        .logits = rows_of<const float>(params.logits),
                        .settings = rows_of<const float>(params.settings),
                        .integers = rows_of<const int32_t>(params.integers),
                        .seen = rows_of<uint32_t>(params.seen),
                        .vocab = static_cast<int32_t>(vocab),
                        .alternatives = static_cast<int32_t>(alternatives)};
  launch_kernel("sample", sample_kernel, {static_cast<unsigned>(rows), kThreads}, stream.handle(),
                args);
}

}  // namespace loza::cuda
