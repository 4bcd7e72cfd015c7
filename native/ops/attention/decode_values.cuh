// Absorbed attention with Hopper's matrix instructions, second half: the sums of values, where they
// go, and how partial sums are merged.
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

// sums (+)= p k, or its transpose k^T p^T, over a tile.
template <class Traits>
__device__ void multiply_values(const DecodeStorage<Traits>& shared, int stage, bool accumulate,
                                ValueState<Traits>& state) {
  constexpr int kGroupPanels = Traits::kLatentPanels / 2;
  const bf16* k = shared.k[stage][state.group * kGroupPanels];
  const uint64_t p = wgmma_descriptor(shared.p);
  wgmma_fence();
#pragma unroll
  for (int chain = 0; chain < Traits::kChains; chain++) {
    const uint64_t v =
        wgmma_descriptor(k + chain * kTileKeys * Traits::kChainColumns, Traits::kPanelBytes);
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; step++) {
      const uint64_t own_p = wgmma_advance(p, step * 32), own_v = wgmma_advance(v, step * 2048);
      if constexpr (Traits::kSwapped)
        wgmma_bf16<1, 0>(state.sums[chain], own_v, own_p, accumulate || step > 0);
      else
        wgmma_bf16<0, 1>(state.sums[chain], own_p, own_v, accumulate || step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (auto& chain : state.sums) wgmma_pin(chain);
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
        const int column = first + chain * Traits::kChainColumns + state.warp * 16 + i % 2 * 8 + (lane / 4 & ~1);
        store(i / 2, column, odd ? other : own, odd ? own : other);
      }
  }
}

// ---- Where the sums go ----------------------------------------------------------------------------

__device__ inline float log_sum(float highest, float total) {
  return (highest + __log2f(total)) * kLn2;
}

// The unit's whole: results.
template <class Traits>
__device__ void store_results(const DecodeProblem& problem, const Unit& unit,
                              const ValueState<Traits>& state,
                              const float (&total)[kRowsStored<Traits>]) {
  bf16* out = problem.out + int64_t{unit.flat} * Traits::kLatent;
  for_each_pair(state, [&](int index, int column, float left, float right) {
    const int row = stored_row(state, index);
    if (row >= unit.rows || total[index] == 0) return;
    const float inverse = 1 / total[index];
    *reinterpret_cast<uint32_t*>(out + row * Traits::kLatent + column) =
        pack(left * inverse, right * inverse);
  });
}

template <class Traits>
__device__ void store_partial(const DecodeScratch& scratch, const Work& work,
                              const ValueState<Traits>& state) {
  float* sums = scratch.sums + int64_t{work.slot} * Traits::kRows * Traits::kLatent;
  for_each_pair(state, [&](int index, int column, float left, float right) {
    const int row = stored_row(state, index);
    if (row < work.unit.rows)
      *reinterpret_cast<float2*>(sums + row * Traits::kLatent + column) = make_float2(left, right);
  });
}

// The rows' highest score and total, by the first values warpgroup.
template <class Traits>
__device__ void store_stats(const DecodeProblem& problem, const DecodeScratch& scratch,
                            const Work& work, const DecodeStorage<Traits>& shared) {
  const int row = static_cast<int>(threadIdx.x) % 128;
  if (row >= work.unit.rows) return;
  const float highest = shared.highest[row], total = shared.total[row];
  if (work.slot >= 0) {
    auto* stats = reinterpret_cast<float2*>(scratch.stats);
    stats[work.slot * Traits::kRows + row] = make_float2(highest, total);
  } else if (problem.lse != nullptr && total != 0) {
    problem.lse[work.unit.flat + row] = log_sum(highest, total);
  }
}

// For the other CTAs of the cluster, over the tiles, which nobody reads any more.
template <class Traits>
__device__ void share_sums(DecodeStorage<Traits>& shared, const ValueState<Traits>& state,
                           bool any) {
  if (!any) return;
  named_barrier_sync(kValuesBarrier, 256);
  for_each_pair(state, [&](int index, int column, float left, float right) {
    float* row = shared.sums + stored_row(state, index) * Traits::kExchangeRow;
    *reinterpret_cast<float2*>(row + column) = make_float2(left, right);
  });
}

template <class Traits>
__device__ void sum_values(const DecodeProblem& problem, const DecodeLaunch& launch,
                           DecodeStorage<Traits>& shared) {
  ValueState<Traits> state;
  state.group = static_cast<int>(threadIdx.x) / 128 - 1;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  Ring<Traits::kStages> stage;
  Ring<2> slot;
  uint32_t p_parity = 0;
  for (;; slot.advance()) {
    barrier_wait(&shared.work_full[slot.index], slot.parity);
    const Work& work = shared.work[slot.index];
    if (work.end == kNoMoreWork) return;
    const int first = work.first, end = work.end;
    float total[kRowsStored<Traits>];
    for (int tile = first; tile < end; tile++, stage.advance()) {
      for (auto& barrier : shared.k_full[stage.index]) barrier_wait(&barrier, stage.parity);
      barrier_wait(&shared.p_full, p_parity), p_parity ^= 1;
      if (tile > first) shrink_sums(shared, state);
      multiply_values(shared, stage.index, tile > first, state);
      if (tile + 1 == end) {
#pragma unroll
        for (int i = 0; i < kRowsStored<Traits>; i++)
          total[i] = shared.total[stored_row(state, i)];
        if (launch.parts > 0 && state.group == 0)
          store_stats(problem, launch.scratch, work, shared);
      }
      __syncwarp();
      if (state.lane == 0) {
        barrier_arrive(&shared.p_empty);
        barrier_arrive(&shared.k_empty[stage.index]);
      }
    }
    if (launch.parts == 0)
      share_sums(shared, state, first < end);
    else if (work.slot < 0)
      store_results(problem, work.unit, state, total);
    else
      store_partial(launch.scratch, work, state);
    warp_arrive(&shared.work_empty[slot.index], state.lane);
  }
}

// ---- Merging --------------------------------------------------------------------------------------

__device__ __forceinline__ float load_remote(uint32_t address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ float4 load_remote4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Every CTA of the cluster merges its share of the rows, in ascending order of keys.
template <class Traits>
__device__ void merge_cluster(const DecodeProblem& problem, const DecodeLaunch& launch,
                              DecodeStorage<Traits>& shared) {
  const Work& work = shared.work[0];
  if (work.end == kNoMoreWork) return;  // the same in the whole cluster
  cluster_arrive();
  cluster_wait();
  const int thread = static_cast<int>(threadIdx.x), ctas = launch.cluster_ctas;
  const int own_rows = Traits::kRows / ctas;
  const int first_row = static_cast<int>(cluster_rank()) * own_rows;
  float* weights = reinterpret_cast<float*>(shared.p);  // [rows, ctas]
  if (thread < own_rows) {
    const int row = first_row + thread;
    const uint32_t highest = shared_address(&shared.highest[row]);
    const uint32_t total = shared_address(&shared.total[row]);
    float best = negative_infinity(), sum = 0;
    for (int c = 0; c < ctas; c++) best = fmaxf(best, load_remote(cluster_address(highest, c)));
    for (int c = 0; c < ctas; c++) {
      const float own = load_remote(cluster_address(highest, c));
      const float weight = own == negative_infinity() ? 0.0f : exp2_fast(own - best);
      if (weight > 0) sum += weight * load_remote(cluster_address(total, c));
      weights[thread * ctas + c] = weight;
    }
    for (int c = 0; c < ctas; c++) weights[thread * ctas + c] *= 1 / sum;
    if (problem.lse != nullptr && row < work.unit.rows && best != negative_infinity())
      problem.lse[work.unit.flat + row] = log_sum(best, sum);
    if (best == negative_infinity() || row >= work.unit.rows) weights[thread * ctas] = -1;
  }
  named_barrier_sync(kMergeBarrier, Traits::kMergeThreads);
  constexpr int kVectors = Traits::kLatent / 4;
  for (int i = thread; i < own_rows * kVectors; i += Traits::kMergeThreads) {
    const int row = i / kVectors, column = i % kVectors * 4;
    if (weights[row * ctas] < 0) continue;  // sees nothing
    const uint32_t from =
        shared_address(shared.sums + (first_row + row) * Traits::kExchangeRow + column);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int c = 0; c < ctas; c++) {
      const float weight = weights[row * ctas + c];
      if (weight == 0) continue;  // nothing was written
      const float4 own = load_remote4(cluster_address(from, c));
      sum.x += own.x * weight, sum.y += own.y * weight;
      sum.z += own.z * weight, sum.w += own.w * weight;
    }
    *reinterpret_cast<uint2*>(problem.out +
                              int64_t{work.unit.flat + first_row + row} * Traits::kLatent +
                              column) = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
  }
  cluster_arrive();
  cluster_wait();  // the others still read this CTA's shared memory
}

}  // namespace loza::cuda::attention
