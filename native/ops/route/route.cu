// Chooses top_k experts a row: p = softmax | sigmoid of the logits, choice = p + bias, groups masked,
// ids = the largest choices, ties to the lower id. One warp a row; lane l has experts l, l + 32, ...
//
// The top_k-th largest of the lanes' own best choices bounds the top_k-th largest choice from below.
// Those not below it, about 16 for 12 of 768, are gathered and ranked by comparing each with all;
// where they are more than 32, as only ties make them, the choices are taken one after the other.
#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kMaxTopK = kWarpSize;  // lane i keeps the i-th choice
constexpr int kMaxExperts = 1024;

struct RouteArgs {
  Rows<int32_t> ids;         // [rows, top_k]
  Rows<float> weights;       // [rows, top_k]
  Rows<const float> logits;  // [rows, experts]
  const float* bias;         // [experts], or null
  int64_t rows;
  int experts, top_k, groups, top_groups;
  Scoring scoring;
  GroupScore group_score;
  bool normalize;
  float scale;
};

// Unsigned integers in the order of the floats. NaN counts as -inf, and -0, which no sum with a p is,
// lies below 0; the result is above 0, which stands for what cannot be chosen.
__device__ __forceinline__ uint32_t order_of(float choice) {
  const int32_t bits = __float_as_int(fmaxf(choice, -INFINITY));
  return static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
}

template <int kPerLane>
__device__ __forceinline__ float sum_of(const float (&values)[kPerLane]) {
  float sums[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; i++) sums[i] = values[i];
#pragma unroll
  for (int step = 1; step < kPerLane; step *= 2)  // as a tree: fewer roundings
#pragma unroll
    for (int i = 0; i + step < kPerLane; i += 2 * step) sums[i] += sums[i + step];
  return sums[0];
}

// Logits become p; experts that do not exist have -inf.
template <int kPerLane>
__device__ __forceinline__ void score(Scoring scoring, float (&p)[kPerLane]) {
  if (scoring == Scoring::kSigmoid) {
#pragma unroll
    for (int i = 0; i < kPerLane; i++) p[i] = 1.0f / (1.0f + expf(-p[i]));
    return;
  }
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; i++) largest = fmaxf(largest, p[i]);
  largest = warp_max(largest);
#pragma unroll
  for (int i = 0; i < kPerLane; i++) p[i] = expf(p[i] - largest);
  const auto factor = static_cast<float>(1 / warp_sum(static_cast<double>(sum_of(p))));
#pragma unroll
  for (int i = 0; i < kPerLane; i++) p[i] = __fmul_rn(p[i], factor);
}

// The order of a group's score. `choices`: the group's, as order_of made them.
__device__ __forceinline__ uint32_t score_of_group(GroupScore kind, const uint32_t* choices,
                                                   int size) {
  uint32_t first = 0, second = 0;
  for (int i = 0; i < size; i++) {
    second = max(second, min(choices[i], first));
    first = max(first, choices[i]);
  }
  if (kind == GroupScore::kMax) return first;
  const auto value = [](uint32_t order) {
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
  };
  return order_of(value(first) + value(second));
}

// Masks the choices of every group but the best ones. `choices` and `scores`: the warp's shared
// memory, an entry an expert.
template <int kPerLane>
__device__ void mask_groups(const RouteArgs& args, uint32_t (&choice)[kPerLane], uint32_t* choices,
                            uint32_t* scores) {
  const int lane = threadIdx.x, size = args.experts / args.groups;
#pragma unroll
  for (int i = 0; i < kPerLane; i++) choices[lane + i * kWarpSize] = choice[i];
  __syncwarp();
  for (int group = lane; group < args.groups; group += kWarpSize)
    scores[group] = score_of_group(args.group_score, choices + group * size, size);
  __syncwarp();
  const uint32_t masked = order_of(args.group_score == GroupScore::kMax ? 0.0f : -INFINITY);
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const int expert = lane + i * kWarpSize;
    if (expert >= args.experts) continue;
    const int own = expert / size;
    int better = 0;
    for (int group = 0; group < args.groups; group++)
      better += scores[group] > scores[own] || (scores[group] == scores[own] && group < own);
    if (better >= args.top_groups) choice[i] = masked;
  }
}

// A choice in the warp's shared memory.
struct Candidate {
  uint32_t order;
  int id;
  float p;
};

// Lane i gets the i-th best choice. Takes what it chooses out of `choice`.
template <int kPerLane>
__device__ Candidate choose_in_turn(int top_k, uint32_t (&choice)[kPerLane],
                                    const float (&p)[kPerLane], Candidate* best_of_warp) {
  const int lane = threadIdx.x;
  for (int k = 0; k < top_k; k++) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; i++) best = max(best, choice[i]);
    best = __reduce_max_sync(kFullWarp, best);
    unsigned id = UINT32_MAX;
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; i--)
      if (choice[i] == best) id = lane + i * kWarpSize;
    id = __reduce_min_sync(kFullWarp, id);
#pragma unroll
    for (int i = 0; i < kPerLane; i++)
      if (id == lane + i * kWarpSize) {
        best_of_warp[k] = {best, static_cast<int>(id), p[i]};
        choice[i] = 0;
      }
  }
  __syncwarp();
  return best_of_warp[lane];
}

// The values of the lanes, the largest in lane 0: a bitonic sort.
__device__ __forceinline__ uint32_t sort_lanes(uint32_t value) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int run = 2; run <= kWarpSize; run *= 2)
#pragma unroll
    for (int step = run / 2; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(kFullWarp, value, step);
      const bool keeps_larger = ((lane & run) == 0) == ((lane & step) == 0);
      value = keeps_larger ? max(value, other) : min(value, other);
    }
  return value;
}

// How many of the first `count` lanes have a better value, or the same and a lower lane.
__device__ __forceinline__ int rank_among(uint32_t value, int count) {
  int rank = 0;
#pragma unroll 4
  for (int other = 0; other < count; other++) {
    const uint32_t theirs = __shfl_sync(kFullWarp, value, other);
    rank += theirs > value || (theirs == value && other < static_cast<int>(threadIdx.x));
  }
  return rank;
}

// The same, by candidates. `memory`: two entries a lane of the warp's shared memory.
template <int kPerLane>
__device__ Candidate choose(int top_k, uint32_t (&choice)[kPerLane], const float (&p)[kPerLane],
                            Candidate* memory) {
  const int lane = threadIdx.x;
  Candidate* sorted = memory + kWarpSize;
  uint32_t best = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; i++) best = max(best, choice[i]);
  const uint32_t bound = max(1u, __shfl_sync(kFullWarp, sort_lanes(best), top_k - 1));
  int count = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const bool is_candidate = choice[i] >= bound;
    const unsigned candidates = __ballot_sync(kFullWarp, is_candidate);
    if (candidates == 0) continue;
    const int at = count + __popc(candidates & ((1u << lane) - 1));
    if (is_candidate && at < kWarpSize) memory[at] = {choice[i], lane + i * kWarpSize, p[i]};
    count += __popc(candidates);
  }
  if (count > kWarpSize) return choose_in_turn(top_k, choice, p, sorted);
  __syncwarp();
  const Candidate own = lane < count ? memory[lane] : Candidate{0, 0, 0};
  // Ids ascend from entry to entry, so ties go to the lower lane.
  const int rank = rank_among(own.order, count);
  if (lane < count) sorted[rank] = own;
  __syncwarp();
  return sorted[lane];
}

template <int kPerLane, bool kGroups>
__global__ void __launch_bounds__(kRowsPerBlock* kWarpSize) route_kernel(RouteArgs args) {
  constexpr int kShared = kGroups ? kPerLane * kWarpSize : 1;
  __shared__ uint32_t choices[kRowsPerBlock][kShared];
  __shared__ uint32_t scores[kRowsPerBlock][kShared];
  __shared__ Candidate candidates[kRowsPerBlock][2 * kWarpSize];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.y;
  launch_dependents();
  if (row >= args.rows) return;  // the whole warp
  const int lane = threadIdx.x;
  float bias[kPerLane], p[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const int expert = lane + i * kWarpSize;
    bias[i] = args.bias != nullptr && expert < args.experts ? args.bias[expert] : 0.0f;
  }
  wait_for_prerequisites();
  const float* logits = args.logits[row];
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const int expert = lane + i * kWarpSize;
    p[i] = expert < args.experts ? logits[expert] : -INFINITY;
  }
  score(args.scoring, p);
  uint32_t choice[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; i++)
    choice[i] = lane + i * kWarpSize < args.experts ? order_of(p[i] + bias[i]) : 0;
  if constexpr (kGroups) mask_groups(args, choice, choices[threadIdx.y], scores[threadIdx.y]);

  const Candidate chosen = choose(args.top_k, choice, p, candidates[threadIdx.y]);
  const bool active = lane < args.top_k;
  const float weight = active ? chosen.p : 0.0f;
  float sum = 0;
  for (int i = 0; i < args.top_k; i++) sum += __shfl_sync(kFullWarp, weight, i);
  const float factor = args.normalize ? args.scale / (sum + 1e-20f) : args.scale;
  if (!active) return;
  args.ids[row][lane] = chosen.id;
  args.weights[row][lane] = weight * factor;
}

template <int kPerLane>
void launch_sized(const RouteArgs& args, CudaStream& stream) {
  const Grid grid{static_cast<unsigned>(ceil_div(args.rows, kRowsPerBlock)),
                  {kWarpSize, kRowsPerBlock}};
  const auto kernel =
      args.groups > 1 ? route_kernel<kPerLane, true> : route_kernel<kPerLane, false>;
  launch_kernel("route", kernel, grid, stream.handle(), args);
}

}  // namespace

void launch(const RouteParams& params, CudaStream& stream) {
  const int64_t rows = params.logits.dim(0), experts = params.logits.dim(1);
  const int64_t top_k = params.ids.dim(1);
  loza::check(experts <= kMaxExperts && top_k <= kMaxTopK, "route: cannot choose ", top_k, " of ",
              experts, " experts on CUDA");
  if (rows == 0) return;
  const RouteArgs args{.ids = rows_of<int32_t>(params.ids),
                       .weights = rows_of<float>(params.weights),
                       .logits = rows_of<const float>(params.logits),
                       .bias = params.bias.as<const float>(),
                       .rows = rows,
                       .experts = static_cast<int>(experts),
                       .top_k = static_cast<int>(top_k),
                       .groups = params.groups,
                       .top_groups = params.top_groups,
                       .scoring = params.scoring,
                       .group_score = params.group_score,
                       .normalize = params.normalize,
                       .scale = params.scale};
  if (experts <= 256) {
    launch_sized<8>(args, stream);
  } else if (experts <= 768) {
    launch_sized<24>(args, stream);
  } else {
    launch_sized<32>(args, stream);
  }
}

}  // namespace loza::cuda
