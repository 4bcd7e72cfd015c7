// Chooses one token a row without sorting and without leaving the device. A cluster of CTAs holds the
// row in its shared memory (sample_row.cuh): the logits are read once.
//
// Weights exp((logit - largest) / temperature) are integers, in units of 2^-44: sums of them do not
// depend on their order, so the result repeats, and errors are far below those of exp itself.
// Top-k and top-p both keep a shortest prefix of the tokens sorted by logit (ties to the lower id),
// the one whose mass (tokens, or weight) reaches a target. Its end, a `Cut`, is found by refinement:
// a histogram of mass over the distance from the largest logit, then of the one bin that matters
// over 11, 11 and 10 bits of the logit. The draw, and the cut between equal logits, look for the
// first token in ascending id at which a running mass exceeds a target: sums of the slices, then of
// 16 pieces of the right slice, of 16 pieces of the right piece, and so on.
//
// A kernel cannot fail the stream. What the contract refuses (NaN or +inf among the logits, nothing
// but -inf, impossible settings) gives token 0 with log-probability NaN, and leaves `seen` alone.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "ops/sample/sample_row.cuh"
#include "ops/sample/uniform.h"

namespace loza::cuda {

namespace {

// A CTA takes at least so much of a row, and more where eight are not enough.
constexpr int32_t kMinSlice = 4096;
constexpr float kBinsPerUnit = 32;  // of distance between logits
constexpr int kMaxVocab = 1 << 18;  // so that sums of weights fit into 64 bits
constexpr float kWeightUnits = 0x1p44f;
constexpr int32_t kNoToken = INT32_MAX;
// Of a slice, beside SampleShared.
constexpr size_t kMaxSliceBytes = kMaxVocab / kMaxCluster * sizeof(float);

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
  int32_t cluster, slice;  // CTAs a row, logits each; a multiple of 4
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

// The weight of a logit; the largest logit weighs one.
struct Weight {
  float largest, inverse_temperature;

  // Finite, so that the largest logit weighs one at any temperature.
  __device__ Weight(float largest, float temperature)
      : largest(largest), inverse_temperature(fminf(1 / temperature, 1e37f)) {}

  __device__ __forceinline__ float real(float logit) const {
    return expf((logit - largest) * inverse_temperature);
  }
  __device__ __forceinline__ static uint64_t units(float weight) {
    return weight > 0 ? __float2ull_rn(weight * kWeightUnits) : 0;  // NaN is no weight
  }
  __device__ __forceinline__ uint64_t operator()(float logit) const { return units(real(logit)); }
};

// A prefix of the sorted tokens: ranks below `rank`, and of those at it the ids up to `last_id`.
struct Cut {
  uint32_t rank = UINT32_MAX;
  int32_t last_id = kNoToken;

  __device__ __forceinline__ bool keeps(uint32_t token_rank, int32_t id) const {
    return token_rank < rank || (token_rank == rank && id <= last_id);
  }
};

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
__device__ Cut cut_at(const Slice& slice, RowCluster& cluster, float largest, const Cut& within,
                      SampleShared& shared, const Mass& mass, const Target& target_of) {
  Bins bins{.largest = largest};
  uint64_t target = 0;
#pragma unroll 1
  for (int pass = 0; pass < 4; pass++) {
    for (int i = threadIdx.x; i < kBins; i += kSampleThreads)
      shared.bins_low[i] = shared.bins_high[i] = 0;
    if (threadIdx.x == 0) shared.bin = 0;
    __syncthreads();
    slice.for_each([&](int32_t id, float logit) {
      const uint32_t rank = rank_of(logit);
      const int32_t bin = bins(pass, logit, rank);
      if (bin < 0 || !within.keeps(rank, id)) return;
      const uint64_t token_mass = mass(logit);
      if (token_mass != 0) add_to_bin(shared, bin, token_mass);
    });
    cluster.sync();
    find_bin(shared, cluster, [&](uint64_t total) {
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
  const auto counts = [&](int32_t id, float logit) -> uint64_t {
    const uint32_t rank = rank_of(logit);
    return rank == bins.rank && within.keeps(rank, id);
  };
  const int32_t last_id =
      first_beyond(slice, cluster, shared, counts, [&](uint64_t) { return needed - 1; });
  return {bins.rank, last_id};
}

// Draws from what top-k, top-p and min-p keep. `slice`: after the penalty.
__device__ int32_t draw(const Slice& slice, RowCluster& cluster, const Settings& settings,
                        float largest, SampleShared& shared) {
  const Weight weight{largest, settings.temperature};
  Cut cut;
  if (settings.top_k > 0 && settings.top_k < slice.vocab) {
    const auto one = [](float) -> uint64_t { return 1; };
    const auto target = [&](uint64_t) -> uint64_t { return settings.top_k; };
    cut = cut_at(slice, cluster, largest, cut, shared, one, target);
  }
  if (settings.top_p < 1) {
    const double top_p = settings.top_p;
    const auto target = [top_p](uint64_t total) -> uint64_t {
      const double wanted = ceil(fmax(top_p, 0.0) * static_cast<double>(total));
      return min(max(static_cast<uint64_t>(wanted), uint64_t{1}), total);
    };
    cut = cut_at(slice, cluster, largest, cut, shared, weight, target);
  }
  const auto kept = [&](int32_t id, float logit) -> uint64_t {
    if (!cut.keeps(rank_of(logit), id)) return 0;
    const float real = weight.real(logit);
    return real < settings.min_p ? 0 : Weight::units(real);
  };
  const double number = uniform(settings.seed, settings.counter);
  return first_beyond(slice, cluster, shared, kept, [number](uint64_t total) -> uint64_t {
    const auto target = static_cast<uint64_t>(number * static_cast<double>(total));
    return total == 0 ? 0 : min(target, total - 1);
  });
}

// The `alternatives` largest logits in order: their prefix, gathered by the first CTA as it comes and
// then ranked.
template <class Logprob>
__device__ void list_alternatives(const SampleArgs& args, const Slice& raw, RowCluster& cluster,
                                  int64_t at, float largest, SampleShared& shared,
                                  const Logprob& logprob) {
  const int32_t wanted = args.alternatives;
  const auto one = [](float) -> uint64_t { return 1; };
  const auto target = [wanted](uint64_t) -> uint64_t { return wanted; };
  if (threadIdx.x == 0) shared.kept_count = 0;  // cut_at's barriers come before its use
  const Cut cut = cut_at(raw, cluster, largest, Cut{}, shared, one, target);
  SampleShared& first = cluster.in(shared, 0);
  raw.for_each([&](int32_t id, float logit) {
    if (!cut.keeps(rank_of(logit), id)) return;
    const int32_t place = atomicAdd(&first.kept_count, 1);
    if (place < kMaxAlternatives) first.kept[place] = sort_key(logit, id);
  });
  cluster.sync();
  if (cluster.rank() != 0 || static_cast<int32_t>(threadIdx.x) >= wanted) return;
  const uint64_t key = shared.kept[threadIdx.x];
  int32_t place = 0;
  for (int32_t i = 0; i < wanted; i++) place += shared.kept[i] < key;
  const auto id = static_cast<int32_t>(static_cast<uint32_t>(key));
  args.top_tokens[at][place] = id;
  args.top_logprobs[at][place] = logprob(id);
}

// What a row gets that cannot be sampled from: ids that exist, and NaN.
__device__ void give_up(const SampleArgs& args, int64_t at) {
  const float nan = __int_as_float(0x7fc00000);
  if (threadIdx.x == 0) {
    args.tokens[at] = 0;
    args.logprobs[at] = nan;
  }
  for (int32_t i = threadIdx.x; i < args.alternatives; i += kSampleThreads) {
    args.top_tokens[at][i] = i;
    args.top_logprobs[at][i] = nan;
  }
}

// The slice in whole vectors, -inf past its end.
__device__ __forceinline__ void load_slice(const Slice& slice, const float* row) {
  const float* from = row + slice.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0;
  const int32_t vectors = aligned ? slice.count / 4 : 0, end = slice.vectors() * 4;
#pragma unroll 8
  for (int32_t i = threadIdx.x; i < vectors; i += kSampleThreads)
    reinterpret_cast<float4*>(slice.logits)[i] = reinterpret_cast<const float4*>(from)[i];
  for (int32_t i = 4 * vectors + threadIdx.x; i < end; i += kSampleThreads)
    slice.logits[i] = i < slice.count ? from[i] : -INFINITY;
  __syncthreads();
}

// The largest logit of the row; NaN where one is NaN or +inf, or all are -inf.
__device__ float find_largest(const Slice& slice, RowCluster& cluster, SampleShared& shared) {
  float largest = -INFINITY;
  int bad = 0;
  slice.for_each_vector([&](int32_t, const float4& four) {
    largest = fmaxf(fmaxf(largest, four.x), fmaxf(four.y, fmaxf(four.z, four.w)));
    bad |= !(four.x < INFINITY && four.y < INFINITY && four.z < INFINITY && four.w < INFINITY);
  });
  bad = __syncthreads_or(bad);
  const uint32_t rank = rank_of(bad ? INFINITY : largest);
  const uint64_t own = ~block_max(~static_cast<uint64_t>(rank), shared.sums);
  const uint64_t* ranks = cluster.exchange({own});
  uint64_t first = UINT64_MAX;
  for (int other = 0; other < cluster.size(); other++)
    first = min(first, cluster.in(ranks[0], other));
  largest = logit_of_rank(static_cast<uint32_t>(first));
  return isfinite(largest) ? largest : __int_as_float(0x7fc00000);
}

// The lowest id whose logit is the largest, and log(sum of exp(logit - largest)).
struct Top {
  int32_t id;
  double log_total;
};

// Four weights at a time are added in fp32, which does not depend on how the row is cut.
__device__ Top find_top(const Slice& slice, float largest, RowCluster& cluster,
                        SampleShared& shared) {
  uint64_t sum = 0;
  uint32_t id = UINT32_MAX;
  slice.for_each_vector([&](int32_t first, const float4& four) {
    const float low = expf(four.x - largest) + expf(four.y - largest);
    const float high = expf(four.z - largest) + expf(four.w - largest);
    sum += Weight::units(low + high);
    if (fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)) != largest) return;
    const int at = four.x == largest ? 0 : four.y == largest ? 1 : four.z == largest ? 2 : 3;
    id = min(id, static_cast<uint32_t>(first + at));
  });
  sum = block_sum(sum, shared.sums);
  const uint64_t own_id = ~block_max(~static_cast<uint64_t>(id), shared.sums);
  const uint64_t* own = cluster.exchange({sum, own_id});
  uint64_t total = 0, lowest = UINT64_MAX;
  for (int other = 0; other < cluster.size(); other++) {
    total += cluster.in(own[0], other);
    lowest = min(lowest, cluster.in(own[1], other));
  }
  return {.id = static_cast<int32_t>(lowest),
          .log_total = log(static_cast<double>(total) / kWeightUnits)};
}

// The repetition penalty, in place.
__device__ void penalise(const Slice& slice, const uint32_t* seen, float penalty) {
  slice.for_each([&](int32_t id, float logit) {
    if ((seen[id / 32] >> (id % 32) & 1u) == 0) return;
    slice.logits[id - slice.begin] = logit > 0 ? logit / penalty : logit * penalty;
  });
  __syncthreads();
}

__global__ void __launch_bounds__(kSampleThreads, 2) sample_kernel(SampleArgs args) {
  extern __shared__ __align__(16) float logits[];  // [slice]
  __shared__ SampleShared shared;
  launch_dependents();
  wait_for_prerequisites();
  RowCluster cluster(shared, args.cluster);
  const int64_t at = blockIdx.x / static_cast<unsigned>(args.cluster);
  const Settings settings(args.settings[at], args.integers[at]);
  uint32_t* seen = args.seen.data == nullptr ? nullptr : args.seen[at];
  const float* row = args.logits[at];
  const int32_t begin = min(cluster.rank() * args.slice, args.vocab);
  const Slice slice{logits, begin, min(args.slice, args.vocab - begin), args.vocab};
  load_slice(slice, row);

  const float largest = find_largest(slice, cluster, shared);
  bool usable = !isnan(largest) && settings.usable();
  Top top{};
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(row[id]) - largest - top.log_total);
  };
  if (usable) {
    top = find_top(slice, largest, cluster, shared);
    if (args.alternatives > 0)
      list_alternatives(args, slice, cluster, at, largest, shared, logprob);
  }
  int32_t token = top.id;
  float highest = largest;  // after the penalty
  if (usable && seen != nullptr && settings.penalty != 1) {
    penalise(slice, seen, settings.penalty);
    highest = find_largest(slice, cluster, shared);
    usable = !isnan(highest);
    if (usable && settings.temperature == 0) token = find_top(slice, highest, cluster, shared).id;
  }
  if (usable && settings.temperature > 0) token = draw(slice, cluster, settings, highest, shared);
  cluster.sync();  // nobody reads `seen` or another CTA's memory any more
  if (cluster.rank() != 0) return;
  if (!usable) return give_up(args, at);
  if (threadIdx.x != 0) return;
  args.tokens[at] = token;
  args.logprobs[at] = logprob(token);
  if (seen != nullptr) seen[token / 32] |= 1u << token % 32;
}

}  // namespace

void launch(const SampleParams& params, CudaStream& stream) {
  const int64_t rows = params.logits.dim(0), vocab = params.logits.dim(1);
  if (rows == 0) return;
  const int64_t alternatives = params.top_tokens ? params.top_tokens.dim(1) : 0;
  loza::check(vocab > 0 && vocab <= kMaxVocab && alternatives <= kMaxAlternatives,
              "sample: cannot choose one token and ", alternatives, " alternatives of ", vocab,
              " on CUDA");
  const int64_t cluster = vocab <= kMinSlice ? 1 : kMaxCluster;
  const int64_t slice = ceil_div(vocab, cluster * 4) * 4;
  const SampleArgs args{.tokens = params.tokens.as<int32_t>(),
                        .logprobs = params.logprobs.as<float>(),
                        .top_tokens = rows_of<int32_t>(params.top_tokens),
                        .top_logprobs = rows_of<float>(params.top_logprobs),
                        .logits = rows_of<const float>(params.logits),
                        .settings = rows_of<const float>(params.settings),
                        .integers = rows_of<const int32_t>(params.integers),
                        .seen = rows_of<uint32_t>(params.seen),
                        .vocab = static_cast<int32_t>(vocab),
                        .alternatives = static_cast<int32_t>(alternatives),
                        .cluster = static_cast<int32_t>(cluster),
                        .slice = static_cast<int32_t>(slice)};
  check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kMaxSliceBytes)),
        "sample");
  launch_kernel("sample", sample_kernel,
                {.blocks = static_cast<unsigned>(rows * cluster),
                 .threads = kSampleThreads,
                 .shared_bytes = slice * sizeof(float),
                 .cluster = static_cast<unsigned>(cluster)},
                stream.handle(), args);
}

}  // namespace loza::cuda
