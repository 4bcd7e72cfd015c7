// Absorbed attention with Hopper's matrix instructions: the warpgroups that sum up values, where the
// sums go, and how a cluster merges those of its shares.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

template <class Traits>
struct ValueState {
  float sums[Traits::kChains][Traits::kSums];
  int32_t group, warp, lane;  // group: which 256 columns
};

template <class Traits>
__device__ void shrink_sums(const DecodeStorage<Traits>& shared, ValueState<Traits>& state) {
  float shrink[Traits::kScoreRows];
  bool any = false;
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++) {
    shrink[r] = shared.shrink[score_row<Traits>(state.warp, state.lane, r)];
    any = any || shrink[r] != 1.0f;
  }
  if (!__any_sync(kFullWarp, any)) return;
#pragma unroll
  for (auto& chain : state.sums)
#pragma unroll
    for (int i = 0; i < Traits::kSums; i++)
      chain[i] *= shrink[Traits::kSwapped ? i / 4 * 2 + i % 2 : i / 2 % 2];
}

// sums (+)= p k, or its transpose k^T p^T, over a tile, whose parts are given back one by one.
template <class Traits>
__device__ void multiply_values(DecodeStorage<Traits>& shared, const TileRing<Traits>& ring,
                                bool accumulate, int groups, ValueState<Traits>& state) {
  constexpr int kHalf = Traits::kChains / 2;
  const bf16* front = shared.front[ring.front.index][1 + 2 * state.group];
  const bf16* back = shared.back[ring.back.index][2 * state.group];
  const uint64_t p = wgmma_descriptor(shared.p);
  wgmma_fence();
#pragma unroll
  for (int chain = 0; chain < Traits::kChains; chain++) {
    const bf16* k = chain < kHalf ? front : back;
    const uint64_t v = wgmma_descriptor(k + chain % kHalf * kTileKeys * Traits::kChainColumns,
                                        Traits::kPanelBytes);
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; step++) {
      const uint64_t own_p = wgmma_advance(p, step * 32), own_v = wgmma_advance(v, step * 2048);
      if constexpr (Traits::kSwapped)
        wgmma_bf16<1, 0>(state.sums[chain], own_v, own_p, accumulate || step > 0);
      else
        wgmma_bf16<0, 1>(state.sums[chain], own_p, own_v, accumulate || step > 0);
    }
    if (chain % kHalf == kHalf - 1) wgmma_commit();
  }
  wgmma_wait<1>();
  warp_give_back(&shared.front_empty[ring.front.index], state.lane, groups);
  wgmma_wait<0>();
#pragma unroll
  for (auto& chain : state.sums) wgmma_pin(chain);
  warp_arrive(&shared.p_empty, state.lane);
  warp_give_back(&shared.back_empty[ring.back.index], state.lane, groups);
}

// store(index, row, column, left, right) for all pairs of neighbouring columns that the thread has.
// `index` is one of kRowsStored, and says which row.
template <class Traits>
inline constexpr int kRowsStored = Traits::kSwapped ? Traits::kRows / 8 : 2;

template <class Traits>
__device__ int stored_row(const ValueState<Traits>& state, int index) {
  if constexpr (Traits::kSwapped) return index * 8 + state.lane % 4 * 2 + state.lane / 4 % 2;
  return state.warp * 16 + state.lane / 4 + index * 8;
}

template <class Traits, class Store>
__device__ void for_each_pair(const ValueState<Traits>& state, const Store& store) {
  const int lane = state.lane, first = state.group * Traits::kColumns;
  if constexpr (!Traits::kSwapped) {
#pragma unroll
    for (int chain = 0; chain < Traits::kChains; chain++)
#pragma unroll
      for (int i = 0; i < Traits::kSums / 2; i++)
        store(i % 2, first + chain * Traits::kChainColumns + i / 2 * 8 + lane % 4 * 2,
              state.sums[chain][2 * i], state.sums[chain][2 * i + 1]);
  } else {
    // A thread has one column of two rows; its neighbour has the next column of the same.
    const bool odd = lane / 4 % 2 != 0;
#pragma unroll
    for (int chain = 0; chain < Traits::kChains; chain++)
#pragma unroll
      for (int i = 0; i < Traits::kSums / 2; i++) {
        const float even_row = state.sums[chain][2 * i], odd_row = state.sums[chain][2 * i + 1];
        const float own = odd ? odd_row : even_row;
        const float other = __shfl_xor_sync(kFullWarp, odd ? even_row : odd_row, 4);
        const int column =
            first + chain * Traits::kChainColumns + state.warp * 16 + i % 2 * 8 + (lane / 4 & ~1);
        store(i / 2, column, odd ? other : own, odd ? own : other);
      }
  }
}

// ---- Where the sums go ----------------------------------------------------------------------------

__device__ inline float log_sum(float highest, float total) {
  return (highest + __log2f(total)) * kLn2;
}

__device__ __forceinline__ void values_sync() { named_barrier_sync(kValuesBarrier, 256); }

// Into shared memory, over the tiles: nobody reads those any more.
template <class Traits>
__device__ void stage_sums(DecodeStorage<Traits>& shared, const ValueState<Traits>& state) {
  values_sync();
  for_each_pair(state, [&](int index, int column, float left, float right) {
    float* row = shared.sums + stored_row(state, index) * Traits::kSumsRow;
    *reinterpret_cast<float2*>(row + column) = make_float2(left, right);
  });
}

template <class Traits>
__device__ void stage_results(DecodeStorage<Traits>& shared, const ValueState<Traits>& state) {
  float inverse[kRowsStored<Traits>];
#pragma unroll
  for (int i = 0; i < kRowsStored<Traits>; i++) inverse[i] = 1 / shared.total[stored_row(state, i)];
  values_sync();
  for_each_pair(state, [&](int index, int column, float left, float right) {
    bf16* row = shared.results + stored_row(state, index) * Traits::kResultsRow;
    *reinterpret_cast<uint32_t*>(row + column) =
        pack(left * inverse[index], right * inverse[index]);
  });
}

// What was staged goes out row by row in full lines, one thread a row. Writing the accumulators'
// fragments straight to memory takes five times as long.
template <class Traits>
__device__ void store_staged(const DecodeProblem& problem, const DecodeScratch& scratch,
                             const DecodeStorage<Traits>& shared) {
  proxy_fence();
  values_sync();
  const int row = static_cast<int>(threadIdx.x) - 128;
  const Work& work = shared.work;
  if (row >= work.unit.rows) return;
  const float highest = shared.highest[row], total = shared.total[row];
  if (work.slot >= 0) {
    const int64_t to = int64_t{2 * static_cast<int>(blockIdx.x) + work.slot} * Traits::kRows + row;
    reinterpret_cast<float2*>(scratch.stats)[to] = make_float2(highest, total);
    bulk_store(scratch.sums + to * Traits::kLatent, shared.sums + row * Traits::kSumsRow,
               Traits::kLatent * sizeof(float));
  } else if (total != 0) {  // else padding
    const int64_t to = work.unit.flat + row;
    if (problem.lse != nullptr) problem.lse[to] = log_sum(highest, total);
    bulk_store(problem.out + to * Traits::kLatent, shared.results + row * Traits::kResultsRow,
               Traits::kLatent * sizeof(bf16));
  }
  tma_store_commit();
  tma_store_wait_read<0>();
}

template <class Traits>
__device__ void sum_values(const DecodeProblem& problem, const DecodeLaunch& launch,
                           DecodeStorage<Traits>& shared) {
  ValueState<Traits> state;
  state.group = static_cast<int>(threadIdx.x) / 128 - 1;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  TileRing<Traits> ring;
  uint32_t work_parity = 0, p_parity = 0;
  for (;; work_parity ^= 1) {
    barrier_wait(&shared.work_full, work_parity);
    const int first = shared.work.first, end = shared.work.end;
    const bool last = shared.last_work;
    if (end == kNoMoreWork) return;
    for (int tile = first; tile < end; tile++, ring.advance()) {
      for (auto& barrier : shared.front_full[ring.front.index])
        barrier_wait(&barrier, ring.front.parity);
      barrier_wait(&shared.back_full[ring.back.index], ring.back.parity);
      barrier_wait(&shared.p_full, p_parity), p_parity ^= 1;
      if (tile > first) shrink_sums(shared, state);
      multiply_values(shared, ring, tile > first, launch.groups, state);
    }
    if (shared.work.slot < 0 && first < end)
      stage_results(shared, state);
    else if (first < end)
      stage_sums(shared, state);
    if (first < end && (launch.parts > 0 || shared.work.slot < 0))
      store_staged(problem, launch.scratch, shared);
    if (last) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

// ---- Merging --------------------------------------------------------------------------------------

__device__ __forceinline__ float load_remote(uint32_t address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ float4 load_remote4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address));
  return v;
}

// Rows that a CTA merges.
template <class Traits, int kShares>
inline constexpr int kOwnRows = (Traits::kRows + kShares - 1) / kShares;

// How much each share of the unit weighs in rows of this CTA, [own rows, kShares]; negative where a
// row saw nothing.
template <class Traits, int kShares>
__device__ void weigh_shares(const DecodeProblem& problem, DecodeStorage<Traits>& shared,
                             int first_cta, int groups, int first_row, float* weights) {
  const int thread = static_cast<int>(threadIdx.x), row = first_row + thread;
  if (thread >= kOwnRows<Traits, kShares> || row >= Traits::kRows) return;
  float highest[kShares], total[kShares], best = negative_infinity(), sum = 0;
#pragma unroll
  for (int c = 0; c < kShares; c++) {
    const int cta = first_cta + c * groups;
    highest[c] = load_remote(cluster_address(shared_address(&shared.highest[row]), cta));
    total[c] = load_remote(cluster_address(shared_address(&shared.total[row]), cta));
  }
#pragma unroll
  for (float own : highest) best = fmaxf(best, own);
  const bool any = best != negative_infinity() && row < shared.work.unit.rows;
#pragma unroll
  for (int c = 0; c < kShares; c++) {
    const bool empty = highest[c] == negative_infinity();  // its total was not written
    highest[c] = empty ? 0.0f : exp2_fast(highest[c] - best);
    sum += empty ? 0.0f : highest[c] * total[c];
  }
#pragma unroll
  for (int c = 0; c < kShares; c++)
    weights[thread * kShares + c] = any ? highest[c] * (1 / sum) : -1.0f;
  if (problem.lse != nullptr && any) problem.lse[shared.work.unit.flat + row] = log_sum(best, sum);
}

// Every CTA of the unit merges its share of the rows, in ascending order of keys.
template <class Traits, int kShares>
__device__ void merge_shares(const DecodeProblem& problem, int groups,
                             DecodeStorage<Traits>& shared) {
  cluster_arrive();
  cluster_wait();
  const int rank = static_cast<int>(cluster_rank()), first_cta = rank % groups;
  const int first_row = rank / groups * kOwnRows<Traits, kShares>;
  const int own_rows = min(kOwnRows<Traits, kShares>, Traits::kRows - first_row);
  float* weights = reinterpret_cast<float*>(shared.p);
  weigh_shares<Traits, kShares>(problem, shared, first_cta, groups, first_row, weights);
  named_barrier_sync(kMergeBarrier, Traits::kMergeThreads);
  const int column = static_cast<int>(threadIdx.x) % 128 * 4;
  const int64_t flat = shared.work.unit.flat;
  constexpr int kAtATime = kShares <= 3 && kOwnRows<Traits, kShares> >= 12 ? 4 : 2;
#pragma unroll kAtATime
  for (int row = static_cast<int>(threadIdx.x) / 128; row < own_rows; row += 3) {
    const uint32_t from =
        shared_address(shared.sums + (first_row + row) * Traits::kSumsRow + column);
    float4 own[kShares], sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int c = 0; c < kShares; c++)
      own[c] = load_remote4(cluster_address(from, first_cta + c * groups));
    if (weights[row * kShares] < 0) continue;
#pragma unroll
    for (int c = 0; c < kShares; c++) {
      const float weight = weights[row * kShares + c];
      if (weight == 0) continue;  // nothing may have been written
      sum.x += own[c].x * weight, sum.y += own[c].y * weight;
      sum.z += own[c].z * weight, sum.w += own[c].w * weight;
    }
    bf16* out = problem.out + (flat + first_row + row) * Traits::kLatent + column;
    *reinterpret_cast<uint2*>(out) = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
  }
}

template <class Traits>
__device__ void merge_cluster(const DecodeProblem& problem, const DecodeLaunch& launch,
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

}  // namespace loza::cuda::attention
