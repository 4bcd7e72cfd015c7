// The producer of the wgmma kernel of expanded attention: takes query tiles, walks the keys that each
// sees and keeps the stages of shared memory filled. All of it by one thread.
#pragma once

#include "cuda/tma.cuh"
#include "ops/attention/prefill_traits.cuh"

namespace loza::cuda::attention {

// The keys that a query tile sees, through all segments of its run, in tiles that never cross a block.
struct KeyWalk {
  int32_t segment;
  int32_t begin, end;    // positions still to come in this segment
  int32_t row_shift;     // from a position to its row of the workspace
  int32_t position_end;  // behind the last position that any row of the run's tile has
  int32_t sink_end, local_begin;
};

__device__ inline int32_t at_most_int(int64_t x) {
  return static_cast<int32_t>(x < INT32_MAX ? x : INT32_MAX);
}

__device__ inline void enter_segment(const PrefillProblem& problem, KeyWalk& walk, int index) {
  const Segment s = read_segment(problem, index);
  walk.segment = index;
  walk.begin = s.key_position;
  walk.end = min(s.key_position + s.key_count, walk.position_end);
  walk.row_shift = s.key_row - s.key_position;
}

__device__ inline KeyWalk start_walk(const PrefillProblem& problem, const QueryTile& tile,
                                     const Segment& s) {
  KeyWalk walk;
  walk.position_end = min((tile.block + 1) * kBlockTokens, s.query_position + s.query_count);
  walk.sink_end = at_most_int(int64_t{problem.range.sink_blocks} * kBlockTokens);
  walk.local_begin =
      at_most_int(int64_t{problem.range.first_local_block(tile.block)} * kBlockTokens);
  enter_segment(problem, walk, tile.segment);
  return walk;
}

// Moves to the next visible key; false behind the last.
__device__ inline bool find_key(const PrefillProblem& problem, const PrefillPlan& plan,
                                KeyWalk& walk) {
  for (;;) {
    if (walk.begin >= walk.sink_end) walk.begin = max(walk.begin, walk.local_begin);
    if (walk.begin < walk.end) return true;
    const int next = plan.chain[walk.segment];
    if (next < 0) return false;
    enter_segment(problem, walk, next);
  }
}

template <class Traits>
struct Producer {
  const PrefillProblem& problem;
  const PrefillPlan& plan;
  const PrefillMaps& maps;
  PrefillStorage<Traits>& shared;
  uint32_t tiles = 0, items = 0;  // so far: they name stages and phases

  static __device__ void wait_empty(uint64_t* barrier, uint32_t use) {
    if (use > 0) barrier_wait(barrier, (use - 1) & 1);
  }

  // Hands a consumer its rows of the query tile; Work with head -1 brings no rows.
  __device__ void load_queries(int group, const Work& work) {
    wait_empty(&shared.q_empty[group], items);
    shared.work[group] = work;
    if (work.head < 0) return barrier_arrive(&shared.q_full[group]);
    barrier_arrive_expect(&shared.q_full[group], Traits::kQueryBytes);
    for (int panel = 0; panel < Traits::kDepth / Traits::kPanel; panel++)
      tma_load(shared.q[group][panel], maps.q, &shared.q_full[group], panel * Traits::kPanel,
               work.head, work.row + group * Traits::kConsumerRows, kEvictFirst);
  }

  __device__ void load_keys(int32_t key_row, int head, const KeyTile& tile) {
    const uint32_t stage = tiles % Traits::kStages;
    uint64_t* full = &shared.k_full[stage];
    constexpr int kNopePanels = Traits::kNope / Traits::kPanel;
    wait_empty(&shared.k_empty[stage], tiles / Traits::kStages);
    shared.key_tile[stage] = tile;
    barrier_arrive_expect(full, Traits::kKeyBytes);
    for (int p = 0; p < kNopePanels; p++)
      tma_load(shared.k[stage][p], maps.kv, full, p * Traits::kPanel, head, key_row, kEvictLast);
    for (int p = 0; p < Traits::kRope / Traits::kPanel; p++)
      tma_load(shared.k[stage][kNopePanels + p], maps.k_rope, full, p * Traits::kPanel, key_row,
               kEvictLast);
  }

  __device__ void load_values(int32_t key_row, int head) {
    const uint32_t stage = tiles % Traits::kStages;
    uint64_t* full = &shared.v_full[stage];
    wait_empty(&shared.v_empty[stage], tiles / Traits::kStages);
    barrier_arrive_expect(full, Traits::kValueBytes);
    for (int p = 0; p < Traits::kValue / Traits::kPanel; p++)
      tma_load(shared.v[stage][p], maps.kv, full, Traits::kNope + p * Traits::kPanel, head, key_row,
               kEvictLast);
  }

  // One query tile of one head. The first keys come before the queries, whose memory is in use longer.
  __device__ void load_item(const QueryTile& tile, int head) {
    const Segment s = read_segment(problem, tile.segment);
    const int32_t position = tile.block * kBlockTokens;
    const Work work{head, s.query_row + position - s.query_position,
                    max(0, s.query_position - position),
                    min(Traits::kQueryTile, s.query_position + s.query_count - position)};
    KeyWalk walk = start_walk(problem, tile, s);
    bool more = find_key(problem, plan, walk);
    if (!more) return;  // its rows stay as they are
    for (bool first = true; more; first = false, tiles++) {
      const int32_t begin = walk.begin;
      const int32_t key_row = begin + walk.row_shift;
      const int32_t tile_end = (begin / Traits::kKeyTile + 1) * Traits::kKeyTile;
      KeyTile keys{min(tile_end, walk.end) - begin, position - begin, 0};
      walk.begin = tile_end;
      more = find_key(problem, plan, walk);
      keys.last = !more;
      load_keys(key_row, head, keys);
      for (int group = 0; first && group < Traits::kConsumers; group++) load_queries(group, work);
      load_values(key_row, head);
    }
    items++;
  }

  // Items in the order of their work: heads in groups that share the L2, the last tiles (which see the
  // most keys) first.
  __device__ void run(int head_group) {
    const int tile_count = *plan.tile_count;
    const int total = tile_count * problem.heads, in_group = tile_count * head_group;
    int item = atomicAdd(plan.next_item, 1);
    while (item < total) {
      const int next = atomicAdd(plan.next_item, 1);
      const int first_head = item / in_group * head_group, rest = item % in_group;
      const int heads = min(head_group, problem.heads - first_head);
      load_item(plan.tiles[tile_count - 1 - rest / heads], first_head + rest % heads);
      item = next;
    }
    for (int group = 0; group < Traits::kConsumers; group++) load_queries(group, {-1, 0, 0, 0});
  }
};

}  // namespace loza::cuda::attention
