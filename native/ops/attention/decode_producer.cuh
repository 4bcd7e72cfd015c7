// Absorbed attention with Hopper's matrix instructions: the warp that finds a CTA's work and brings
// queries and keys to shared memory.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

struct DecodeMaps {
  const TensorMap* q;  // [panels, rows x heads, 64], box [panels, kRows, 64]
  const TensorMap* k;  // [panels, slots, 64], box [1, 64, 64]
};

template <class Traits>
struct Producer {
  const DecodeProblem& problem;
  DecodeStorage<Traits>& shared;
  DecodeMaps maps;
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

  // The table's entry for a visible block.
  __device__ int entry_of(const Unit& unit, int visible) const {
    if (unit.broken) return -1;
    const int64_t entry = visible < unit.sinks
                              ? visible
                              : int64_t{absolute_block(unit, visible)} -
                                    problem.first_local[unit.sequence * problem.first_local_step] +
                                    problem.range.sink_blocks;
    return problem.block_table[unit.sequence * problem.table_row + entry];
  }

  // The block's first cache row, or -1 where it is not in the cache.
  __device__ int slot_of(const Unit& unit, int visible, int entry) const {
    const int64_t slot = int64_t{entry} * kBlockTokens;
    const int keys =
        min(kBlockTokens, unit.highest + 1 - absolute_block(unit, visible) * kBlockTokens);
    return slot >= 0 && slot + keys <= problem.slots ? static_cast<int>(slot) : -1;
  }

  // A tile's panels, divided among the CTAs that share it.
  __device__ void load_tile(int slot) {
    auto& full = shared.k_full[stage.index];
    for (auto& barrier : full)
      barrier_arrive_expect(&barrier, Traits::kArrivalPanels * Traits::kPanelBytes);
    for (int panel = group; panel < Traits::kPanels; panel += groups) {
      uint64_t* barrier = &full[panel / Traits::kArrivalPanels];
      bf16* to = shared.k[stage.index][panel];
      if (groups == 1)
        tma_load(to, *maps.k, barrier, 0, slot, panel, policy);
      else
        tma_load_multicast(to, *maps.k, barrier, 0, slot, panel, sharers, policy);
    }
  }

  // `entry`: of the first 32 blocks, one a lane.
  __device__ void load_keys(const Work& work, int entry) {
    int first_block = work.first / kBlockTiles;
    const int last_block = (work.end - 1) / kBlockTiles;
    for (int tile = work.first; tile < work.end; tile++, stage.advance()) {
      const int block = tile / kBlockTiles;
      if (block >= first_block + kLanes) {
        first_block = block;
        entry = block + lane <= last_block ? entry_of(work.unit, block + lane) : 0;
      }
      const int slot =
          slot_of(work.unit, block, __shfl_sync(kFullWarp, entry, block - first_block));
      barrier_wait(&shared.k_empty[stage.index], stage.parity ^ 1);
      if (lane != 0) continue;
      if (slot < 0) shared.work.unit.broken = true;
      // Behind the cache's end there are zeros.
      load_tile(slot < 0 ? static_cast<int>(problem.slots) : slot + tile % kBlockTiles * kTileKeys);
    }
  }

  // The table is asked before any bulk copy, behind which it would have to wait.
  __device__ void load(const Work& work) {
    const int block = work.first / kBlockTiles + lane;
    const bool any = work.first < work.end;
    const int entry = any && block <= (work.end - 1) / kBlockTiles ? entry_of(work.unit, block) : 0;
    hand_out(work);
    if (!any) return;
    load_queries(work.unit);
    load_keys(work, entry);
  }
};

// Of the unit's pairs, those of this CTA.
template <class Traits>
__device__ void take_rows(Unit& unit, int group) {
  unit.flat += group * Traits::kRows;
  unit.rows = max(0, min(Traits::kRows, unit.rows - group * Traits::kRows));
}

template <class Traits>
__device__ void produce(const DecodeProblem& problem, const DecodeLaunch& launch,
                        DecodeStorage<Traits>& shared, DecodeMaps maps) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int groups = launch.groups, group = cta % groups, unit_rows = groups * Traits::kRows;
  const int share = cta / groups % launch.shares;
  const auto sharers = static_cast<uint16_t>(((1 << groups) - 1) << (share * groups));
  const uint64_t policy = launch.read_once ? kEvictFirst : kEvictNormal;
  Producer<Traits> producer{problem, shared, maps, lane, groups, group, sharers, policy, {}};
  if (lane == 0) prefetch(*maps.q), prefetch(*maps.k);
  Work work;
  if (launch.parts > 0) {
    Line line(problem, lane, unit_rows, cta / groups, launch.parts);
    cluster_wait();  // all barriers are ready
    for (int splits; line.next(problem, work, splits);) {
      take_rows<Traits>(work.unit, group);
      producer.load(work);
      for (int row = lane; work.first == 0 && row < work.unit.rows; row += kLanes)
        launch.scratch.splits[work.unit.flat + row] = {2 * cta + work.slot, splits, row, groups};
    }
  } else {
    const int cluster = cta / (groups * launch.shares);
    const bool found =
        find_share(problem, lane, unit_rows, launch.row_units, cluster, share, launch.shares, work);
    cluster_wait();
    if (found) {
      take_rows<Traits>(work.unit, group);
      return producer.load(work);
    }
  }
  work.end = kNoMoreWork;
  producer.hand_out(work);
}

}  // namespace loza::cuda::attention
