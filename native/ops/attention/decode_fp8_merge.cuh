// Absorbed attention over an FP8 latent cache: rows that see nothing, and the kernel that merges
// the partial results of units that several CTAs had parts of.
#pragma once

#include "cuda/cuda_stream.h"
#include "cuda/launch.h"
#include "ops/attention/decode_fp8_tensor.cuh"
#include "ops/attention/decode_values.cuh"

namespace loza::cuda::attention {

// As decode_values.cuh does, for each number of shares.
template <class Traits>
__device__ void merge_fp8_cluster(const DecodeProblem& problem, const Fp8Launch& launch,
                                  DecodeStorage<Traits>& shared) {
  switch (launch.shares) {
    case 2:
      return merge_shares<Traits, 2>(problem, launch.groups, shared);
    case 3:
      return merge_shares<Traits, 3>(problem, launch.groups, shared);
    case 4:
      return merge_shares<Traits, 4>(problem, launch.groups, shared);
    case 8:
      return merge_shares<Traits, 8>(problem, launch.groups, shared);
  }
}

// Rows that see nothing: padding becomes zeros, rows of no sequence NaN. By the values warpgroups,
// which have to wait anyway.
template <class Traits>
__device__ void store_fp8_nothing(const DecodeProblem& problem, const Fp8Launch& launch, int warp) {
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
      if (launch.parts > 0) launch.splits[first + head] = {};
    }
  }
}

// Merges the partial results of one (row, head) and 128 latent columns: by a warp, or by eight that
// take equal runs of the splits.
template <class Traits, int kSplitWarps>
__global__ void __launch_bounds__(256)
    merge_fp8_kernel(const __grid_constant__ DecodeProblem problem,
                     const __grid_constant__ DecodeScratch scratch, const Splits* all_splits) {
  constexpr int kBatch = kSplitWarps == 1 ? 8 : 16;  // sums under way at a time
  __shared__ float4 exchange[kSplitWarps][kLanes];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int task = kSplitWarps == 1 ? cta * 8 + warp : cta;
  const int flat = task / 4, column = task % 4 * 128 + lane * 4;
  launch_dependents();
  wait_for_prerequisites();
  if (flat >= problem.rows * problem.heads) return;
  const Splits splits = all_splits[flat];
  if (splits.count <= 1) return;
  const auto* stats = reinterpret_cast<const float2*>(scratch.stats) + splits.row;
  const float* sums = scratch.sums + splits.row * Traits::kLatent + column;
  const int run = (splits.count + kSplitWarps - 1) / kSplitWarps;
  const int first = kSplitWarps == 1 ? 0 : warp * run, end = min(splits.count, first + run);
  float best = negative_infinity(), total = 0;
  float4 sum = make_float4(0, 0, 0, 0), own[kBatch];
  for (int begin = first; begin < end || begin == first; begin += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (begin + i < end)
        own[i] = *reinterpret_cast<const float4*>(sums + int64_t{splits.slot(begin + i)} *
                                                             Traits::kRows * Traits::kLatent);
    if (begin == first) {  // while the first batch is on its way
      for (int s = lane; s < splits.count; s += kLanes)
        best = fmaxf(best, stats[splits.slot(s) * Traits::kRows].x);
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
void take_fp8_scratch(CudaStream& stream, int ctas, int pairs, Fp8Launch& launch) {
  const size_t slots = size_t{2} * ctas * Traits::kRows, floats = slots * (Traits::kLatent + 2);
  launch.scratch.sums =
      reinterpret_cast<float*>(stream.scratch(floats * sizeof(float) + pairs * sizeof(Splits)));
  launch.scratch.stats = launch.scratch.sums + slots * Traits::kLatent;
  launch.splits = reinterpret_cast<Splits*>(launch.scratch.sums + floats);
}

template <class Traits>
void launch_fp8_merge(const DecodeProblem& problem, const Fp8Launch& launch, int ctas,
                      cudaStream_t stream) {
  const int pairs = problem.rows * problem.heads;
  // Many splits of few rows: eight warps divide them.
  const bool many = ctas * Traits::kRows > pairs * 12;
  const auto kernel = many ? merge_fp8_kernel<Traits, 8> : merge_fp8_kernel<Traits, 1>;
  const dim3 blocks(static_cast<unsigned>(many ? pairs * 4 : (pairs + 1) / 2));
  launch_kernel("attention_decode: merge", kernel, {blocks, dim3(256)}, stream, problem,
                launch.scratch, launch.splits);
}

}  // namespace loza::cuda::attention
