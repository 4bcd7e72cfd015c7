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

constexpr int kMergeThreads = 256;

// Merges the partial results of one (row, head) and 256 / kRuns latent columns, by a warp, whose lanes
// take kRuns runs of the splits. Short code, because it runs cold; few registers and no shared memory, so
// that there is room for it beside an attention CTA, one of this call or of the next.
template <class Traits, int kRuns>
__global__ void __launch_bounds__(kMergeThreads, 4)
    merge_kernel(const __grid_constant__ DecodeProblem problem,
                 const __grid_constant__ DecodeScratch scratch, const Splits* all_splits) {
  constexpr int kBatch = 6;  // sums under way at a time
  constexpr int kRunLanes = kLanes / kRuns, kTasks = Traits::kLatent / (kRunLanes * 8);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int task = static_cast<int>((blockIdx.x * kMergeThreads + threadIdx.x) / kLanes);
  const int flat = task / kTasks, column = (task % kTasks * kRunLanes + lane % kRunLanes) * 8;
  launch_dependents();
  if (flat >= problem.rows * problem.heads) return wait_for_prerequisites();
  const int4 found = __ldcg(reinterpret_cast<const int4*>(all_splits + flat));  // of the plan
  const Splits splits{found.x, found.y, found.z, found.w};
  wait_for_prerequisites();
  if (splits.count <= 1) return;
  const Stats* stats = scratch.stats + splits.row;
  const uint16_t* sums = scratch.sums + splits.row * Traits::kLatent + column;
  const int run = (splits.count + kRuns - 1) / kRuns;
  const int first = lane / kRunLanes * run, end = min(splits.count, first + run);
  float best = negative_infinity(), total = 0, sum[8]{};
  for (int s = lane; s < splits.count; s += kLanes)
    best = fmaxf(best, stats[splits.slot(s) * Traits::kRows].highest);
#pragma unroll 1
  for (int begin = 0; begin < run; begin += kBatch) {
    uint4 own[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (first + begin + i < end)
        own[i] = *reinterpret_cast<const uint4*>(sums + int64_t{splits.slot(first + begin + i)} *
                                                            Traits::kRows * Traits::kLatent);
    if (begin == 0) {  // while the first batch is on its way
      best = warp_max(best);
      if (best == negative_infinity()) return;  // padding
      for (int s = lane; s < splits.count; s += kLanes) {
        const Stats part = stats[splits.slot(s) * Traits::kRows];
        total += exp2_fast(part.highest - best) * part.total;
      }
      total = warp_sum(total);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (first + begin + i >= end) continue;
      const Stats& part = stats[splits.slot(first + begin + i) * Traits::kRows];
      add_weighted(sum, own[i], exp2_fast(part.highest - best));
    }
  }
#pragma unroll
  for (int offset = kRunLanes; offset < kLanes; offset *= 2)
#pragma unroll
    for (float& value : sum) value += __shfl_xor_sync(kFullWarp, value, offset);
  if (lane < kRunLanes)
    *reinterpret_cast<uint4*>(problem.out + int64_t{flat} * Traits::kLatent + column) =
        pack_scaled(sum, 1 / total);
  if (problem.lse != nullptr && task % kTasks == 0 && lane == 0)
    problem.lse[flat] = log_sum(best, total);
}

template <class Traits>
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, const Splits* splits,
                  int ctas, cudaStream_t stream) {
  const int pairs = problem.rows * problem.heads;
  constexpr int kManyRuns = 8;
  const bool many = ctas * Traits::kRows > pairs * 12;
  const auto kernel = many ? merge_kernel<Traits, kManyRuns> : merge_kernel<Traits, 1>;
  // As the attention kernel has it: else an SM takes CTAs of one kernel when those of the other are gone.
  static const bool divided = [] {
    for (const auto each : {merge_kernel<Traits, kManyRuns>, merge_kernel<Traits, 1>})
      check(cudaFuncSetAttribute(each, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "cudaFuncSetAttribute");
    return true;
  }();
  static_cast<void>(divided);
  const int warps = pairs * 2 * (many ? kManyRuns : 1), cta_warps = kMergeThreads / kLanes;
  const Grid grid{dim3(static_cast<unsigned>((warps + cta_warps - 1) / cta_warps)),
                  dim3(kMergeThreads)};
  launch_kernel("attention_decode: merge", kernel, grid, stream, problem, scratch, splits);
}

}  // namespace loza::cuda::attention
