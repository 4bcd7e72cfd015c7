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

// Merges the partial results of one (row, head) and 128 latent columns: by a warp, or by many that take
// equal runs of the splits. Short code, because it runs cold.
template <class Traits, int kSplitWarps>
__global__ void __launch_bounds__(kSplitWarps == 1 ? 256 : 32 * kSplitWarps)
    merge_kernel(const __grid_constant__ DecodeProblem problem,
                 const __grid_constant__ DecodeScratch scratch, const Splits* all_splits) {
  constexpr int kBatch = 4;  // sums under way at a time
  __shared__ float4 exchange[kSplitWarps][kLanes];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int task = kSplitWarps == 1 ? cta * 8 + warp : cta;
  const int flat = task / 4, column = task % 4 * 128 + lane * 4;
  launch_dependents();
  if (flat >= problem.rows * problem.heads) return wait_for_prerequisites();
  const int4 found = __ldcg(reinterpret_cast<const int4*>(all_splits + flat));  // of the plan
  const Splits splits{found.x, found.y, found.z, found.w};
  wait_for_prerequisites();
  if (splits.count <= 1) return;
  const auto* stats = reinterpret_cast<const float2*>(scratch.stats) + splits.row;
  const float* sums = scratch.sums + splits.row * Traits::kLatent + column;
  const int run = (splits.count + kSplitWarps - 1) / kSplitWarps;
  const int first = kSplitWarps == 1 ? 0 : warp * run, end = min(splits.count, first + run);
  float best = negative_infinity(), total = 0;
  for (int s = lane; s < splits.count; s += kLanes)
    best = fmaxf(best, stats[splits.slot(s) * Traits::kRows].x);
  float4 sum = make_float4(0, 0, 0, 0), own[kBatch];
#pragma unroll 1
  for (int begin = first; begin < end || begin == first; begin += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (begin + i < end)
        own[i] = *reinterpret_cast<const float4*>(sums + int64_t{splits.slot(begin + i)} *
                                                             Traits::kRows * Traits::kLatent);
    if (begin == first) {  // while the first batch is on its way
      best = warp_max(best);
      if (best == negative_infinity()) return;  // padding
      for (int s = lane; s < splits.count; s += kLanes) {
        const float2 part = stats[splits.slot(s) * Traits::kRows];
        total += exp2_fast(part.x - best) * part.y;
      }
      total = warp_sum(total);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (begin + i >= end) continue;
      const float weight = exp2_fast(stats[splits.slot(begin + i) * Traits::kRows].x - best);
      sum.x += own[i].x * weight, sum.y += own[i].y * weight;
      sum.z += own[i].z * weight, sum.w += own[i].w * weight;
    }
  }
  if constexpr (kSplitWarps > 1) {
    exchange[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
#pragma unroll 5
    for (int w = 1; w < kSplitWarps; w++) {
      const float4 part = exchange[w][lane];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
  }
  const float inverse = 1 / total;
  *reinterpret_cast<uint2*>(problem.out + int64_t{flat} * Traits::kLatent + column) =
      make_uint2(pack(sum.x * inverse, sum.y * inverse), pack(sum.z * inverse, sum.w * inverse));
  if (problem.lse != nullptr && task % 4 == 0 && lane == 0)
    problem.lse[flat] = log_sum(best, total);
}

template <class Traits>
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, const Splits* splits,
                  int ctas, cudaStream_t stream) {
  const int pairs = problem.rows * problem.heads;
  constexpr int kManyWarps = 16;  // divide many splits of few rows
  const bool many = ctas * Traits::kRows > pairs * 12;
  const auto kernel = many ? merge_kernel<Traits, kManyWarps> : merge_kernel<Traits, 1>;
  const Grid grid{dim3(static_cast<unsigned>(many ? pairs * 4 : (pairs + 1) / 2)),
                  dim3(many ? kManyWarps * kLanes : 256)};
  launch_kernel("attention_decode: merge", kernel, grid, stream, problem, scratch, splits);
}

}  // namespace loza::cuda::attention
