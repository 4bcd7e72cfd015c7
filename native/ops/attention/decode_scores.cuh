// Absorbed attention with Hopper's matrix instructions: the warpgroup that makes scores, masks them and
// turns them into the numerators of the softmax.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

template <class Traits>
struct ScoreState {
  uint32_t held[Traits::kHeldPanels + 1][Traits::kPanel / 16][4];  // queries, as operands
  float scores[Traits::kScores];
  float highest[Traits::kScoreRows];  // of this thread's rows, in powers of two
  float total[Traits::kScoreRows];    // this thread's keys only
  int32_t warp, lane;
  int32_t turn = 0;  // which exchange buffer is next
  uint32_t p_parity = 0;
};

// Asked for here, because the producer may still be busy with the first keys.
template <class Traits>
__device__ void ask_for_queries(const TensorMap& q_map, const Unit& unit,
                                DecodeStorage<Traits>& shared, const Ring<Traits::kFronts>& ring) {
  constexpr int kBytes = Traits::kPanels * Traits::kRows * Traits::kPanel * sizeof(bf16);
  barrier_arrive_expect(&shared.q_full, kBytes);
  if constexpr (Traits::kHeldPanels == 0) {
    tma_load(shared.q, q_map, &shared.q_full, 0, unit.flat, 0);
  } else {
    barrier_wait(&shared.front_empty[ring.index], ring.parity ^ 1);
    for (int i = 0; i < kFrontPanels; i++)
      tma_load(shared.front[ring.index][i], q_map, &shared.q_full, 0, unit.flat, panel_of(i));
    for (int i = kFrontPanels; i < Traits::kPanels; i++)
      tma_load(shared.q[i - kFrontPanels], q_map, &shared.q_full, 0, unit.flat, panel_of(i));
    for (auto& barrier : shared.front_full[ring.index]) barrier_arrive(&barrier);
  }
}

// From a front's place, which is then given back with the first numerators.
template <class Traits>
__device__ void hold_queries(DecodeStorage<Traits>& shared, Ring<Traits::kFronts>& ring,
                             ScoreState<Traits>& state) {
  const int row = state.warp * 16 + state.lane % 16;
#pragma unroll
  for (int i = 0; i < Traits::kHeldPanels; i++)
#pragma unroll
    for (int step = 0; step < Traits::kPanel / 16; step++)
      ldmatrix_x4(state.held[i][step],
                  reinterpret_cast<const char*>(shared.front[ring.index][i]) +
                      tile_offset<Traits::kPanel>(row, step * 2 + state.lane / 16));
  ring.advance();
}

template <class Traits>
__device__ void begin_scores(const DecodeProblem& problem, const TensorMap& q_map, const Unit& unit,
                             DecodeStorage<Traits>& shared, const TileRing<Traits>& ring,
                             ScoreState<Traits>& state) {
  if (threadIdx.x == 0) ask_for_queries(q_map, unit, shared, ring.front);
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++)
    state.highest[r] = negative_infinity(), state.total[r] = 0;
  const int row = static_cast<int>(threadIdx.x);
  if (row < Traits::kRows) {
    const int query = (unit.flat + row) / problem.heads;
    const int limit = row < unit.rows ? problem.positions[query * problem.positions_step] : -1;
    shared.limit[row] = limit;
    shared.peak[row] = 0;
    shared.local[row] =
        problem.range.first_local_block(max(0, limit) / kBlockTokens) * kBlockTokens;
  }
  named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
}

template <class Traits>
__device__ void multiply_keys(DecodeStorage<Traits>& shared, const TileRing<Traits>& ring,
                              ScoreState<Traits>& state) {
  const int front = ring.front.index, back = ring.back.index;
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < Traits::kPanels; i++) {
    if (i == 0) barrier_wait(&shared.front_full[front][0], ring.front.parity);
    if (i == Traits::kFirstPanels) barrier_wait(&shared.front_full[front][1], ring.front.parity);
    if (i == kFrontPanels) barrier_wait(&shared.back_full[back], ring.back.parity);
    const uint64_t k = wgmma_descriptor(i < kFrontPanels ? shared.front[front][i]
                                                         : shared.back[back][i - kFrontPanels]);
    const bool held = i < Traits::kHeldPanels;
    const int panel = Traits::kHeldPanels == 0 ? panel_of(i) : i - Traits::kHeldPanels;
    const uint64_t q = wgmma_descriptor(shared.q[held ? 0 : panel]);
#pragma unroll
    for (int step = 0; step < Traits::kPanel / 16; step++) {
      const uint64_t a = wgmma_advance(Traits::kSwapped ? k : q, step * 32);
      const uint64_t b = wgmma_advance(Traits::kSwapped ? q : k, step * 32);
      if (held)
        wgmma_bf16<0>(state.scores, state.held[i % (Traits::kHeldPanels + 1)][step], b,
                      i + step > 0);
      else
        wgmma_bf16<0, 0>(state.scores, a, b, i + step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(state.scores);
}

// Hides what a row does not see. Keys behind the highest position may hold anything: their columns
// become zeros, because 0 times NaN is not 0.
template <class Traits>
__device__ void mask_scores(const Unit& unit, int first_key, DecodeStorage<Traits>& shared,
                            const TileRing<Traits>& ring, const KeyRange& range,
                            ScoreState<Traits>& state) {
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++) {
    const int half = i / 2 % 2, pair = i % 2, octet = i / 4;
    const int row =
        score_row<Traits>(state.warp, state.lane, Traits::kSwapped ? octet * 2 + pair : half);
    const int key = first_key + (Traits::kSwapped ? state.warp * 16 + state.lane / 4 + half * 8
                                                  : octet * 8 + state.lane % 4 * 2 + pair);
    const bool near = key < range.sink_blocks * kBlockTokens || key >= shared.local[row];
    if (key > shared.limit[row] || !near) state.scores[i] = negative_infinity();
  }
  const int keys = unit.highest + 1 - first_key;
  constexpr int kChunks = Traits::kLatentPanels * Traits::kPanel / kChunk;
  for (int i = max(0, keys) * kChunks + static_cast<int>(threadIdx.x) % Traits::kScoreThreads;
       i < kTileKeys * kChunks; i += Traits::kScoreThreads) {
    const int at = i % kChunks / 8;  // of the latent panels
    bf16* panel =
        at < 4 ? shared.front[ring.front.index][1 + at] : shared.back[ring.back.index][at - 4];
    reinterpret_cast<uint4*>(panel)[i / kChunks * 8 + i % 8] = make_uint4(0, 0, 0, 0);
  }
}

// The highest score of each of the thread's rows in this tile.
template <class Traits>
__device__ void find_highest(DecodeStorage<Traits>& shared, ScoreState<Traits>& state,
                             float (&best)[Traits::kScoreRows]) {
#pragma unroll
  for (auto& value : best) value = negative_infinity();
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++) {
    float& value = best[Traits::kSwapped ? i / 4 * 2 + i % 2 : i / 2 % 2];
    value = fmaxf(value, state.scores[i]);
  }
  if constexpr (!Traits::kSwapped) {
#pragma unroll
    for (auto& value : best) value = quad_max(value);
  } else {
    const int turn = state.turn;
    state.turn ^= 1;
#pragma unroll
    for (int r = 0; r < Traits::kScoreRows; r++) {
#pragma unroll
      for (int offset = 4; offset < kLanes; offset *= 2)
        best[r] = fmaxf(best[r], __shfl_xor_sync(kFullWarp, best[r], offset));
      if (state.lane < 4)
        shared.exchange[turn][state.warp][score_row<Traits>(0, state.lane, r)] = best[r];
    }
    named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
#pragma unroll
    for (int r = 0; r < Traits::kScoreRows; r++) {
      const int row = score_row<Traits>(0, state.lane, r);
#pragma unroll
      for (int w = 0; w < 4; w++) best[r] = fmaxf(best[r], shared.exchange[turn][w][row]);
    }
  }
}

// Scores become the softmax's numerators; `shrink` is by how much the sums so far do.
template <class Traits>
__device__ void soften(ScoreState<Traits>& state, const float (&best)[Traits::kScoreRows],
                       float scale, float (&shrink)[Traits::kScoreRows]) {
  float base[Traits::kScoreRows];
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++) {
    const float highest = fmaxf(state.highest[r], best[r] * scale);
    base[r] = highest == negative_infinity() ? 0.0f : highest;
    shrink[r] = exp2_fast(state.highest[r] - base[r]);
    state.highest[r] = highest;
    state.total[r] *= shrink[r];
  }
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++) {
    const int row = Traits::kSwapped ? i / 4 * 2 + i % 2 : i / 2 % 2;
    state.scores[i] = exp2_fast(fmaf(state.scores[i], scale, -base[row]));
    state.total[row] += state.scores[i];
  }
}

__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}
__device__ __forceinline__ void store_transposed(uint32_t to, uint32_t left, uint32_t right) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to),
               "r"(left), "r"(right)
               : "memory");
}

// p [kRows, 64 keys], either way.
template <class Traits>
__device__ void store_numerators(DecodeStorage<Traits>& shared, const ScoreState<Traits>& state) {
  const uint32_t p = shared_address(shared.p);
  const int lane = state.lane, warp = state.warp;
  const auto& s = state.scores;
  if constexpr (Traits::kSwapped) {
#pragma unroll
    for (int i = 0; i < Traits::kScores / 4; i++)
      store_transposed(p + tile_offset<kTileKeys>(i * 8 + lane % 8, warp * 2 + lane / 8 % 2),
                       pack(s[4 * i], s[4 * i + 1]), pack(s[4 * i + 2], s[4 * i + 3]));
  } else {
#pragma unroll
    for (int i = 0; i < Traits::kScores; i += 8) {
      const uint32_t values[4] = {pack(s[i], s[i + 1]), pack(s[i + 2], s[i + 3]),
                                  pack(s[i + 4], s[i + 5]), pack(s[i + 6], s[i + 7])};
      store_matrices(p + tile_offset<kTileKeys>(warp * 16 + lane % 16, i / 4 + lane / 16), values);
    }
  }
}

// After the last tile: the rows' highest scores and totals, for whoever stores the sums.
template <class Traits>
__device__ void store_totals(DecodeStorage<Traits>& shared, ScoreState<Traits>& state,
                             bool broken) {
  const int turn = state.turn;
  if (Traits::kSwapped) state.turn ^= 1;
  float total[Traits::kScoreRows];
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++) {
    total[r] = state.total[r];
    if constexpr (Traits::kSwapped) {
#pragma unroll
      for (int offset = 4; offset < kLanes; offset *= 2)
        total[r] += __shfl_xor_sync(kFullWarp, total[r], offset);
      if (state.lane < 4)
        shared.exchange[turn][state.warp][score_row<Traits>(0, state.lane, r)] = total[r];
    } else {
      total[r] = quad_sum(total[r]);
    }
  }
  if constexpr (Traits::kSwapped) named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++) {
    const int row = score_row<Traits>(state.warp, state.lane, r);
    if constexpr (Traits::kSwapped) {
      const auto& own = shared.exchange[turn];
      total[r] = (own[0][row] + own[1][row]) + (own[2][row] + own[3][row]);
      if (state.warp != 0 || state.lane >= 4) continue;
    } else if (state.lane % 4 != 0) {
      continue;
    }
    shared.highest[row] = state.highest[r];
    shared.total[row] = broken && shared.limit[row] >= 0 ? not_a_number() : total[r];
  }
}

template <class Traits>
__device__ void store_shrink(DecodeStorage<Traits>& shared, const ScoreState<Traits>& state,
                             const float (&shrink)[Traits::kScoreRows]) {
  const bool writes = Traits::kSwapped ? state.warp == 0 && state.lane < 4 : state.lane % 4 == 0;
  if (!writes) return;
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++)
    shared.shrink[score_row<Traits>(state.warp, state.lane, r)] = shrink[r];
}

// From a tile's scores to its numerators in shared memory.
template <class Traits>
__device__ __forceinline__ void publish_scores(const DecodeProblem& problem,
                                               DecodeStorage<Traits>& shared, int tile,
                                               const TileRing<Traits>& ring,
                                               ScoreState<Traits>& state) {
  const Unit& unit = shared.work.unit;
  const int block = absolute_block(unit, tile / kBlockTiles);
  const int first_key = block * kBlockTokens + tile % kBlockTiles * kTileKeys;
  if (first_key + kTileKeys - 1 > unit.lowest ||
      (block >= problem.range.sink_blocks && block < unit.all_local))
    mask_scores(unit, first_key, shared, ring, problem.range, state);
  float best[Traits::kScoreRows], shrink[Traits::kScoreRows];
  find_highest(shared, state, best);
  soften(state, best, problem.scale, shrink);
  barrier_wait(&shared.p_empty, state.p_parity ^ 1), state.p_parity ^= 1;
  store_numerators(shared, state);
  store_shrink(shared, state, shrink);
  if (tile + 1 == shared.work.end) store_totals(shared, state, unit.broken);
  proxy_fence();
  warp_arrive(&shared.p_full, state.lane);
}

template <class Traits>
__device__ void make_scores(const DecodeProblem& problem, const DecodeLaunch& launch,
                            const TensorMap& q_map, DecodeStorage<Traits>& shared) {
  ScoreState<Traits> state;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  TileRing<Traits> ring;
  for (uint32_t parity = 0;; parity ^= 1) {
    barrier_wait(&shared.work_full, parity);
    const int first = shared.work.first, end = shared.work.end;
    const bool last = shared.last_work;
    if (end == kNoMoreWork) return;
    begin_scores(problem, q_map, shared.work.unit, shared, ring, state);
    barrier_wait(&shared.q_full, parity);
    if constexpr (Traits::kHeldPanels > 0) hold_queries(shared, ring.front, state);
    for (int tile = first; tile < end; tile++, ring.advance()) {
      multiply_keys(shared, ring, state);
      publish_scores(problem, shared, tile, ring, state);
    }
    if (last) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

}  // namespace loza::cuda::attention
