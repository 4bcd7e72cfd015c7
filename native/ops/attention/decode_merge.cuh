// Absorbed attention with Hopper's matrix instructions: rows that see nothing, and the kernel that
// merges the partial results of units that several CTAs had parts of.
#pragma once

#include "cuda/launch.h"
#include "ops/attention/decode_values.cuh"

namespace loza::cuda::attention {

// Rows that see nothing: padding becomes zeros, rows of no sequence NaN. By the values warpgroups,
// which have to wait anyway.
template <class Traits>
__device__ void store_nothing(const DecodeProblem& problem, int warp) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int begin = problem.query_starts[0];
  const int end = problem.query_starts[problem.sequences * problem.starts_step];
  const int step = static_cast<int>(gridDim.x) * 8;
  for (int row = static_cast<int>(blockIdx.x) * 8 + warp; row < problem.rows; row += step) {
    const bool padding = problem.positions[row * problem.positions_step] < 0;
    if (!padding && row >= begin && row < end) continue;
    const int first = row * problem.heads;
    const bf16 value = __float2bfloat16(padding ? 0.0f : not_a_number());
    for (int i = lane; i < problem.heads * Traits::kLatent; i += kLanes)
      problem.out[int64_t{first} * Traits::kLatent + i] = value;
    for (int head = lane; head < problem.heads; head += kLanes) {
      if (problem.lse != nullptr)
        problem.lse[first + head] = padding ? negative_infinity() : not_a_number();
    }
  }
}

constexpr int kMergeWarps = 8;  // of a CTA

// Merges the partial results of one (row, head) and 256 / kRuns latent columns: by a warp, whose lanes
// take kRuns runs of the splits, or by kSplitWarps, that divide them further. Short code, because it runs
// cold, few registers and little shared memory, so that there is room for it beside an attention CTA,
// one of this call or of the next.
template <class Traits, int kRuns, int kSplitWarps>
__global__ void __launch_bounds__(kMergeWarps* kLanes, 4)
    merge_kernel(const __grid_constant__ DecodeProblem problem,
                 const __grid_constant__ DecodeScratch scratch, const Splits* all_splits) {
  constexpr int kBatch = 5;  // sums under way at a time
  constexpr int kRunLanes = kLanes / kRuns, kTasks = Traits::kLatent / (kRunLanes * 8);
  constexpr int kAllRuns = kRuns * kSplitWarps;
  static_assert(kSplitWarps == 1 || kSplitWarps == kMergeWarps);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int task = (static_cast<int>(blockIdx.x) * kMergeWarps + warp) / kSplitWarps;
  const int flat = task / kTasks, column = (task % kTasks * kRunLanes + lane % kRunLanes) * 8;
  launch_dependents();
  if (flat >= problem.rows * problem.heads) return wait_for_prerequisites();
  const int4 found = __ldcg(reinterpret_cast<const int4*>(all_splits + flat));  // of the plan
  const Splits splits{found.x, found.y, found.z, found.w};
  wait_for_prerequisites();
  if (splits.count <= 1) return;
  const auto place_of = [&](int split) { return scratch.place(splits.row, splits.slot(split)); };
  const auto stats_of = [&](int split) {
    const float2 stats = __ldcg(reinterpret_cast<const float2*>(scratch.stats + place_of(split)));
    return Stats{stats.x, stats.y};
  };
  const int run = (splits.count + kAllRuns - 1) / kAllRuns;
  const int first = (warp % kSplitWarps * kRuns + lane / kRunLanes) * run;
  const int end = min(splits.count, first + run);
  float best = negative_infinity(), total = 0, sum[8]{};
  for (int s = lane; s < splits.count; s += kLanes) best = fmaxf(best, stats_of(s).highest);
#pragma unroll 1
  for (int begin = first; begin < first + run; begin += kBatch) {
    uint4 own[kBatch];
    float highest[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (begin + i >= end) continue;
      const uint16_t* from = scratch.sums + place_of(begin + i) * Traits::kLatent + column;
      own[i] = __ldcg(reinterpret_cast<const uint4*>(from));
      highest[i] = stats_of(begin + i).highest;
    }
    if (begin == first) {  // while the first batch is on its way
      best = warp_max(best);
      if (best == negative_infinity()) return;  // padding
      for (int s = lane; s < splits.count; s += kLanes) {
        const Stats part = stats_of(s);
        total += exp2_fast(part.highest - best) * part.total;
      }
      total = warp_sum(total);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (begin + i < end) add_weighted(sum, own[i], exp2_fast(highest[i] - best));
  }
#pragma unroll
  for (int offset = kRunLanes; offset < kLanes; offset *= 2)
#pragma unroll
    for (float& value : sum) value += __shfl_xor_sync(kFullWarp, value, offset);
  if constexpr (kSplitWarps > 1) {
    __shared__ float exchange[kMergeWarps][8][kRunLanes];
    if (lane < kRunLanes)
#pragma unroll
      for (int c = 0; c < 8; c++) exchange[warp][c][lane] = sum[c];
    __syncthreads();
    if (warp % kSplitWarps > 0 || lane >= kRunLanes) return;
    for (int w = 1; w < kSplitWarps; w++)
#pragma unroll
      for (int c = 0; c < 8; c++) sum[c] += exchange[warp + w][c][lane];
  }
  if (lane < kRunLanes)
    *reinterpret_cast<uint4*>(problem.out + int64_t{flat} * Traits::kLatent + column) =
        pack_scaled(sum, 1 / total);
  if (problem.lse != nullptr && task % kTasks == 0 && lane == 0)
    problem.lse[flat] = log_sum(best, total);
}

template <class Traits, int kRuns, int kSplitWarps>
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, const Splits* splits,
                  cudaStream_t stream) {
  const auto kernel = merge_kernel<Traits, kRuns, kSplitWarps>;
  // As the attention kernel has it: else an SM takes CTAs of one kernel when those of the other are gone.
  static const cudaError_t divided = cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  check(divided, "cudaFuncSetAttribute");
  const int warps = problem.rows * problem.heads * 2 * kRuns * kSplitWarps;
  const Grid grid{dim3(static_cast<unsigned>((warps + kMergeWarps - 1) / kMergeWarps)),
                  dim3(kMergeWarps * kLanes)};
  launch_kernel("attention_decode: merge", kernel, grid, stream, problem, scratch, splits);
}

template <class Traits>
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, const Splits* splits,
                  int ctas, cudaStream_t stream) {
  const int splits_of_row = ctas * Traits::kRows / (problem.rows * problem.heads);  // about
  if (splits_of_row > 48)
    launch_merge<Traits, 2, kMergeWarps>(problem, scratch, splits, stream);
  else if (splits_of_row > 12)
    launch_merge<Traits, 1, kMergeWarps>(problem, scratch, splits, stream);
  else
    launch_merge<Traits, 1, 1>(problem, scratch, splits, stream);
}

}  // namespace loza::cuda::attention
