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
                                     int32_t position_end) {
  KeyWalk walk;
  walk.position_end = position_end;
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

// A query tile of one head, with what the table of segments says about it.
struct Item {
  QueryTile tile;
  Work work;             // head -1: there is none
  int32_t position_end;  // behind the last position of its rows
};

template <class Traits>
struct Producer {
  const PrefillProblem& problem;
  const PrefillPlan& plan;
  const PrefillMaps& maps;
  PrefillStorage<Traits>& shared;
  int32_t head_group;                 // heads whose keys share the L2
  uint32_t tiles = 0, items = 0;      // so far: they name stages and phases
  int32_t tile_count = 0, taken = 0;  // the item after the next one

  static __device__ void wait_empty(uint64_t* barrier, uint32_t use) {
    if (use > 0) barrier_wait(barrier, (use - 1) & 1);
  }

  // Which tile and head an item is. Heads come in groups, the last tiles (which see the most keys) first;
  // the lightest quarter of the tiles, of all heads, is kept for the end, so that all CTAs end together.
  __device__ void locate(int32_t item, int32_t& tile, int32_t& head) const {
    const int32_t light = min(tile_count / 4, problem.range.local_blocks);
    const int32_t heavy = tile_count - light;
    const bool at_end = item >= heavy * problem.heads;
    if (at_end) item -= heavy * problem.heads;
    const int32_t group = at_end ? problem.heads : head_group;
    const int32_t count = at_end ? light : heavy;  // tiles to go through with each group
    const int32_t first_head = item / (count * group) * group;
    const int32_t heads = min(group, problem.heads - first_head);
    item -= first_head * count;
    tile = count - 1 - item / heads + (at_end ? 0 : light);
    head = first_head + item % heads;
  }

  // What the item reads for the first time is on its way to the L2 when the item begins.
  __device__ Item take_item() {
    if (taken >= tile_count * problem.heads) return {{}, {-1, 0, 0, 0}, 0};
    int32_t index, head;
    locate(taken, index, head);
    taken = atomicAdd(plan.next_item, 1);
    const QueryTile tile = plan.tiles[index];
    const Segment s = read_segment(problem, tile.segment);
    const int32_t position = tile.block * kBlockTokens;
    const int32_t end = min(s.query_position + s.query_count, position + Traits::kQueryTile);
    const Work work{head, s.query_row + position - s.query_position,
                    max(0, s.query_position - position), end - position};
    for (int row = work.row; row < work.row + Traits::kQueryTile; row += Traits::kConsumerRows) {
      for (int panel = 0; panel < Traits::kDepth; panel += Traits::kPanel)
        tma_prefetch(maps.q, panel, work.head, row);
      if (problem.merges) tma_prefetch(maps.out, 0, work.head, row);
    }
    return {tile, work, end};
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
      tma_load(shared.k[stage][p], maps.kv, full, p * Traits::kPanel, head, key_row);
    for (int p = 0; p < Traits::kRope / Traits::kPanel; p++)
      tma_load(shared.k[stage][kNopePanels + p], maps.k_rope, full, p * Traits::kPanel, key_row);
  }

  __device__ void load_values(int32_t key_row, int head) {
    const uint32_t stage = tiles % Traits::kStages;
    uint64_t* full = &shared.v_full[stage];
    wait_empty(&shared.v_empty[stage], tiles / Traits::kStages);
    barrier_arrive_expect(full, Traits::kValueBytes);
    for (int p = 0; p < Traits::kValue / Traits::kPanel; p++)
      tma_load(shared.v[stage][p], maps.kv, full, Traits::kNope + p * Traits::kPanel, head,
               key_row);
  }

  // One item; returns the next, taken once both stages are filled. The first keys come before the
  // queries, whose memory is in use longer.
  __device__ Item load_item(const Item& item) {
    const int32_t position = item.tile.block * kBlockTokens, head = item.work.head;
    KeyWalk walk = start_walk(problem, item.tile, item.position_end);
    bool more = find_key(problem, plan, walk);
    if (!more) return take_item();  // its rows stay as they are
    Item next;
    for (int n = 0; more; n++, tiles++) {
      const int32_t begin = walk.begin;
      const int32_t key_row = begin + walk.row_shift;
      const int32_t tile_end = (begin / Traits::kKeyTile + 1) * Traits::kKeyTile;
      KeyTile keys{min(tile_end, walk.end) - begin, position - begin, 0};
      walk.begin = tile_end;
      more = find_key(problem, plan, walk);
      keys.last = !more;
      load_keys(key_row, head, keys);
      for (int group = 0; n == 0 && group < Traits::kConsumers; group++)
        load_queries(group, item.work);
      load_values(key_row, head);
      if (n == 1 || (n == 0 && !more)) next = take_item();
    }
    items++;
    return next;
  }

  __device__ void run() {
    tile_count = *plan.tile_count;
    taken = atomicAdd(plan.next_item, 1);
    for (Item item = take_item(); item.work.head >= 0;) item = load_item(item);
    for (int group = 0; group < Traits::kConsumers; group++) load_queries(group, {-1, 0, 0, 0});
  }
};

}  // namespace loza::cuda::attention
