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

// sums (+)= p k, or its transpose k^T p^T, over a tile, whose parts are given back one by one: the back
// first, because there are as many fronts or more.
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
    const bf16* k = chain < kHalf ? back : front;
    float(&sums)[Traits::kSums] = state.sums[(chain + kHalf) % Traits::kChains];
    const uint64_t v = wgmma_descriptor(k + chain % kHalf * kTileKeys * Traits::kChainColumns,
                                        Traits::kPanelBytes);
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; step++) {
      const uint64_t own_p = wgmma_advance(p, step * 32), own_v = wgmma_advance(v, step * 2048);
      if constexpr (Traits::kSwapped)
        wgmma_bf16<1, 0>(sums, own_v, own_p, accumulate || step > 0);
      else
        wgmma_bf16<0, 1>(sums, own_p, own_v, accumulate || step > 0);
    }
    if (chain % kHalf == kHalf - 1) wgmma_commit();
  }
  wgmma_wait<1>();
  warp_give_back(&shared.back_empty[ring.back.index], state.lane, groups);
  wgmma_wait<0>();
#pragma unroll
  for (auto& chain : state.sums) wgmma_pin(chain);
  warp_arrive(&shared.p_empty, state.lane);
  warp_give_back(&shared.front_empty[ring.front.index], state.lane, groups);
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

// Partial sums travel as f16, less a power of two that brings a row's highest to 1 up to 2 (where that
// is possible). The row's total loses it too, and its highest score gains it: so whoever merges them need
// not know.
__device__ __forceinline__ int peak_power(int peak) {
  return min(max((peak >> 23) - 127, -64), 126);
}
__device__ __forceinline__ float power_of_two(int power) {
  return __int_as_float((power + 127) << 23);
}

template <class Traits>
__device__ Stats partial_stats(const DecodeStorage<Traits>& shared, int row) {
  const int power = peak_power(shared.peak[row]);
  return {shared.highest[row] + static_cast<float>(power),
          shared.total[row] * power_of_two(-power)};
}

// The highest magnitude in each row of the sums; known after the next values_sync.
template <class Traits, class State>
__device__ void find_peaks(DecodeStorage<Traits>& shared, const State& state) {
  constexpr int kBegin = Traits::kSwapped ? 4 : 1, kEnd = Traits::kSwapped ? kLanes : 4;
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++) {
    float peak = 0;
#pragma unroll
    for (const auto& chain : state.sums)
#pragma unroll
      for (int i = 0; i < Traits::kSums; i++)
        if (r == (Traits::kSwapped ? i / 4 * 2 + i % 2 : i / 2 % 2))
          peak = fmaxf(peak, fabsf(chain[i]));
#pragma unroll
    for (int offset = kBegin; offset < kEnd; offset *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(kFullWarp, peak, offset));
    if (state.lane / kBegin % (kEnd / kBegin) == 0)
      atomicMax(&shared.peak[score_row<Traits>(state.warp, state.lane, r)], __float_as_int(peak));
  }
}

// What a row's sums are multiplied by, and how they are rounded.
template <class Traits, bool kPartial>
__device__ float staged_factor(const DecodeStorage<Traits>& shared, int row) {
  return kPartial ? power_of_two(-peak_power(shared.peak[row])) : 1 / shared.total[row];
}
template <bool kPartial>
__device__ uint32_t pack_staged(float left, float right) {
  return kPartial ? pack_half(left, right) : pack(left, right);
}

// Into shared memory, over the tiles: nobody reads those any more.
template <class Traits, bool kPartial>
__device__ void stage(DecodeStorage<Traits>& shared, const ValueState<Traits>& state) {
  if constexpr (kPartial) find_peaks(shared, state);
  values_sync();
  float factor[kRowsStored<Traits>];
#pragma unroll
  for (int i = 0; i < kRowsStored<Traits>; i++)
    factor[i] = staged_factor<Traits, kPartial>(shared, stored_row(state, i));
  for_each_pair(state, [&](int index, int column, float left, float right) {
    uint16_t* row = shared.staged + stored_row(state, index) * Traits::kStagedRow;
    *reinterpret_cast<uint32_t*>(row + column) =
        pack_staged<kPartial>(left * factor[index], right * factor[index]);
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
  constexpr uint32_t kBytes = Traits::kLatent * sizeof(uint16_t);
  const uint16_t* from = shared.staged + row * Traits::kStagedRow;
  const float total = shared.total[row];
  if (work.slot >= 0) {
    const int64_t to = scratch.place(row, 2 * static_cast<int>(blockIdx.x) + work.slot);
    scratch.stats[to] = partial_stats(shared, row);
    bulk_store(scratch.sums + to * Traits::kLatent, from, kBytes);
  } else if (total != 0) {  // else padding
    const int64_t to = work.unit.flat + row;
    if (problem.lse != nullptr) problem.lse[to] = log_sum(shared.highest[row], total);
    bulk_store(problem.out + to * Traits::kLatent, from, kBytes);
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
    const int queries = ring.front.index;
    if constexpr (Traits::kHeldPanels > 0) ring.front.advance();
    for (int tile = first; tile < end; tile++, ring.advance()) {
      for (auto& barrier : shared.front_full[ring.front.index])
        barrier_wait(&barrier, ring.front.parity);
      barrier_wait(&shared.back_full[ring.back.index], ring.back.parity);
      barrier_wait(&shared.p_full, p_parity), p_parity ^= 1;
      if (tile > first)
        shrink_sums(shared, state);
      else if constexpr (Traits::kHeldPanels > 0)  // whose first numerators came
        warp_give_back(&shared.front_empty[queries], state.lane, launch.groups);
      multiply_values(shared, ring, tile > first, launch.groups, state);
    }
    if (shared.work.slot < 0 && first < end)
      stage<Traits, false>(shared, state);
    else if (first < end)
      stage<Traits, true>(shared, state);
    if (first < end && (launch.parts > 0 || shared.work.slot < 0))
      store_staged(problem, launch.scratch, shared);
    if (last) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

// ---- Merging --------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 load_remote(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ __forceinline__ void store_remote(uint32_t address, const Stats& stats) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(stats.highest),
               "f"(stats.total)
               : "memory");
}

// sum += weight * eight values of partial sums.
__device__ __forceinline__ void add_weighted(float (&sum)[8], const uint4& values, float weight) {
  const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    sum[2 * i] = fmaf(pair.x, weight, sum[2 * i]);
    sum[2 * i + 1] = fmaf(pair.y, weight, sum[2 * i + 1]);
  }
}
__device__ __forceinline__ uint4 pack_scaled(const float (&sum)[8], float factor) {
  return make_uint4(pack(sum[0] * factor, sum[1] * factor), pack(sum[2] * factor, sum[3] * factor),
                    pack(sum[4] * factor, sum[5] * factor), pack(sum[6] * factor, sum[7] * factor));
}

// Rows that a CTA merges.
template <class Traits, int kShares>
inline constexpr int kOwnRows = (Traits::kRows + kShares - 1) / kShares;

// A share's stats of each row, to the CTA that merges the row. By the values warpgroups, which made
// them.
template <class Traits, int kShares>
__device__ void send_stats(DecodeStorage<Traits>& shared, int share, int first_cta, int groups) {
  constexpr int kOwn = kOwnRows<Traits, kShares>;
  const int row = static_cast<int>(threadIdx.x) - 128;
  if (row < 0 || row >= Traits::kRows) return;
  Stats stats{negative_infinity(), 0};
  if (shared.work.first < shared.work.end) stats = partial_stats(shared, row);
  const uint32_t to = shared_address(&shared.parts[share * kOwn + row % kOwn]);
  store_remote(cluster_address(to, first_cta + row / kOwn * groups), stats);
}

// How much each share of the unit weighs in rows of this CTA, [own rows, kShares]; negative where a
// row saw nothing.
template <class Traits, int kShares>
__device__ void weigh_shares(const DecodeProblem& problem, DecodeStorage<Traits>& shared,
                             int first_row, float* weights) {
  constexpr int kOwn = kOwnRows<Traits, kShares>;
  const int own = static_cast<int>(threadIdx.x), row = first_row + own;
  if (own >= kOwn || row >= Traits::kRows) return;
  Stats stats[kShares];
  float best = negative_infinity(), sum = 0;
#pragma unroll
  for (int c = 0; c < kShares; c++) stats[c] = shared.parts[c * kOwn + own];
#pragma unroll
  for (const Stats& part : stats) best = fmaxf(best, part.highest);
  const bool any = best != negative_infinity() && row < shared.work.unit.rows;
  float powers[kShares];
#pragma unroll
  for (int c = 0; c < kShares; c++) {
    powers[c] = stats[c].highest == negative_infinity() ? 0.0f : exp2_fast(stats[c].highest - best);
    sum += powers[c] * stats[c].total;
  }
#pragma unroll
  for (int c = 0; c < kShares; c++)
    weights[own * kShares + c] = any ? powers[c] * (1 / sum) : -1.0f;
  if (problem.lse != nullptr && any) problem.lse[shared.work.unit.flat + row] = log_sum(best, sum);
}

// Every CTA of the unit merges its share of the rows, in ascending order of keys.
template <class Traits, int kShares>
__device__ void merge_shares(const DecodeProblem& problem, int groups,
                             DecodeStorage<Traits>& shared) {
  constexpr int kOwn = kOwnRows<Traits, kShares>, kRowThreads = Traits::kLatent / 8;
  constexpr int kStep = Traits::kMergeThreads / kRowThreads;
  const int rank = static_cast<int>(cluster_rank()), first_cta = rank % groups;
  const int first_row = rank / groups * kOwn, own_rows = min(kOwn, Traits::kRows - first_row);
  send_stats<Traits, kShares>(shared, rank / groups, first_cta, groups);
  cluster_arrive();
  cluster_wait();
  float* weights = reinterpret_cast<float*>(shared.p);
  weigh_shares<Traits, kShares>(problem, shared, first_row, weights);
  named_barrier_sync(kMergeBarrier, Traits::kMergeThreads);
  const int column = static_cast<int>(threadIdx.x) % kRowThreads * 8;
  const int64_t flat = shared.work.unit.flat;
  constexpr int kAtATime = kShares <= 3 && kOwn >= 2 * kStep ? 4 : 2;
#pragma unroll kAtATime
  for (int row = static_cast<int>(threadIdx.x) / kRowThreads; row < own_rows; row += kStep) {
    const uint32_t from =
        shared_address(shared.staged + (first_row + row) * Traits::kStagedRow + column);
    uint4 own[kShares];
    float sum[8]{};
#pragma unroll
    for (int c = 0; c < kShares; c++)
      own[c] = load_remote(cluster_address(from, first_cta + c * groups));
    if (weights[row * kShares] < 0) continue;
#pragma unroll
    for (int c = 0; c < kShares; c++) {
      const float weight = weights[row * kShares + c];
      if (weight != 0) add_weighted(sum, own[c], weight);  // else nothing may have been written
    }
    bf16* out = problem.out + (flat + first_row + row) * Traits::kLatent + column;
    *reinterpret_cast<uint4*>(out) = pack_scaled(sum, 1);
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
