// A consumer of the wgmma kernel of expanded attention: a warpgroup that owns 64 rows of each query
// tile. Thread t of it, warp w = t / 32, g = t % 32 / 4, j = t % 4, holds of rows 16 w + g (r = 0) and
// + 8 (r = 1) the columns 8 i + 2 j and + 1.
#pragma once

#include <type_traits>

#include "cuda/attention_mma.cuh"
#include "cuda/barrier.cuh"
#include "cuda/tma.cuh"
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
  // The exponents' base is the maximum of the first tile, and stays while no thread's part of a tile's
  // sum passes this: floating point keeps its precision at any scale, so later maxima are not needed.
  static constexpr float kHighSum = 1ull << 40;

  float sums[kSums];
  uint32_t weights[kSteps][4];  // the softmax's numerators, as wgmma takes them
  float base[2];                // of rows r = 0, 1, in powers of two
  float total[2];               // this thread's columns only
  int32_t group, thread;

  __device__ int row(int r) const {  // of the query tile
    return group * Traits::kConsumerRows + thread / kLanes * 16 + thread % kLanes / 4 + 8 * r;
  }
  __device__ void release(uint64_t* barrier) const {
    __syncwarp();  // all lanes have read what the producer may now overwrite
    if (thread % kLanes == 0) barrier_arrive(barrier);
  }
  __device__ void take_turn() const { named_barrier_sync(kTurn + group, 2 * Traits::kWarpgroup); }
  __device__ void pass_turn() const {
    named_barrier_arrive(kTurn + (group ^ 1), 2 * Traits::kWarpgroup);
  }
};

// ---- Load ----

template <class Traits>
__device__ __forceinline__ void clear_state(Consumer<Traits>& c) {
#pragma unroll
  for (float& sum : c.sums) sum = 0;
  c.base[0] = c.base[1] = negative_infinity();
  c.total[0] = c.total[1] = 0;
}

// What earlier rounds left is as if it were one key. Nothing waits for the sums before the first values
// are added.
template <class Traits>
__device__ __forceinline__ void load_state(const PrefillProblem& problem, const Work& work,
                                           Consumer<Traits>& c) {
  float lse[2] = {negative_infinity(), negative_infinity()};
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = c.row(r);
    if (row >= work.first && row < work.end)
      lse[r] =
          problem.lse[int64_t{work.row + row} * problem.lse_row + work.head * problem.lse_head];
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

// Raises the exponents' base of some rows to the maximum of the tile; earlier sums shrink.
template <class Traits>
__device__ __forceinline__ void raise_base(Consumer<Traits>& c,
                                           const float (&scores)[Traits::kKeyTile / 2], float scale,
                                           const bool (&wanted)[2]) {
  float shrink[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float even = scores[2 * r], odd = scores[2 * r + 1];
#pragma unroll
    for (int i = 1; i < Traits::kKeyTile / 8; i++) {
      even = fmaxf(even, scores[4 * i + 2 * r]);
      odd = fmaxf(odd, scores[4 * i + 2 * r + 1]);
    }
    const float highest = quad_max(fmaxf(even, odd)) * scale;
    const bool raise = wanted[r] && highest > c.base[r];
    shrink[r] = raise ? exp2_fast(c.base[r] - highest) : 1.0f;
    if (raise) c.base[r] = highest;
    c.total[r] *= shrink[r];
  }
#pragma unroll
  for (int i = 0; i < Traits::kValue / 8; i++) {
    c.sums[4 * i] *= shrink[0], c.sums[4 * i + 1] *= shrink[0];
    c.sums[4 * i + 2] *= shrink[1], c.sums[4 * i + 3] *= shrink[1];
  }
}

// Turns scores into the softmax's numerators; gives this thread's part of their sums.
template <class Traits>
__device__ __forceinline__ void weigh(Consumer<Traits>& c,
                                      const float (&scores)[Traits::kKeyTile / 2], float scale,
                                      const float (&base)[2], float (&sum)[2]) {
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int pair = 0; pair < Traits::kKeyTile / 4; pair++) {  // r is 0 and 1 in turn
    const float left = exp2_fast(fmaf(scores[2 * pair], scale, -base[pair % 2]));
    const float right = exp2_fast(fmaf(scores[2 * pair + 1], scale, -base[pair % 2]));
    sum[pair % 2] += left;
    sum[pair % 2] += right;
    c.weights[pair / 4][pair % 4] = pack(left, right);
  }
}

// The same with a base raised as far as the tile needs it, in the rows where that is wanted.
template <class Traits>
__device__ __forceinline__ void weigh_raised(Consumer<Traits>& c,
                                             const float (&scores)[Traits::kKeyTile / 2],
                                             float scale, const bool (&wanted)[2],
                                             float (&sum)[2]) {
  raise_base(c, scores, scale, wanted);
  float base[2];  // a row that has seen nothing yet must not subtract infinities
#pragma unroll
  for (int r = 0; r < 2; r++) base[r] = c.base[r] == negative_infinity() ? 0.0f : c.base[r];
  weigh(c, scores, scale, base, sum);
}

template <class Traits>
__device__ __forceinline__ void soften_first(Consumer<Traits>& c,
                                             const float (&scores)[Traits::kKeyTile / 2],
                                             float scale) {
  float sum[2];
  weigh_raised(c, scores, scale, {true, true}, sum);
  c.total[0] += sum[0], c.total[1] += sum[1];
}

// Whether a row's base rises depends on the row alone, so that its bits do not depend on others.
template <class Traits>
__device__ __forceinline__ void soften(Consumer<Traits>& c,
                                       const float (&scores)[Traits::kKeyTile / 2], float scale) {
  float sum[2];
  weigh(c, scores, scale, c.base, sum);
  bool high[2];  // also where the base is still -inf: the sum is not a number
#pragma unroll
  for (int r = 0; r < 2; r++) high[r] = !(sum[r] < Consumer<Traits>::kHighSum);
  if (__any_sync(0xffffffff, high[0] || high[1])) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      high[r] |= __shfl_xor_sync(0xffffffff, high[r], 1);
      high[r] |= __shfl_xor_sync(0xffffffff, high[r], 2);
    }
    weigh_raised(c, scores, scale, high, sum);
  }
  c.total[0] += sum[0], c.total[1] += sum[1];
}

// ---- Store ----

// Writes a row: four threads share it, and each has two of every eight columns.
template <class Out, class Traits>
__device__ __forceinline__ void store_row(Out* to, const Consumer<Traits>& c, int r, float inverse,
                                          bool seen) {
#pragma unroll
  for (int i = 0; i < Traits::kValue / 8; i++) {
    const float left = c.sums[4 * i + 2 * r] * inverse;
    const float right = c.sums[4 * i + 2 * r + 1] * inverse;
    if (!seen) continue;
    if constexpr (std::is_same_v<Out, float>)
      *reinterpret_cast<float2*>(to + i * 8 + c.thread % 4 * 2) = float2{left, right};
    else
      *reinterpret_cast<uint32_t*>(to + i * 8 + c.thread % 4 * 2) = pack(left, right);
  }
}

// Writes the warp's 16 rows, a panel at a time, through shared memory: whole lines of 128 bytes.
template <class Traits>
__device__ __forceinline__ void store_panels(PrefillStorage<Traits>& shared, const TensorMap& map,
                                             const Work& work, const Consumer<Traits>& c,
                                             const float (&inverse)[2]) {
  const int warp = c.thread / kLanes, lane = c.thread % kLanes;
  bf16* panel = shared.out[c.group][warp];
  const int row = lane % 16;  // whose address this lane gives
#pragma unroll
  for (int first = 0; first < Traits::kValue / 8; first += Traits::kPanel / 8) {
    if (lane == 0) tma_store_wait_read<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Traits::kPanel / 8; i += 2) {
      uint32_t words[4];
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int n = 4 * (first + i) + 2 * part;
        words[part] = pack(c.sums[n] * inverse[part % 2], c.sums[n + 1] * inverse[part % 2]);
      }
      stmatrix_x4(shared_address(panel) + tile_offset<Traits::kPanel>(row, i + lane / 16), words);
    }
    proxy_fence();
    __syncwarp();
    if (lane == 0) {
      tma_store(map, panel, first * 8, work.head, work.row + c.row(0) - lane / 4);
      tma_store_commit();
    }
  }
}

// Rows that have seen no key, now or before, stay as they are.
template <class Out, class Traits>
__device__ __forceinline__ void store_state(const PrefillProblem& problem,
                                            PrefillStorage<Traits>& shared, const TensorMap& map,
                                            const Work& work, const Consumer<Traits>& c) {
  float inverse[2];
  bool seen[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = c.row(r);
    const float total = quad_sum(c.total[r]);
    inverse[r] = __fdividef(1, total);
    seen[r] = row >= work.first && row < work.end && total != 0;
    const int64_t at = work.row + row;
    if constexpr (std::is_same_v<Out, float>)
      store_row(problem.out_at<Out>(at, work.head), c, r, inverse[r], seen[r]);
    if (seen[r] && c.thread % 4 == 0)
      problem.lse[at * problem.lse_row + work.head * problem.lse_head] =
          (c.base[r] + __log2f(total)) * kLn2;
  }
  if constexpr (std::is_same_v<Out, float>) return;
  if (__all_sync(0xffffffff, seen[0] && seen[1]))
    return store_panels(shared, map, work, c, inverse);
#pragma unroll
  for (int r = 0; r < 2; r++)
    store_row(problem.out_at<Out>(work.row + c.row(r), work.head), c, r, inverse[r], seen[r]);
}

}  // namespace loza::cuda::attention
