// Absorbed attention with Hopper's matrix instructions: the warp that reads a CTA's work and brings
// keys to shared memory, whatever their type.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

// The tables' entries of the blocks of a run: `count` from `begin` on, a lane each, and the 32 behind
// them, which are asked for long before they are used.
struct BlockWindow {
  int32_t begin, count, entry, ahead;
};

// A CTA's part in the copies of a tile, which it shares with `groups` - 1 others of its cluster.
struct CopyShare {
  int32_t lane, groups, group;  // group: which of them
  uint16_t sharers;             // these CTAs of the cluster, a bit each
  uint64_t policy;

  __device__ void load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y) const {
    if (groups == 1)
      tma_load(to, map, barrier, x, y, policy);
    else
      tma_load_multicast(to, map, barrier, x, y, sharers, policy);
  }
  __device__ void load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y,
                       int z) const {
    if (groups == 1)
      tma_load(to, map, barrier, x, y, z, policy);
    else
      tma_load_multicast(to, map, barrier, x, y, z, sharers, policy);
  }
};

// Tiles copies: begin_work(), once for each work; load(slot), a whole warp, the tile of keys from a cache row on, after those before it,
// kAhead of them before any is given back; load_queries(unit), once for each work.
template <class Traits, class Tiles>
struct Producer {
  const DecodeProblem& problem;
  DecodeStorage<Traits>& shared;
  Tiles tiles;
  int32_t lane;
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

  __device__ void load_tile(const Work& work, int tile) {
    const int first_row = slot_of(work, tile / kBlockTiles);
    if (first_row < 0 && lane == 0) shared.work.unit.broken = true;
    // Behind the cache's end there are zeros.
    tiles.load(first_row < 0 ? static_cast<int>(problem.slots)
                             : first_row + tile % kBlockTiles * kTileKeys);
  }

  // Tiles below `settled` hold no key that this step writes, and may be copied while the kernels
  // before this one still run. Entries are asked for before any bulk copy, behind which they would
  // have to wait.
  __device__ void load(const Work& work, int settled, bool last) {
    window.ahead = entry_of(work, window.begin + window.count + lane);
    hand_out(work, last);
    tiles.begin_work();
    int tile = work.first;
    if (!waited) {
      const int early = min(min(work.end, settled), work.first + Tiles::kAhead);
      for (; tile < early; tile++) load_tile(work, tile);
      wait_for_prerequisites();
      waited = true;
    }
    if (work.first < work.end) tiles.load_queries(work.unit);
    for (; tile < work.end; tile++) load_tile(work, tile);
  }
};

template <class Tiles, class Traits>
__device__ void produce(const DecodeProblem& problem, const DecodeLaunch& launch,
                        DecodeStorage<Traits>& shared, const typename Tiles::Maps& maps) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int groups = launch.groups, group = cta % groups, share = cta / groups % launch.shares;
  const auto sharers = static_cast<uint16_t>(((1 << groups) - 1) << (share * groups));
  const uint64_t policy = launch.read_once ? kEvictFirst : kEvictNormal;
  const auto read = [&](int at) {  // the plan is older than the kernels before: they need not end
    return __ldcg(reinterpret_cast<const int*>(launch.records + at) + lane);
  };
  int at = cta / (groups * launch.shares), word = read(at);
  const CopyShare copies{lane, groups, group, sharers, policy};
  Producer<Traits, Tiles> producer{problem, shared, Tiles{shared, launch, maps, copies}, lane, {}};
  if (lane == 0) producer.tiles.prefetch_maps();
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
