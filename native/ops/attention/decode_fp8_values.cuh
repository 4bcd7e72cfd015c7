// Absorbed attention over an FP8 latent cache: the warpgroups that bring the queries into their order, sum
// up values, and stage the sums for decode_values.cuh to send or merge.
#pragma once

#include "ops/attention/decode_fp8_tensor.cuh"
#include "ops/attention/decode_values.cuh"

namespace loza::cuda::attention {

template <class Traits>
struct Fp8Values {
  float sums[Traits::kChains][Traits::kSums];  // pair 8 i + 2 j + b, column half: 4 i + 2 half + b
  int32_t group, warp, lane;                   // group: which 256 columns
  Ring<2> turn;                                // which p
};

// ---- Queries --------------------------------------------------------------------------------------

// Two neighbouring columns of q in kQueryUnit: in f16 beside codes, in bf16 beside rotated keys.
__device__ __forceinline__ uint32_t scale_query(uint32_t pair, bool latent) {
  const float low = __uint_as_float(pair << 16) * kQueryUnit;
  const float high = __uint_as_float(pair & 0xffff0000u) * kQueryUnit;
  return latent ? pack_half(low, high) : pack(low, high);
}

// 64 columns of a pair, in place. With column 16 j + 4 s + 2 o + b at position 16 s + 8 o + 2 j + b, thread
// j's operands of four instructions are 16 neighbouring columns of a key.
__device__ inline void arrange_columns(bf16* panel, int row, bool latent) {
  char* base = reinterpret_cast<char*>(panel);
  uint32_t in[32], out[32];
#pragma unroll
  for (int chunk = 0; chunk < 8; chunk++) {
    const auto value = *reinterpret_cast<const uint4*>(base + chunk_offset(row, chunk));
    in[4 * chunk] = value.x, in[4 * chunk + 1] = value.y;
    in[4 * chunk + 2] = value.z, in[4 * chunk + 3] = value.w;
  }
#pragma unroll
  for (int s = 0; s < 4; s++)
#pragma unroll
    for (int o = 0; o < 2; o++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        out[8 * s + 4 * o + j] = scale_query(in[8 * j + 2 * s + o], latent);
#pragma unroll
  for (int chunk = 0; chunk < 8; chunk++)
    *reinterpret_cast<uint4*>(base + chunk_offset(row, chunk)) =
        make_uint4(out[4 * chunk], out[4 * chunk + 1], out[4 * chunk + 2], out[4 * chunk + 3]);
}

template <class Traits>
__device__ void arrange_queries(DecodeStorage<Traits>& shared, int lane) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) - 128; i < Traits::kRows * Traits::kPanels; i += 256) {
    const int panel = i / Traits::kRows;
    arrange_columns(shared.q[panel], i % Traits::kRows, panel < Traits::kLatentPanels);
  }
  proxy_fence();
  warp_arrive(&shared.q_ready, lane);
}

// ---- Sums -----------------------------------------------------------------------------------------

template <class Traits>
__device__ __forceinline__ void shrink_fp8_sums(const DecodeStorage<Traits>& shared,
                                                Fp8Values<Traits>& state) {
  const Softmax* softmax = shared.softmax[state.turn.index] + state.lane % 4;
  bool any = false;
#pragma unroll
  for (int i = 0; i < Traits::kRows / 8; i++) {
    const float2 shrink = *reinterpret_cast<const float2*>(softmax[i * 4].shrink);
    any = any || shrink.x != 1.0f || shrink.y != 1.0f;
  }
  if (!__any_sync(kFullWarp, any)) return;
#pragma unroll
  for (int i = 0; i < Traits::kRows / 8; i++) {
    const float2 shrink = *reinterpret_cast<const float2*>(softmax[i * 4].shrink);
#pragma unroll
    for (auto& chain : state.sums) {
      chain[4 * i] *= shrink.x, chain[4 * i + 1] *= shrink.y;
      chain[4 * i + 2] *= shrink.x, chain[4 * i + 3] *= shrink.y;
    }
  }
}

// 8 columns of the four keys that are a thread's part of an instruction.
struct Columns {
  uint2 keys[4];
};

// Keys behind the highest position may have any codes, and 0 times NaN is not 0. Each warp clears what it
// reads itself.
template <class Traits>
__device__ __forceinline__ void clear_unseen(Fp8Tile& tile, int keys,
                                             const Fp8Values<Traits>& state) {
  uint8_t* codes = tile.codes[state.group * 2 + state.warp / 2];
  for (int row = keys + state.lane / 4; row < kTileKeys; row += kLanes / 4)
    *reinterpret_cast<uint4*>(codes + chunk_offset(row, state.warp % 2 * 4 + state.lane % 4)) =
        make_uint4(0, 0, 0, 0);
  proxy_fence();  // before a copy into the same place
  __syncwarp();
}

// sums (+)= codes^T p^T over a tile. Waits for p, and for its turn
// behind the next tile's scores, when the first operands are made; gives the tile back when the last are.
template <class Traits>
__device__ __forceinline__ void multiply_columns(DecodeStorage<Traits>& shared, const Fp8Tile& tile,
                                                 uint64_t* tile_empty, int groups, bool first_tile,
                                                 bool last_tile, Fp8Values<Traits>& state) {
  const int group = state.lane / 4, part = state.lane % 4, warp = state.warp;
  const uint8_t* codes = tile.codes[state.group * 2 + warp / 2];
  const int chunk = warp % 2 * 4 + group / 2;
  const int first = shuffled(2 * part), second = shuffled(2 * part + 1);
  const uint8_t* rows[2] = {codes + chunk_offset(first, chunk) + group % 2 * 8,
                            codes + chunk_offset(second, chunk) + group % 2 * 8};
  Columns columns;
  const auto load = [&](int step) {
#pragma unroll
    for (int k = 0; k < 4; k++)
      columns.keys[k] =
          *reinterpret_cast<const uint2*>(rows[k % 2] + (step * 16 + k / 2 * 8) * 128);
  };
  // Of chain m and the one after it: m row 2 m + half, keys `pair` of the thread's two pairs.
  const auto convert = [&](uint32_t(&to)[2][4], int word) {
    const auto get = [&](int k) { return word == 0 ? columns.keys[k].x : columns.keys[k].y; };
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const uint32_t both =
            __byte_perm(get(2 * pair), get(2 * pair + 1), m == 0 ? 0x5140 : 0x7362);
        widen_codes(both, to[m][2 * pair], to[m][2 * pair + 1]);
      }
  };
  uint32_t operands[2][2][4];
  const uint64_t p = wgmma_descriptor(shared.p[state.turn.index]);
  load(0);
#pragma unroll
  for (int index = 0; index < 2 * kTileKeys / 16; index++) {  // two chains of a step each
    const int step = index / 2, word = index % 2;
    if (index >= 2) wgmma_wait<1>();
    convert(operands[word], word);
    pin_operands(operands[word]);
    if (word == 1 && step + 1 < kTileKeys / 16) load(step + 1);
    if (index == 0) {
      barrier_wait(&shared.p_full[state.turn.index], state.turn.parity);
      Ring<2> next = state.turn;
      next.advance();
      if (!last_tile) barrier_wait(&shared.scored[next.index], next.parity);
      if (!first_tile) shrink_fp8_sums(shared, state);
    }
    if (index == 2 * kTileKeys / 16 - 1) warp_arrive_all(tile_empty, state.lane, groups);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < 2; m++)
      wgmma_f16(state.sums[2 * word + m], operands[word][m], wgmma_advance(p, step * 32),
                !first_tile || step > 0);
    wgmma_commit();
  }
  wgmma_wait<0>();
#pragma unroll
  for (auto& chain : state.sums) wgmma_pin(chain);
}

// ---- Results --------------------------------------------------------------------------------------

// store(i, b, column, values): eight neighbouring columns of pair 8 i + 2 j + b.
template <class Traits, class Store>
__device__ __forceinline__ void for_each_run(const Fp8Values<Traits>& state, const Store& store) {
  const int column = state.group * Traits::kColumns + state.warp * 64 + state.lane / 4 * 8;
#pragma unroll
  for (int i = 0; i < Traits::kRows / 8; i++)
#pragma unroll
    for (int b = 0; b < 2; b++) {
      float values[8];
#pragma unroll
      for (int c = 0; c < 8; c++) values[c] = state.sums[c / 2][4 * i + c % 2 * 2 + b];
      store(i * 8 + state.lane % 4 * 2 + b, column, values);
    }
}

template <class Traits, bool kPartial>
__device__ void stage_fp8(DecodeStorage<Traits>& shared, const Fp8Values<Traits>& state) {
  if constexpr (kPartial) find_peaks(shared, state);
  values_sync();
  for_each_run(state, [&](int row, int column, float(&values)[8]) {
    const float factor = staged_factor<Traits, kPartial>(shared, row);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      words[i] = pack_staged<kPartial>(values[2 * i] * factor, values[2 * i + 1] * factor);
    *reinterpret_cast<uint4*>(shared.staged + row * Traits::kStagedRow + column) =
        make_uint4(words[0], words[1], words[2], words[3]);
  });
}

template <class Traits>
__device__ void sum_fp8_values(const DecodeProblem& problem, const DecodeLaunch& launch,
                               DecodeStorage<Traits>& shared) {
  Fp8Values<Traits> state;
  state.group = static_cast<int>(threadIdx.x) / 128 - 1;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  Ring<Traits::kStages> stage;
  uint32_t work_parity = 0, q_parity = 0;
  for (;; work_parity ^= 1) {
    barrier_wait(&shared.work_full, work_parity);
    const int first = shared.work.first, end = shared.work.end;
    const bool last = shared.last_work;
    if (end == kNoMoreWork) return;
    const int unit_tiles = shared.work.unit.tiles;
    const int last_keys = shared.work.unit.highest % kTileKeys + 1;  // of the unit's last tile
    if (first < end) {
      barrier_wait(&shared.q_full, q_parity), q_parity ^= 1;
      arrange_queries(shared, state.lane);
    }
    for (int tile = first; tile < end; tile++, stage.advance()) {
      barrier_wait(&shared.k_full[stage.index], stage.parity);
      if (tile + 1 == unit_tiles) clear_unseen(shared.tiles[stage.index], last_keys, state);
      multiply_columns(shared, shared.tiles[stage.index], &shared.k_empty[stage.index],
                       launch.groups, tile == first, tile + 1 == end, state);
      warp_arrive(&shared.p_empty[state.turn.index], state.lane);
      state.turn.advance();
    }
    if (shared.work.slot < 0 && first < end)
      stage_fp8<Traits, false>(shared, state);
    else if (first < end)
      stage_fp8<Traits, true>(shared, state);
    if (first < end && (launch.parts > 0 || shared.work.slot < 0))
      store_staged(problem, launch.scratch, shared);
    if (last) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

}  // namespace loza::cuda::attention
