// Absorbed attention with Hopper's matrix instructions: the warp that reads a CTA's work and brings
// keys to shared memory.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

// The tables' entries of the blocks of a run: `count` from `begin` on, a lane each, and the 32 behind
// them, which are asked for long before they are used.
struct BlockWindow {
  int32_t begin, count, entry, ahead;
};

template <class Traits>
struct Producer {
  const DecodeProblem& problem;
  DecodeStorage<Traits>& shared;
  const TensorMap& map;         // of the cache: [panels, slots, 64], box [1, 64, 64]
  int32_t lane, groups, group;  // group: which of the CTAs that share tiles
  uint16_t sharers;             // these CTAs of the cluster, a bit each
  uint64_t policy;
  bool whole;
  TileRing<Traits> ring;
  BlockWindow window;
  int32_t shift = 0;  // from a local block to its table entry
  uint32_t work_parity = 1;
  bool waited = false;  // for the kernels before

  __device__ void hand_out(const Work& work, bool last) {
    barrier_wait(&shared.work_empty, work_parity);
    work_parity ^= 1;
    if (lane == 0) {
      shared.work = work;
      shared.last_work = last;
      barrier_arrive(&shared.work_full);
    }
    __syncwarp();
  }

  // The table's entry for a visible block, up to the run's last.
  __device__ int entry_of(const Work& work, int visible) const {
    const Unit& unit = work.unit;
    if (unit.broken || visible > (work.end - 1) / kBlockTiles) return -1;
    const int entry = visible < unit.sinks ? visible : absolute_block(unit, visible) + shift;
    return problem.block_table[unit.sequence * problem.table_row + entry];
  }

  // The first cache row of a visible block, or where it is not in the cache a row behind its end.
  __device__ int slot_of(const Work& work, int visible) {
    if (visible >= window.begin + window.count) {
      window.begin += window.count, window.count = kLanes, window.entry = window.ahead;
      window.ahead = entry_of(work, window.begin + kLanes + lane);
    }
    const int64_t slot =
        int64_t{__shfl_sync(kFullWarp, window.entry, visible - window.begin)} * kBlockTokens;
    const int keys = min(kBlockTokens,
                         work.unit.highest + 1 - absolute_block(work.unit, visible) * kBlockTokens);
    return slot >= 0 && slot + keys <= problem.slots ? static_cast<int>(slot) : -1;
  }

  // The panels [begin, end) of a tile, divided among the CTAs that share it.
  __device__ void load_panels(bf16 (*to)[kTileKeys * Traits::kPanel], uint64_t* barrier, int begin,
                              int end, int slot) {
    barrier_arrive_expect(barrier, (end - begin) * Traits::kPanelBytes);
    for (int i = begin + group; i < end; i += groups) {
      bf16* panel = to[i - begin];
      if (groups == 1)
        tma_load(panel, map, barrier, 0, slot, panel_of(i), policy);
      else
        tma_load_multicast(panel, map, barrier, 0, slot, panel_of(i), sharers, policy);
    }
  }

  __device__ void load_tile(const Work& work, int tile) {
    constexpr int kFirst = Traits::kFirstPanels;
    const int first_row = slot_of(work, tile / kBlockTiles);
    const int front = ring.front.index, back = ring.back.index;
    barrier_wait(&shared.front_empty[front], ring.front.parity ^ 1);
    if (whole) barrier_wait(&shared.back_empty[back], ring.back.parity ^ 1);
    // Behind the cache's end there are zeros.
    const int slot = first_row < 0 ? static_cast<int>(problem.slots)
                                   : first_row + tile % kBlockTiles * kTileKeys;
    if (lane == 0) {
      if (first_row < 0) shared.work.unit.broken = true;
      load_panels(shared.front[front], &shared.front_full[front][0], 0, kFirst, slot);
      load_panels(shared.front[front] + kFirst, &shared.front_full[front][1], kFirst, kFrontPanels,
                  slot);
    }
    barrier_wait(&shared.back_empty[back], ring.back.parity ^ 1);
    if (lane == 0)
      load_panels(shared.back[back], &shared.back_full[back], kFrontPanels, Traits::kPanels, slot);
    ring.advance();
  }

  // Tiles below `settled` hold no key that this step writes, and may be copied while the kernels
  // before this one still run. Entries are asked for before any bulk copy, behind which they would
  // have to wait.
  __device__ void load(const Work& work, int settled, bool last) {
    window.ahead = entry_of(work, window.begin + window.count + lane);
    hand_out(work, last);
    int tile = work.first;
    if (!waited) {
      const int early =
          min(min(work.end, settled), work.first + min(Traits::kFronts, Traits::kBacks));
      for (; tile < early; tile++) load_tile(work, tile);
      wait_for_prerequisites();
      barrier_wait(&shared.q_full, 0);  // queries must not queue up behind more keys
      waited = true;
    }
    for (; tile < work.end; tile++) load_tile(work, tile);
  }
};

// Of the unit's pairs, those of this CTA.
template <class Traits>
__device__ void take_rows(Unit& unit, int group) {
  unit.flat += group * Traits::kRows;
  unit.rows = max(0, min(Traits::kRows, unit.rows - group * Traits::kRows));
}

// Of the unit's tiles, those of this CTA.
__device__ inline void take_tiles(Work& work, int share, int shares) {
  const int tiles = (work.unit.tiles + shares - 1) / shares;
  work.first = min(work.unit.tiles, share * tiles);
  work.end = min(work.unit.tiles, work.first + tiles);
  work.slot = shares == 1 ? -1 : 0;
}

template <class Traits>
__device__ void produce(const DecodeProblem& problem, const DecodeLaunch& launch,
                        DecodeStorage<Traits>& shared, const TensorMap& map) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int groups = launch.groups, group = cta % groups, share = cta / groups % launch.shares;
  const auto sharers = static_cast<uint16_t>(((1 << groups) - 1) << (share * groups));
  const uint64_t policy = launch.read_once ? kEvictFirst : kEvictNormal;
  const auto read = [&](int at) {  // the plan is older than the kernels before: they need not end
    return __ldcg(reinterpret_cast<const int*>(launch.records + at) + lane);
  };
  int at = cta / (groups * launch.shares), word = read(at);
  if (lane == 0) prefetch(map);
  Producer<Traits> producer{problem, shared, map,          lane, groups, group,
                            sharers, policy, launch.whole, {},   {}};
  cluster_wait();  // all barriers are ready
  for (;;) {
    Work work = unpack_work(word);
    if (work.end == kNoMoreWork) return producer.hand_out(work, true);
    const int settled = __shfl_sync(kFullWarp, word, kSettledWord);
    const int next = __shfl_sync(kFullWarp, word, kNextWord);
    producer.shift = __shfl_sync(kFullWarp, word, kShiftWord);
    const int known = work.first / kBlockTiles;  // the first block whose entry the record has
    if (launch.parts == 0) take_tiles(work, share, launch.shares);
    take_rows<Traits>(work.unit, group);
    const int begin = work.first / kBlockTiles, skip = begin - known;
    producer.window = {begin, max(0, kRecordBlocks - skip),
                       __shfl_sync(kFullWarp, word, (kBlocksWord + skip + lane) % kLanes), 0};
    if (next > at) word = read(next);  // while this work is done
    producer.load(work, settled, next <= at);
    if (next <= at) return;
    at = next;
  }
}

}  // namespace loza::cuda::attention
