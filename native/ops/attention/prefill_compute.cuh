// A consumer of the wgmma kernel of expanded attention: a warpgroup that owns 64 rows of each query
// tile. Thread t of it, warp w = t / 32, g = t % 32 / 4, j = t % 4, holds of rows 16 w + g (r = 0) and
// + 8 (r = 1) the columns 8 i + 2 j and + 1.
#pragma once

#include "cuda/attention_mma.cuh"
#include "cuda/barrier.cuh"
#include "cuda/wgmma.cuh"
#include "ops/attention/prefill_traits.cuh"

namespace loza::cuda::attention {

// Named barriers; 0 is __syncthreads.
enum PrefillBarrier : uint32_t {
  kTurn = 1,    // + consumer: its turn on the tensor cores
  kValues = 3,  // + consumer: its threads have cleared rows of a value tile
};

template <class Traits>
struct Consumer {
  static constexpr int kScores = Traits::kKeyTile / 2, kSums = Traits::kValue / 2;
  static constexpr int kSteps = Traits::kKeyTile / 16;  // of 16 keys
  // The exponent's base is raised only when a maximum passes it by this many powers of two: sums stay
  // far below overflow and most tiles need no rescaling.
  static constexpr float kSlack = 8;

  float sums[kSums];
  uint32_t weights[kSteps][4];  // the softmax's numerators, as wgmma takes them
  float base[2];                // of rows r = 0, 1, in powers of two
  float total[2];               // this thread's columns only
  int32_t group, thread;

  __device__ int row(int r) const {  // of the query tile
    return group * Traits::kConsumerRows + thread / kLanes * 16 + thread % kLanes / 4 + 8 * r;
  }
  __device__ void release(uint64_t* barrier) const {
    if (thread % kLanes == 0) barrier_arrive(barrier);
  }
  __device__ void take_turn() const {
    named_barrier_sync(kTurn + group, 2 * Traits::kWarpgroup);
  }
  __device__ void pass_turn() const {
    named_barrier_arrive(kTurn + (group ^ 1), 2 * Traits::kWarpgroup);
  }
};

// ---- Load ----

// What the rows hold: nothing, or the result of earlier rounds, which is as if it were one key. Nothing
// waits for the sums before the first values are added.
template <class Traits>
__device__ __forceinline__ void load_state(const PrefillProblem& problem, const Work& work,
                                           Consumer<Traits>& c) {
  float lse[2] = {negative_infinity(), negative_infinity()};
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = c.row(r);
    if (problem.merges && row >= work.first && row < work.end)
      lse[r] = problem.lse[int64_t{work.row + row} * problem.lse_row + work.head * problem.lse_head];
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bool empty = lse[r] == negative_infinity();
    c.base[r] = lse[r] * kLog2e;
    c.total[r] = !empty && c.thread % 4 == 0 ? 1 : 0;
    const float* from = static_cast<const float*>(problem.out) +
                        int64_t{work.row + c.row(r)} * problem.out_row +
                        work.head * problem.out_head + c.thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < Traits::kValue / 8; i++) {
      float2 pair{};
      if (!empty) pair = *reinterpret_cast<const float2*>(from + i * 8);
      c.sums[4 * i + 2 * r] = pair.x, c.sums[4 * i + 2 * r + 1] = pair.y;
    }
  }
}

// Rows of the value tile behind the last key may be NaN, which a weight of zero does not silence.
template <class Traits>
__device__ __forceinline__ void clear_values(PrefillStorage<Traits>& shared, uint32_t tile,
                                             int keys, const Consumer<Traits>& c) {
  if (keys == Traits::kKeyTile) return;
  const uint32_t stage = tile % Traits::kStages;
  barrier_wait(&shared.v_full[stage], tile / Traits::kStages & 1);
  constexpr int kRowChunks = Traits::kPanel / kChunk;
  const int chunks = (Traits::kKeyTile - keys) * kRowChunks;
  for (auto& panel : shared.v[stage])
    for (int i = c.thread; i < chunks; i += Traits::kWarpgroup)
      reinterpret_cast<uint4*>(panel + keys * Traits::kPanel)[i] = uint4{};
  proxy_fence();
  named_barrier_sync(kValues + c.group, Traits::kWarpgroup);
}

// ---- Compute ----

// scores = q k^T, asynchronously
template <class Traits>
__device__ __forceinline__ void start_scores(const PrefillStorage<Traits>& shared, uint32_t stage,
                                             int group, float (&scores)[Traits::kKeyTile / 2]) {
  const uint64_t q = wgmma_descriptor(shared.q[group]), k = wgmma_descriptor(shared.k[stage]);
  wgmma_fence();
#pragma unroll
  for (int panel = 0; panel < Traits::kDepth / Traits::kPanel; panel++)
#pragma unroll
    for (int step = 0; step < 4; step++)
      wgmma_bf16(scores, wgmma_advance(q, panel * Traits::kConsumerRows * 128 + step * 32),
                 wgmma_advance(k, panel * Traits::kKeyTile * 128 + step * 32), panel + step > 0);
  wgmma_commit();
}

// sums += weights v, asynchronously
template <class Traits>
__device__ __forceinline__ void start_sums(const PrefillStorage<Traits>& shared, uint32_t stage,
                                           Consumer<Traits>& c) {
  const uint64_t v = wgmma_descriptor(shared.v[stage], Traits::kKeyTile * 128);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Consumer<Traits>::kSteps; step++)
    wgmma_bf16<1>(c.sums, c.weights[step], wgmma_advance(v, step * 16 * 128), true);
  wgmma_commit();
}

template <class Traits>
__device__ __forceinline__ void mask(const KeyTile& tile, const Consumer<Traits>& c,
                                     float (&scores)[Traits::kKeyTile / 2]) {
  const int first_row = c.group * Traits::kConsumerRows;
  if (min(tile.keys, first_row + tile.offset + 1) >= Traits::kKeyTile) return;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int limit = min(tile.keys, c.row(r) + tile.offset + 1) - c.thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < Traits::kKeyTile / 8; i++)
#pragma unroll
      for (int column = 0; column < 2; column++)
        if (i * 8 + column >= limit) scores[4 * i + 2 * r + column] = negative_infinity();
  }
}

// Raises the exponents' base where the scores need it; `shrink` is what earlier sums must then be
// multiplied by.
template <class Traits>
__device__ __forceinline__ void raise_base(Consumer<Traits>& c,
                                           const float (&scores)[Traits::kKeyTile / 2], float scale,
                                           float (&shrink)[2]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float even = scores[2 * r], odd = scores[2 * r + 1];
#pragma unroll
    for (int i = 1; i < Traits::kKeyTile / 8; i++) {
      even = fmaxf(even, scores[4 * i + 2 * r]);
      odd = fmaxf(odd, scores[4 * i + 2 * r + 1]);
    }
    const float highest = quad_max(fmaxf(even, odd)) * scale;
    const bool raise = highest > c.base[r] + Consumer<Traits>::kSlack;
    shrink[r] = raise ? exp2_fast(c.base[r] - highest) : 1.0f;
    if (raise) c.base[r] = highest;
  }
}

template <class Traits>
__device__ __forceinline__ void rescale(Consumer<Traits>& c, const float (&shrink)[2]) {
  if (!__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
  c.total[0] *= shrink[0], c.total[1] *= shrink[1];
#pragma unroll
  for (int i = 0; i < Traits::kValue / 8; i++) {
    c.sums[4 * i] *= shrink[0], c.sums[4 * i + 1] *= shrink[0];
    c.sums[4 * i + 2] *= shrink[1], c.sums[4 * i + 3] *= shrink[1];
  }
}

// Turns scores into the softmax's numerators.
template <class Traits>
__device__ __forceinline__ void soften(Consumer<Traits>& c,
                                       const float (&scores)[Traits::kKeyTile / 2], float scale) {
  float base[2];  // a row that has seen nothing yet must not subtract infinities
#pragma unroll
  for (int r = 0; r < 2; r++) base[r] = c.base[r] == negative_infinity() ? 0.0f : c.base[r];
#pragma unroll
  for (int pair = 0; pair < Traits::kKeyTile / 4; pair++) {  // r is 0 and 1 in turn
    const float left = exp2_fast(fmaf(scores[2 * pair], scale, -base[pair % 2]));
    const float right = exp2_fast(fmaf(scores[2 * pair + 1], scale, -base[pair % 2]));
    c.total[pair % 2] += left + right;
    c.weights[pair / 4][pair % 4] = pack(left, right);
  }
}

// ---- Store ----

// Lane j of four has word j of four chunks of eight bf16; afterwards it has the words of chunk j.
__device__ __forceinline__ void exchange_words(uint32_t (&words)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t given = __shfl_xor_sync(0xffffffff, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = given;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t given = __shfl_xor_sync(0xffffffff, high ? words[i] : words[i + 2], 2);
    (high ? words[i] : words[i + 2]) = given;
  }
}

template <class Traits>
__device__ __forceinline__ void store_row(const PrefillProblem& problem, const Consumer<Traits>& c,
                                          int r, float inverse, int64_t at, bool seen) {
  const int lane = c.thread % 4;
  if (problem.merges) {
    float* to = static_cast<float*>(problem.out) + at + lane * 2;
#pragma unroll
    for (int i = 0; i < Traits::kValue / 8; i++)
      if (seen)
        *reinterpret_cast<float2*>(to + i * 8) =
            float2{c.sums[4 * i + 2 * r] * inverse, c.sums[4 * i + 2 * r + 1] * inverse};
    return;
  }
  bf16* to = static_cast<bf16*>(problem.out) + at + lane * 8;
#pragma unroll
  for (int i = 0; i < Traits::kValue / 8; i += 4) {
    uint32_t words[4];
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk++) {
      const int n = 4 * (i + chunk) + 2 * r;
      words[chunk] = pack(c.sums[n] * inverse, c.sums[n + 1] * inverse);
    }
    exchange_words(words, lane);
    if (seen)
      *reinterpret_cast<uint4*>(to + i * 8) = uint4{words[0], words[1], words[2], words[3]};
  }
}

// Rows that have seen no key, now or before, stay as they are.
template <class Traits>
__device__ __forceinline__ void store_state(const PrefillProblem& problem, const Work& work,
                                            const Consumer<Traits>& c) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = c.row(r);
    const float total = quad_sum(c.total[r]);
    const bool seen = row >= work.first && row < work.end && total != 0;
    const int64_t at = work.row + row;
    store_row(problem, c, r, __fdividef(1, total), at * problem.out_row + work.head * problem.out_head, seen);
    if (seen && c.thread % 4 == 0)
      problem.lse[at * problem.lse_row + work.head * problem.lse_head] =
          (c.base[r] + __log2f(total)) * kLn2;
  }
}

}  // namespace loza::cuda::attention
