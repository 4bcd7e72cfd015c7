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
// 8 pieces of the right slice, of 8 pieces of the right piece, and so on.
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
    return weight.real(logit) < settings.min_p ? 0 : weight(logit);
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

__device__ __forceinline__ void load_slice(const Slice& slice, const float* row) {
  const float* from = row + slice.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0;
  const int32_t vectors = aligned ? slice.count / 4 : 0;
#pragma unroll 8
  for (int32_t i = threadIdx.x; i < vectors; i += kSampleThreads)
    reinterpret_cast<float4*>(slice.logits)[i] = reinterpret_cast<const float4*>(from)[i];
  for (int32_t i = 4 * vectors + threadIdx.x; i < slice.count; i += kSampleThreads)
    slice.logits[i] = from[i];
  __syncthreads();
}

// What a row is, raw and after the penalty.
struct Extremes {
  float largest, largest_penalised;
  int32_t best;  // the id of largest_penalised
  bool usable;
};

// Penalty of tokens that were seen; `seen` null: none.
struct Penalty {
  const uint32_t* seen;
  float factor;

  __device__ __forceinline__ float operator()(int32_t id, float logit) const {
    if (seen == nullptr || (seen[id / 32] >> (id % 32) & 1u) == 0) return logit;
    return logit > 0 ? logit / factor : logit * factor;
  }
};

__device__ Extremes find_extremes(const Slice& slice, const Penalty& penalty, RowCluster& cluster,
                                  SampleShared& shared) {
  uint64_t raw = UINT64_MAX, best = UINT64_MAX;
  int bad = 0;
  slice.for_each([&](int32_t id, float logit) {
    bad |= !(logit < INFINITY);
    raw = min(raw, sort_key(logit, id));
    best = min(best, sort_key(penalty(id, logit), id));
  });
  bad = __syncthreads_or(bad);
  raw = ~block_max(~raw, shared.sums);
  best = ~block_max(~best, shared.sums);
  const uint64_t* own = cluster.exchange({raw, best, static_cast<uint64_t>(bad)});
  uint64_t all_raw = UINT64_MAX, all_best = UINT64_MAX, all_bad = 0;
  for (int rank = 0; rank < cluster.size(); rank++) {
    all_raw = min(all_raw, cluster.in(own[0], rank));
    all_best = min(all_best, cluster.in(own[1], rank));
    all_bad |= cluster.in(own[2], rank);
  }
  const float largest = logit_of_rank(static_cast<uint32_t>(all_raw >> 32));
  const float penalised = logit_of_rank(static_cast<uint32_t>(all_best >> 32));
  return {.largest = largest,
          .largest_penalised = penalised,
          .best = static_cast<int32_t>(static_cast<uint32_t>(all_best)),
          .usable = all_bad == 0 && isfinite(largest) && isfinite(penalised)};
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
  const Penalty penalty{settings.penalty == 1 ? nullptr : seen, settings.penalty};
  const float* row = args.logits[at];
  const int32_t begin = min(cluster.rank() * args.slice, args.vocab);
  const Slice slice{logits, begin, min(args.slice, args.vocab - begin), args.vocab};
  load_slice(slice, row);
  const Extremes extremes = find_extremes(slice, penalty, cluster, shared);
  const bool usable = extremes.usable && settings.usable();

  double log_total = 0;
  int32_t token = extremes.best;
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(row[id]) - extremes.largest - log_total);
  };
  if (usable) {
    const Weight plain{extremes.largest, 1};
    uint64_t sum = 0;
    slice.for_each([&](int32_t, float logit) { sum += plain(logit); });
    sum = cluster.sum(block_sum(sum, shared.sums));
    log_total = log(static_cast<double>(sum) / kWeightUnits);
    if (args.alternatives > 0)
      list_alternatives(args, slice, cluster, at, extremes.largest, shared, logprob);
    if (settings.temperature > 0) {
      if (penalty.seen != nullptr) {
        slice.for_each([&](int32_t id, float logit) { logits[id - begin] = penalty(id, logit); });
        __syncthreads();
      }
      token = draw(slice, cluster, settings, extremes.largest_penalised, shared);
    }
  }
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
