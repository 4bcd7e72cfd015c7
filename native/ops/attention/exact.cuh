// Attention of one query and one head by one CTA in plain fp32 arithmetic, for decode of f32
// activations. Keys come in tiles of at most kTile; a softmax over the tiles so far is kept.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/types.cuh"
#include "ops/attention/key_range.h"

namespace loza::cuda::exact {

inline constexpr int kTile = kBlockTokens;  // keys at a time
inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarpSize;
static_assert(kThreads >= kTile);  // a thread a weight

__device__ inline float negative_infinity() { return __int_as_float(0xff800000); }
__device__ inline float not_a_number() { return __int_as_float(0x7fc00000); }

// Shared memory of a CTA, in a dynamic array of floats.
struct Storage {
  float* query;     // [depth]
  float* sums;      // [columns]: of weight * value
  float* weights;   // [kTile]
  float* exchange;  // [kMaxWarps]

  __device__ Storage(float* memory, int depth, int columns)
      : query(memory), sums(query + depth), weights(sums + columns), exchange(weights + kTile) {}
  static size_t bytes(int64_t depth, int64_t columns) {
    return sizeof(float) * static_cast<size_t>(depth + columns + kTile + kMaxWarps);
  }
};

struct Softmax {
  float highest = negative_infinity();  // of the scores so far
  float total = 0;                      // of exp(score - highest)
};

// This lane's part of query . key.
template <class Key>
__device__ inline float dot_part(const float* query, const Key* key, int count) {
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < count; i += kWarpSize)
    sum = fmaf(query[i], widen(key[i]), sum);
  return sum;
}

// Adds a tile of keys. score(j): by a whole warp, the same for all its lanes; -infinity for keys that
// the query does not see, whose values may be NaN. value(j, i): column i of key j's value.
template <class Score, class Value>
__device__ inline void attend(Softmax& softmax, const Storage& shared, int keys, int columns,
                              const Score& score, const Value& value) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 4
  for (int j = thread / kWarpSize; j < keys; j += kWarps) {
    const float found = score(j);
    if (thread % kWarpSize == 0) shared.weights[j] = found;
  }
  __syncthreads();
  const float own = thread < keys ? shared.weights[thread] : negative_infinity();
  const float highest = fmaxf(softmax.highest, block_max(own, shared.exchange));
  const float base = highest == negative_infinity() ? 0.0f : highest;  // of nothing seen yet
  const float shrink = expf(softmax.highest - base), weight = expf(own - base);
  softmax.highest = highest;
  softmax.total = softmax.total * shrink + block_sum(weight, shared.exchange);
  if (thread < kTile) shared.weights[thread] = weight;
  __syncthreads();
  for (int i = thread; i < columns; i += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (int j = 0; j < keys; j++) {
      const float share = shared.weights[j], found = value(j, i);
      sum = fmaf(share, share != 0 ? found : 0.0f, sum);
    }
    shared.sums[i] = shared.sums[i] * shrink + sum;
  }
  __syncthreads();
}

}  // namespace loza::cuda::exact
