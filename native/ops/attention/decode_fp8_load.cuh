// Absorbed attention over an FP8 latent cache: the warp that finds a CTA's work and brings queries and
// tiles of codes to shared memory.
//
// The planes of a block (ops/latent_cache.h) are rows of 512, 128 and 128 bytes, and a block is 161 and
// 644 such rows: so one view a plane, which begins at the cache's first byte, has all blocks in it.
#pragma once

#include "ops/attention/decode_fp8_tensor.cuh"

namespace loza::cuda::attention {

struct Fp8Maps {
  const TensorMap* q;       // bf16 [panels, rows x heads, 64], box [panels, kRows, 64]
  const TensorMap* codes;   // bytes [4, blocks * 161, 128], box [1, 64, 128]
  const TensorMap* rope;    // bf16 [blocks * 644, 64], box [64, 64]
  const TensorMap* scales;  // f32 [blocks * 644, 32], box [2, 32]
};

template <class Traits>
struct Fp8Producer {
  const DecodeProblem& problem;
  DecodeStorage<Traits>& shared;
  Fp8Maps maps;
  int32_t lane, groups, group;  // group: which of the CTAs that share tiles
  uint16_t sharers;             // these CTAs of the cluster, a bit each
  uint64_t policy;
  Ring<Traits::kStages> stage;
  uint32_t work_parity = 1;

  __device__ void hand_out(const Work& work) {
    barrier_wait(&shared.work_empty, work_parity);
    work_parity ^= 1;
    if (lane == 0) {
      shared.work = work;
      barrier_arrive(&shared.work_full);
    }
    __syncwarp();
  }

  __device__ void load_queries(const Unit& unit) {
    if (lane != 0) return;
    barrier_arrive_expect(&shared.q_full, sizeof(shared.q));
    tma_load(shared.q, *maps.q, &shared.q_full, 0, unit.flat, 0, kEvictNormal);
  }

  // The block of a visible block, or -1 where the table names none in the cache.
  __device__ int block_of(const Unit& unit, int visible) const {
    if (unit.broken) return -1;
    const int64_t entry = visible < unit.sinks
                              ? visible
                              : int64_t{absolute_block(unit, visible)} -
                                    problem.first_local[unit.sequence * problem.first_local_step] +
                                    problem.range.sink_blocks;
    const int block = problem.block_table[unit.sequence * problem.table_row + entry];
    return block >= 0 && block < problem.slots / kBlockTokens ? block : -1;
  }

  __device__ void load_part(void* to, const TensorMap& map, int x, int y) {
    uint64_t* barrier = &shared.k_full[stage.index];
    if (groups == 1)
      tma_load(to, map, barrier, x, y, policy);
    else
      tma_load_multicast(to, map, barrier, x, y, sharers, policy);
  }

  __device__ void load_codes(void* to, int row, int panel) {
    uint64_t* barrier = &shared.k_full[stage.index];
    if (groups == 1)
      tma_load(to, *maps.codes, barrier, 0, row, panel, policy);
    else
      tma_load_multicast(to, *maps.codes, barrier, 0, row, panel, sharers, policy);
  }

  // A tile's parts, divided among the CTAs that share it.
  __device__ void load_tile(int block, int offset) {
    constexpr int kCodeRows = Traits::kRowBytes / 4, kRows = Traits::kRowBytes;  // of a block
    Fp8Tile& tile = shared.tiles[stage.index];
    barrier_arrive_expect(&shared.k_full[stage.index], Fp8Tile::kBytes);
    if (group == groups - 1) {
      load_part(tile.scales, *maps.scales, 0, block * kRows + 640 + offset / 32);
      load_part(tile.rope, *maps.rope, 0, block * kRows + 512 + offset);
    }
    for (int panel = group; panel < Traits::kCodePanels; panel += groups)
      load_codes(tile.codes[panel], block * kCodeRows + offset, panel);
  }

  // `block`: the first 32 ones, one a lane.
  __device__ void load_keys(const Work& work, int block) {
    int first_block = work.first / kBlockTiles;
    const int last_block = (work.end - 1) / kBlockTiles;
    for (int tile = work.first; tile < work.end; tile++, stage.advance()) {
      const int visible = tile / kBlockTiles;
      if (visible >= first_block + kLanes) {
        first_block = visible;
        block = visible + lane <= last_block ? block_of(work.unit, visible + lane) : 0;
      }
      const int own = __shfl_sync(kFullWarp, block, visible - first_block);
      barrier_wait(&shared.k_empty[stage.index], stage.parity ^ 1);
      if (lane != 0) continue;
      if (own < 0) shared.work.unit.broken = true;
      // Behind the cache's end there are zeros.
      load_tile(own < 0 ? static_cast<int>(problem.slots / kBlockTokens) : own,
                tile % kBlockTiles * kTileKeys);
    }
  }

  // The table is asked before any bulk copy, behind which it would have to wait.
  __device__ void load(const Work& work) {
    const int visible = work.first / kBlockTiles + lane;
    const bool any = work.first < work.end;
    const int block =
        any && visible <= (work.end - 1) / kBlockTiles ? block_of(work.unit, visible) : 0;
    hand_out(work);
    if (!any) return;
    load_queries(work.unit);
    load_keys(work, block);
  }

  // Of the unit's pairs, those of this CTA.
  __device__ void take_rows(Unit& unit) const {
    unit.flat += group * Traits::kRows;
    unit.rows = max(0, min(Traits::kRows, unit.rows - group * Traits::kRows));
  }
};

// By a whole warp: a share of a cluster's unit; false where the cluster has no unit.
__device__ inline bool find_fp8_share(const DecodeProblem& problem, const Fp8Launch& launch,
                                      int lane, int unit_rows, int cluster, int share, Work& work) {
  Place place;
  if (launch.row_units > 0) {
    const int first = problem.query_starts[0];
    place = find_sequence_of(problem, lane, first + cluster / launch.row_units);
    place.before = (place.before - first) * launch.row_units;
  } else {
    place = Sums(problem, lane, [&](int sequence) {
              return units_of(problem, rows_of(problem, sequence), unit_rows);
            }).find(cluster);
  }
  if (place.sequence >= problem.sequences) return false;
  const SequenceRows rows = rows_of(problem, place.sequence);
  if ((cluster - place.before) * unit_rows >= rows.count * problem.heads) return false;
  work.unit = describe_unit(problem, place.sequence, rows, cluster - place.before, unit_rows);
  const int tiles = (work.unit.tiles + launch.shares - 1) / launch.shares;
  work.first = min(work.unit.tiles, share * tiles);
  work.end = min(work.unit.tiles, work.first + tiles);
  work.slot = launch.shares == 1 ? -1 : 0;
  return true;
}

template <class Traits>
__device__ void produce_fp8(const DecodeProblem& problem, const Fp8Launch& launch,
                            DecodeStorage<Traits>& shared, const Fp8Maps& maps) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int groups = launch.groups, group = cta % groups, unit_rows = groups * Traits::kRows;
  const int share = cta / groups % launch.shares;
  const auto sharers = static_cast<uint16_t>(((1 << groups) - 1) << (share * groups));
  const uint64_t policy = launch.read_once ? kEvictFirst : kEvictNormal;
  Fp8Producer<Traits> producer{problem, shared, maps, lane, groups, group, sharers, policy, {}};
  if (lane == 0) prefetch(*maps.q), prefetch(*maps.codes), prefetch(*maps.rope);
  Work work;
  if (launch.parts > 0) {
    Line line(problem, lane, unit_rows, cta / groups, launch.parts);
    cluster_wait();  // all barriers are ready
    for (int splits; line.next(problem, work, splits);) {
      producer.take_rows(work.unit);
      producer.load(work);
      for (int row = lane; work.first == 0 && row < work.unit.rows; row += kLanes)
        launch.splits[work.unit.flat + row] = {2 * cta + work.slot, splits, row, groups};
    }
  } else {
    const int cluster = cta / (groups * launch.shares);
    const bool found = find_fp8_share(problem, launch, lane, unit_rows, cluster, share, work);
    cluster_wait();
    if (found) {
      producer.take_rows(work.unit);
      return producer.load(work);
    }
  }
  work.end = kNoMoreWork;
  producer.hand_out(work);
}

}  // namespace loza::cuda::attention
