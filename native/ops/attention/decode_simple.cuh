// Absorbed attention without tensor cores: head sizes and cache types that the main kernel does not
// take. One CTA for a row and a head.
#pragma once

#include "cuda/check.h"
#include "ops/attention/decode_rows.cuh"

namespace loza::cuda::attention {

constexpr int kSimpleThreads = kBlockTokens;  // one key a thread

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

// The same value for all threads, by all threads; `exchange` has one float a warp.
template <bool kMax>
__device__ float reduce_block(float value, float* exchange) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffff, value, offset);
    value = kMax ? fmaxf(value, other) : value + other;
  }
  __syncthreads();  // the result before has been read
  if (threadIdx.x % kLanes == 0) exchange[threadIdx.x / kLanes] = value;
  __syncthreads();
  value = exchange[0];
  for (int w = 1; w < kSimpleThreads / kLanes; w++)
    value = kMax ? fmaxf(value, exchange[w]) : value + exchange[w];
  return value;
}

inline size_t simple_bytes(const DecodeProblem& problem) {
  return sizeof(float) *
         (problem.width + problem.latent + kSimpleThreads + kSimpleThreads / kLanes);
}

// One CTA for a row and a head; thread i scores key i of a block, then adds columns i, i + 128, ...
template <class Cache>
__global__ void __launch_bounds__(kSimpleThreads) simple_kernel(const DecodeProblem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  float* q = reinterpret_cast<float*>(shared_bytes);  // [width]
  float* sums = q + problem.width;                    // [latent]
  float* p = sums + problem.latent;                   // [kSimpleThreads]
  float* exchange = p + kSimpleThreads;               // [warps]
  const int64_t index = blockIdx.x / problem.heads, head = blockIdx.x % problem.heads;
  const int thread = static_cast<int>(threadIdx.x);
  const Row row = describe_row(problem, index);
  const bf16* from = problem.q + index * problem.q_row + head * problem.q_head;
  for (int i = thread; i < problem.width; i += kSimpleThreads) q[i] = to_float(from[i]);
  for (int i = thread; i < problem.latent; i += kSimpleThreads) sums[i] = 0;
  __syncthreads();
  float highest = negative_infinity(), total = 0;
  bool broken = false;
  for (int visible = 0; visible < row.blocks; visible++) {
    const int64_t slot = slot_of(problem, row, visible);
    const int keys = slot < 0 ? 0 : keys_of(row, visible);
    broken = broken || slot < 0;
    const Cache* cache = static_cast<const Cache*>(problem.cache) + slot * problem.cache_row;
    float score = negative_infinity();
    if (thread < keys) {
      score = 0;
      const Cache* key = cache + thread * problem.cache_row;
      for (int i = 0; i < problem.width; i++) score = fmaf(q[i], to_float(key[i]), score);
      score *= problem.scale;
    }
    const float new_highest = fmaxf(highest, reduce_block<true>(score, exchange));
    const float base = new_highest == negative_infinity() ? 0.0f : new_highest;
    const float shrink = exp2f(highest - base), own = exp2f(score - base);
    highest = new_highest;
    total = total * shrink + own;
    p[thread] = own;
    __syncthreads();
    for (int i = thread; i < problem.latent; i += kSimpleThreads) {
      float sum = sums[i] * shrink;
      for (int j = 0; j < keys; j++)
        sum = fmaf(p[j], to_float(cache[j * problem.cache_row + i]), sum);
      sums[i] = sum;
    }
    // The next block's reduction has a barrier before p is written again.
  }
  total = reduce_block<false>(total, exchange);
  bf16* out = problem.out + index * problem.out_row + head * problem.out_head;
  for (int i = thread; i < problem.latent; i += kSimpleThreads)
    out[i] = __float2bfloat16(row.blocks == 0 ? row.nothing
                              : broken        ? not_a_number()
                                              : sums[i] / total);
  if (problem.lse != nullptr && thread == 0)
    problem.lse[index * problem.lse_row + head * problem.lse_head] =
        row.blocks == 0 ? (row.position < 0 ? negative_infinity() : not_a_number())
        : broken        ? not_a_number()
                        : (highest + log2f(total)) * kLn2;
}

template <class Cache>
void launch_simple(const DecodeProblem& problem, cudaStream_t stream) {
  const size_t bytes = simple_bytes(problem);
  loza::check(bytes <= 48 * 1024, "attention_decode: no kernel for ", problem.width, " columns");
  const auto grid = static_cast<unsigned>(problem.rows * problem.heads);
  simple_kernel<Cache><<<grid, kSimpleThreads, bytes, stream>>>(problem);
  check_launch("attention_decode");
}

}  // namespace loza::cuda::attention
