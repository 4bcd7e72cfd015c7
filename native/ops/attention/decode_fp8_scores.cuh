// Absorbed attention over an FP8 latent cache: the warpgroup that makes scores, masks them and turns them
// into the numerators of the softmax.
#pragma once

#include "ops/attention/decode_fp8_tensor.cuh"

namespace loza::cuda::attention {

template <class Traits>
struct Fp8Scores {
  float scores[Traits::kScores];  // [8 i + 2 j + b, half]: 4 i + 2 half + b
  float total[Traits::kScoreRows];
  float scale[2];  // of the thread's two keys
  int32_t key[2];  // in the tile
  int32_t warp, lane;
  Ring<2> turn;  // which p
};

template <class Traits>
__device__ void begin_fp8_scores(const DecodeProblem& problem, const Unit& unit,
                                 DecodeStorage<Traits>& shared, Fp8Scores<Traits>& state) {
#pragma unroll
  for (float& total : state.total) total = 0;
  const int row = static_cast<int>(threadIdx.x);
  if (row < Traits::kRows) {
    const int query = (unit.flat + row) / problem.heads;
    const int limit = row < unit.rows ? problem.positions[query * problem.positions_step] : -1;
    shared.highest[row] = negative_infinity();
    shared.peak[row] = 0;
    shared.limit[row] = limit;
    shared.local[row] =
        problem.range.first_local_block(max(0, limit) / kBlockTokens) * kBlockTokens;
  }
  named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
}

// ---- Scores ---------------------------------------------------------------------------------------

// 16 bytes of a key's row: the thread's part of four instructions.
struct Chunk {
  uint32_t words[4];
  __device__ __forceinline__ void load(const void* row_0, uint32_t offset) {
    const auto value = *reinterpret_cast<const uint4*>(static_cast<const char*>(row_0) + offset);
    words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
  }
};

// The thread's parts of 64 columns of its two keys.
struct KeyChunks {
  Chunk halves[2];
};

// A group is 64 columns, four instructions: the rope part, then the latents. A group's operands are made
// while the one before is multiplied, from chunks that were read while that one's were made.
template <class Traits>
struct KeyReader {
  const Fp8Tile& tile;
  const int32_t (&key)[2];
  int32_t part;

  __device__ __forceinline__ void load_rope(KeyChunks (&to)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int c = 0; c < 2; c++)
        to[c].halves[half].load(tile.rope, chunk_offset(key[half], 2 * part + c));
  }
  __device__ __forceinline__ void load(KeyChunks& to, int group) const {
#pragma unroll
    for (int half = 0; half < 2; half++)
      to.halves[half].load(tile.codes[group / 2], chunk_offset(key[half], group % 2 * 4 + part));
  }
};

__device__ __forceinline__ void rope_operands(uint32_t (&to)[4][4], const KeyChunks (&from)[2]) {
#pragma unroll
  for (int step = 0; step < 4; step++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      to[step][i] = from[step / 2].halves[i % 2].words[step % 2 * 2 + i / 2];
}

__device__ __forceinline__ void code_operands(uint32_t (&to)[4][4], const KeyChunks& from) {
#pragma unroll
  for (int step = 0; step < 4; step++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      widen_codes(from.halves[half].words[step], to[step][half], to[step][2 + half]);
    }
}

// The rope group comes first, and is bf16.
template <bool kRope, class Traits>
__device__ __forceinline__ void multiply_group(const bf16* q, uint32_t (&operands)[4][4],
                                               Fp8Scores<Traits>& state) {
  const uint64_t descriptor = wgmma_descriptor(q);
  pin_operands(operands);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const uint64_t own = wgmma_advance(descriptor, step * 32);
    if constexpr (kRope)
      wgmma_bf16<0>(state.scores, operands[step], own, step > 0);
    else
      wgmma_f16(state.scores, operands[step], own, true);
  }
  wgmma_commit();
}

template <class Traits>
__device__ __forceinline__ void multiply_codes(const DecodeStorage<Traits>& shared,
                                               const Fp8Tile& tile, Fp8Scores<Traits>& state) {
  constexpr int kGroups = Traits::kLatentPanels;
  const KeyReader<Traits> reader{tile, state.key, state.lane % 4};
  uint32_t operands[2][4][4];
  KeyChunks chunks[2];
  reader.load_rope(chunks);
  rope_operands(operands[1], chunks);
  multiply_group<true>(shared.q[kGroups], operands[1], state);
  reader.load(chunks[0], 0);
#pragma unroll
  for (int group = 0; group < kGroups; group++) {
    if (group + 1 < kGroups) reader.load(chunks[(group + 1) % 2], group + 1);
    if (group > 0) wgmma_wait<1>();  // of what used the same operands
    code_operands(operands[group % 2], chunks[group % 2]);
    multiply_group<false>(shared.q[group], operands[group % 2], state);
  }
#pragma unroll
  for (int half = 0; half < 2; half++) state.scale[half] = tile.scales[state.key[half]];
  wgmma_wait<0>();
  wgmma_pin(state.scores);
}

// ---- Softmax --------------------------------------------------------------------------------------

// Hides what a pair does not see. What lies behind the highest position may be anything, its scale too.
template <class Traits>
__device__ void mask_fp8_scores(const Unit& unit, int first_key,
                                const DecodeStorage<Traits>& shared, const KeyRange& range,
                                Fp8Scores<Traits>& state) {
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++) {
    const int half = i / 2 % 2, row = i / 4 * 8 + state.lane % 4 * 2 + i % 2;
    const int key = first_key + state.key[half];
    const bool near = key < range.sink_blocks * kBlockTokens || key >= shared.local[row];
    if (key > shared.limit[row] || !near) state.scores[i] = negative_infinity();
  }
#pragma unroll
  for (int half = 0; half < 2; half++)
    if (first_key + state.key[half] > unit.highest) state.scale[half] = 1;
}

// Reduces a value each of kCount pairs over the eight lanes that have the same pairs. Lanes are left with
// fewer pairs each: `result` is of pair `pair` (of the warp's) and of the next one if kCount is 16.
template <int kCount, class Combine>
__device__ __forceinline__ void reduce_pairs(float (&values)[kCount], int lane,
                                             const Combine& combine) {
  int count = kCount;
#pragma unroll
  for (int offset = 16; offset >= 4; offset /= 2) {
    if (count == 1) {
      values[0] = combine(values[0], __shfl_xor_sync(kFullWarp, values[0], offset));
      continue;
    }
    count /= 2;
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) {
      if (i >= count) break;
      const float sent = upper ? values[i] : values[i + count];
      const float kept = upper ? values[i + count] : values[i];
      values[i] = combine(kept, __shfl_xor_sync(kFullWarp, sent, offset));
    }
  }
}

// Reduced values of all pairs, a row a warp. The pair of a thread's value i is 8 (i / 2) + 2 j + i % 2.
template <class Traits, class Combine>
__device__ __forceinline__ void exchange_pairs(DecodeStorage<Traits>& shared,
                                               float (&values)[Traits::kScoreRows],
                                               const Fp8Scores<Traits>& state,
                                               const Combine& combine) {
  constexpr int kCount = Traits::kScoreRows;
  reduce_pairs(values, state.lane, combine);
  float* to = shared.exchange[state.warp] + state.lane % 4 * 2;
  const int group = state.lane / 4;
  if constexpr (kCount == 16) {
    *reinterpret_cast<float2*>(to + 8 * group) = make_float2(values[0], values[1]);
  } else {
    const int index = group / (8 / kCount);
    if (group % (8 / kCount) == 0) to[index / 2 * 8 + index % 2] = values[0];
  }
  named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
}

// One thread for two pairs: what scores are measured from, and by how much the sums so far shrink.
template <class Traits>
__device__ __forceinline__ void find_bases(DecodeStorage<Traits>& shared, int turn) {
  const int pair = static_cast<int>(threadIdx.x);
  if (pair < Traits::kRows / 2) {
    Softmax next;
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const int row = 2 * pair + b;
      const float before = shared.highest[row];
      float highest = before;
#pragma unroll
      for (int w = 0; w < 4; w++) highest = fmaxf(highest, shared.exchange[w][row]);
      next.base[b] = highest == negative_infinity() ? 0.0f : highest;
      next.shrink[b] = exp2_fast(before - next.base[b]);
      shared.highest[row] = highest;
    }
    *reinterpret_cast<float4*>(&shared.softmax[turn][pair]) =
        *reinterpret_cast<const float4*>(&next);
  }
  named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
}

// Of powers of two.
__device__ __forceinline__ float log2_of(float power) {
  return static_cast<float>(static_cast<int>(__float_as_uint(power) >> 23) - 127);
}
__device__ __forceinline__ float inverse_of(float power) {
  return __uint_as_float((254u << 23) - __float_as_uint(power));
}

__device__ __forceinline__ void store_keys(uint32_t to, uint32_t left, uint32_t right) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to),
               "r"(left), "r"(right)
               : "memory");
}

// Scores become p', in shared memory as [kRows, 64 keys].
template <class Traits>
__device__ __forceinline__ void store_fp8_numerators(DecodeStorage<Traits>& shared,
                                                     Fp8Scores<Traits>& state) {
  const int lane = state.lane, turn = state.turn.index;
  const float inverse[2] = {inverse_of(state.scale[0]), inverse_of(state.scale[1])};
#pragma unroll
  for (int i = 0; i < Traits::kRows / 8; i++) {
    const Softmax* softmax = &shared.softmax[turn][i * 4 + lane % 4];
    const float4 found = *reinterpret_cast<const float4*>(softmax);
    const float base[2] = {found.x, found.y}, shrink[2] = {found.z, found.w};
    float(&values)[Traits::kScores] = state.scores;
#pragma unroll
    for (int k = 0; k < 4; k++) values[4 * i + k] = exp2_fast(values[4 * i + k] - base[k % 2]);
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const float own = fmaf(values[4 * i + b], inverse[0], values[4 * i + 2 + b] * inverse[1]);
      state.total[2 * i + b] = fmaf(state.total[2 * i + b], shrink[b], own);
    }
  }
  // Apart from the above, which would otherwise wait for each store.
  const uint32_t p = shared_address(shared.p[turn]);
#pragma unroll
  for (int i = 0; i < Traits::kRows / 8; i++)
    store_keys(p + tile_offset<kTileKeys>(i * 8 + lane % 8, state.warp * 2 + lane / 8 % 2),
               pack_half(state.scores[4 * i], state.scores[4 * i + 1]),
               pack_half(state.scores[4 * i + 2], state.scores[4 * i + 3]));
}

// After the last tile: the pairs' totals, for whoever stores the sums.
template <class Traits>
__device__ void store_fp8_totals(DecodeStorage<Traits>& shared, Fp8Scores<Traits>& state,
                                 bool broken) {
  exchange_pairs(shared, state.total, state, [](float a, float b) { return a + b; });
  const int row = static_cast<int>(threadIdx.x);
  if (row >= Traits::kRows) return;
  const auto& own = shared.exchange;
  const float total = (own[0][row] + own[1][row]) + (own[2][row] + own[3][row]);
  shared.total[row] = broken && shared.limit[row] >= 0 ? not_a_number() : total;
}

// From a tile's scores to its numerators.
template <class Traits>
__device__ __forceinline__ void publish_fp8_scores(const DecodeProblem& problem,
                                                   DecodeStorage<Traits>& shared, int tile,
                                                   Fp8Scores<Traits>& state) {
  const Unit& unit = shared.work.unit;
  const int block = absolute_block(unit, tile / kBlockTiles);
  const int first_key = block * kBlockTokens + tile % kBlockTiles * kTileKeys;
  const float unit_scale = problem.scale / kQueryUnit;
  const float factor[2] = {state.scale[0] * unit_scale, state.scale[1] * unit_scale};
  const float power[2] = {log2_of(state.scale[0]), log2_of(state.scale[1])};
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++)
    state.scores[i] = fmaf(state.scores[i], factor[i / 2 % 2], power[i / 2 % 2]);
  if (first_key + kTileKeys - 1 > unit.lowest ||
      (block >= problem.range.sink_blocks && block < unit.all_local))
    mask_fp8_scores(unit, first_key, shared, problem.range, state);
  float best[Traits::kScoreRows];
#pragma unroll
  for (int i = 0; i < Traits::kScoreRows; i++)
    best[i] = fmaxf(state.scores[i / 2 * 4 + i % 2], state.scores[i / 2 * 4 + 2 + i % 2]);
  exchange_pairs(shared, best, state, [](float a, float b) { return fmaxf(a, b); });
  barrier_wait(&shared.p_empty[state.turn.index], state.turn.parity ^ 1);
  find_bases(shared, state.turn.index);
  store_fp8_numerators(shared, state);
  if (tile + 1 == shared.work.end) store_fp8_totals(shared, state, unit.broken);
  proxy_fence();
  warp_arrive(&shared.p_full[state.turn.index], state.lane);
  state.turn.advance();
}

template <class Traits>
__device__ void make_fp8_scores(const DecodeProblem& problem, const DecodeLaunch& launch,
                                DecodeStorage<Traits>& shared) {
  Fp8Scores<Traits> state;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  state.key[0] = state.warp * 16 + shuffled(state.lane / 4);
  state.key[1] = state.key[0] + 8;
  Ring<Traits::kStages> stage;
  uint32_t q_parity = 0;
  for (uint32_t parity = 0;; parity ^= 1) {
    barrier_wait(&shared.work_full, parity);
    const int first = shared.work.first, end = shared.work.end;
    const bool last = shared.last_work;
    if (end == kNoMoreWork) return;
    begin_fp8_scores(problem, shared.work.unit, shared, state);
    if (first < end) barrier_wait(&shared.q_ready, q_parity), q_parity ^= 1;
    for (int tile = first; tile < end; tile++, stage.advance()) {
      barrier_wait(&shared.k_full[stage.index], stage.parity);
      multiply_codes(shared, shared.tiles[stage.index], state);
      warp_arrive(&shared.scored[state.turn.index], state.lane);
      publish_fp8_scores(problem, shared, tile, state);
    }
    if (last) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

}  // namespace loza::cuda::attention
