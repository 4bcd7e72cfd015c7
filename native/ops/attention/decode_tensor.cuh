// Absorbed attention with Hopper's matrix instructions: latent 512, rope 64, bf16 cache.
//
// A CTA has three warpgroups and a warp that copies:
//   producer  finds the CTA's work (decode_plan.cuh) and brings queries and tiles of 64 keys to shared
//             memory with bulk tensor copies, ahead of the others by as many tiles as fit;
//   scores    q k^T of a tile, mask, online softmax; writes the numerators p and by how much the
//             sums so far shrink;
//   values    two warpgroups, 256 latent columns each: sums += p k[:, :512] in registers, while the
//             scores of the next tile are made.
// Rows (pairs of query and head) are the M side of the instructions, 64 at a time; or (`kSwapped`) the
// N side with keys and latent columns on M, so that 8 or 16 rows need no padding.
#pragma once

#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"
#include "ops/attention/decode_plan.cuh"

namespace loza::cuda::attention {

template <int kRows_, bool kSwapped_, int kStages_>
struct DecodeTraits {
  static constexpr int kRows = kRows_;  // pairs of query and head
  static constexpr bool kSwapped = kSwapped_;
  static constexpr int kStages = kStages_;
  static constexpr int kWidth = 576, kLatent = 512;
  static constexpr int kPanel = 64;  // columns of 128 bytes, which the copies permute
  static constexpr int kPanels = kWidth / kPanel, kLatentPanels = kLatent / kPanel;
  static constexpr int kArrivals = 3;  // barriers of a tile, so that scores can begin early
  static constexpr int kArrivalPanels = kPanels / kArrivals;
  static constexpr int kPanelBytes = kTileKeys * kPanel * 2;
  static constexpr int kScores = kRows * kTileKeys / 128;         // of a thread
  static constexpr int kScoreRows = kSwapped ? kRows / 4 : 2;     // rows that a thread has scores of
  static constexpr int kColumns = kLatent / 2;                    // of a values warpgroup
  static constexpr int kChainColumns = kSwapped ? 64 : 128;       // of one instruction
  static constexpr int kChains = kColumns / kChainColumns;
  static constexpr int kSums = kRows * kColumns / 128 / kChains;  // of a thread and chain
  // Rows of staged sums and results, padded so that a warp's threads write to different banks.
  static constexpr int kSumsRow = kLatent + (kSwapped ? 4 : 8), kResultsRow = kLatent + 8;
  static constexpr int kScoreThreads = 128, kMergeThreads = 384, kThreads = 512;
};

enum DecodeBarrier : uint32_t { kScoresBarrier = 1, kValuesBarrier = 2, kMergeBarrier = 3 };

template <class Traits>
struct DecodeStorage {
  union {
    alignas(1024) bf16 k[Traits::kStages][Traits::kPanels][kTileKeys * Traits::kPanel];
    float sums[Traits::kRows * Traits::kSumsRow];  // at the end of the CTA's work
    bf16 results[Traits::kRows * Traits::kResultsRow];
  };
  alignas(1024) bf16 q[Traits::kPanels][Traits::kRows * Traits::kPanel];
  alignas(1024) bf16 p[Traits::kRows * kTileKeys];
  float exchange[Traits::kSwapped ? 2 : 1][4][Traits::kSwapped ? Traits::kRows : 1];
  float shrink[Traits::kRows];
  float highest[Traits::kRows], total[Traits::kRows];  // of the work's end
  int32_t limit[Traits::kRows], local[Traits::kRows];  // last and first local position a row sees
  Work work;
  uint64_t k_full[Traits::kStages][Traits::kArrivals], k_empty[Traits::kStages];
  uint64_t q_full, p_full, p_empty, work_full, work_empty;
};

struct DecodeScratch {
  float* sums;     // [2 CTAs, kRows, latent]
  float* stats;    // [2 CTAs, kRows, 2]: highest score in powers of two, total
  Splits* splits;  // [rows, heads]
};

struct DecodeLaunch {
  DecodeScratch scratch;
  int32_t parts;   // lined up: clusters; 0: clustered
  int32_t groups;  // CTAs that share tiles
  int32_t shares;  // clustered: of a unit
  int32_t row_units;  // units of a row, 0 where a unit may have several rows
};

// Counts uses of a ring of buffers: which one, and the parity of its barriers' phase.
template <int kCount>
struct Ring {
  int32_t index = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++index == kCount) index = 0, parity ^= 1;
  }
};

template <class Traits>
__device__ void init_barriers(DecodeStorage<Traits>& shared, int groups) {
  for (int s = 0; s < Traits::kStages; s++) {
    for (auto& barrier : shared.k_full[s]) barrier_init(&barrier, 1);
    barrier_init(&shared.k_empty[s], 8 * groups);
  }
  barrier_init(&shared.q_full, 1);
  barrier_init(&shared.p_full, 4);
  barrier_init(&shared.p_empty, 8);
  barrier_init(&shared.work_full, 1);
  barrier_init(&shared.work_empty, 12 * groups);
  barrier_init_fence();
}

// All of the warp's accesses so far, then one arrival.
__device__ __forceinline__ void warp_arrive(uint64_t* barrier, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}

// The same at the barrier of each CTA that shares tiles with this one.
__device__ __forceinline__ void warp_arrive_all(uint64_t* barrier, int lane, int groups) {
  __syncwarp();
  if (groups == 1) {
    if (lane == 0) barrier_arrive(barrier);
  } else if (lane < groups) {
    barrier_arrive_remote(barrier, cluster_rank() / groups * groups + lane);
  }
}

// ---- Producer -------------------------------------------------------------------------------------

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

  // The cache row of a visible block, or -1 where the table names none.
  __device__ int slot_of(const Unit& unit, int visible) {
    if (unit.broken) return -1;
    const int block = absolute_block(unit, visible);
    const int64_t entry =
        visible < unit.sinks
            ? visible
            : int64_t{block} - problem.first_local[unit.sequence * problem.first_local_step] +
                  problem.range.sink_blocks;
    const int64_t slot = int64_t{problem.block_table[unit.sequence * problem.table_row + entry]} *
                         kBlockTokens;
    const int keys = min(kBlockTokens, unit.highest + 1 - block * kBlockTokens);
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

  __device__ void load_keys(const Work& work) {
    int slots = 0, first_block = INT32_MIN;  // of 32 visible blocks, one a lane
    const int last_block = (work.end - 1) / kBlockTiles;
    for (int tile = work.first; tile < work.end; tile++, stage.advance()) {
      const int block = tile / kBlockTiles;
      if (block >= first_block + kLanes || first_block < 0) {
        first_block = block;
        slots = block + lane <= last_block ? slot_of(work.unit, block + lane) : 0;
      }
      const int slot = __shfl_sync(kFullWarp, slots, block - first_block);
      barrier_wait(&shared.k_empty[stage.index], stage.parity ^ 1);
      if (lane != 0) continue;
      if (slot < 0) shared.work.unit.broken = true;
      // Behind the cache's end there are zeros.
      load_tile(slot < 0 ? static_cast<int>(problem.slots) : slot + tile % kBlockTiles * kTileKeys);
    }
  }

  __device__ void load(const Work& work) {
    hand_out(work);
    if (work.first >= work.end) return;
    load_queries(work.unit);
    load_keys(work);
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
  Producer<Traits> producer{problem, shared,  maps,         lane, groups,
                            group,   sharers, kEvictNormal, {}};
  if (lane == 0) prefetch(*maps.q), prefetch(*maps.k);
  Work work;
  if (launch.parts > 0) {
    producer.policy = kEvictFirst;
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
    const bool found = find_share(problem, lane, unit_rows, launch.row_units, cluster, share,
                                  launch.shares, work);
    cluster_wait();
    if (found) {
      take_rows<Traits>(work.unit, group);
      return producer.load(work);
    }
  }
  work.end = kNoMoreWork;
  producer.hand_out(work);
}

// ---- Scores ---------------------------------------------------------------------------------------

template <class Traits>
struct ScoreState {
  float scores[Traits::kScores];
  float highest[Traits::kScoreRows];  // of this thread's rows, in powers of two
  float total[Traits::kScoreRows];    // this thread's keys only
  int32_t warp, lane;
  int32_t turn = 0;  // which exchange buffer is next
  uint32_t p_parity = 0;
};

// The rows of a thread's scores: row 16 warp + g (+ 8), or all columns 8 i + 2 j (+ 1) if swapped.
template <class Traits>
__device__ int score_row(int warp, int lane, int index) {
  if constexpr (Traits::kSwapped) return index / 2 * 8 + lane % 4 * 2 + index % 2;
  return warp * 16 + lane / 4 + index * 8;
}

template <class Traits>
__device__ void begin_scores(const DecodeProblem& problem, const Unit& unit,
                             DecodeStorage<Traits>& shared, ScoreState<Traits>& state) {
#pragma unroll
  for (int r = 0; r < Traits::kScoreRows; r++)
    state.highest[r] = negative_infinity(), state.total[r] = 0;
  const int row = static_cast<int>(threadIdx.x);
  if (row < Traits::kRows) {
    const int query = (unit.flat + row) / problem.heads;
    const int limit = row < unit.rows ? problem.positions[query * problem.positions_step] : -1;
    shared.limit[row] = limit;
    shared.local[row] =
        problem.range.first_local_block(max(0, limit) / kBlockTokens) * kBlockTokens;
  }
  named_barrier_sync(kScoresBarrier, Traits::kScoreThreads);
}

template <class Traits>
__device__ void multiply_keys(DecodeStorage<Traits>& shared, Ring<Traits::kStages> stage,
                              float (&scores)[Traits::kScores]) {
  wgmma_fence();
#pragma unroll
  for (int panel = 0; panel < Traits::kPanels; panel++) {
    if (panel % Traits::kArrivalPanels == 0)
      barrier_wait(&shared.k_full[stage.index][panel / Traits::kArrivalPanels], stage.parity);
    const uint64_t q = wgmma_descriptor(shared.q[panel]);
    const uint64_t k = wgmma_descriptor(shared.k[stage.index][panel]);
#pragma unroll
    for (int step = 0; step < Traits::kPanel / 16; step++) {
      const uint64_t a = wgmma_advance(Traits::kSwapped ? k : q, step * 32);
      const uint64_t b = wgmma_advance(Traits::kSwapped ? q : k, step * 32);
      wgmma_bf16<0, 0>(scores, a, b, panel + step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(scores);
}

// Hides what a row does not see. Keys behind the highest position may hold anything: their columns
// become zeros, because 0 times NaN is not 0.
template <class Traits>
__device__ void mask_scores(const Unit& unit, int first_key, DecodeStorage<Traits>& shared, int stage,
                            const KeyRange& range, ScoreState<Traits>& state) {
#pragma unroll
  for (int i = 0; i < Traits::kScores; i++) {
    const int half = i / 2 % 2, pair = i % 2, octet = i / 4;
    const int row =
        score_row<Traits>(state.warp, state.lane, Traits::kSwapped ? octet * 2 + pair : half);
    const int key = first_key + (Traits::kSwapped
                                     ? state.warp * 16 + state.lane / 4 + half * 8
                                     : octet * 8 + state.lane % 4 * 2 + pair);
    const bool near = key < range.sink_blocks * kBlockTokens || key >= shared.local[row];
    if (key > shared.limit[row] || !near) state.scores[i] = negative_infinity();
  }
  const int keys = unit.highest + 1 - first_key;
  constexpr int kChunks = Traits::kLatentPanels * Traits::kPanel / kChunk;
  for (int i = max(0, keys) * kChunks + static_cast<int>(threadIdx.x) % Traits::kScoreThreads;
       i < kTileKeys * kChunks; i += Traits::kScoreThreads) {
    bf16* panel = shared.k[stage][i % kChunks / 8];
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
                                               DecodeStorage<Traits>& shared, int tile, int stage,
                                               ScoreState<Traits>& state) {
  const Unit& unit = shared.work.unit;
  const int block = absolute_block(unit, tile / kBlockTiles);
  const int first_key = block * kBlockTokens + tile % kBlockTiles * kTileKeys;
  if (first_key + kTileKeys - 1 > unit.lowest ||
      (block >= problem.range.sink_blocks && block < unit.all_local))
    mask_scores(unit, first_key, shared, stage, problem.range, state);
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
                            DecodeStorage<Traits>& shared) {
  ScoreState<Traits> state;
  state.warp = static_cast<int>(threadIdx.x) % 128 / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  Ring<Traits::kStages> stage;
  for (uint32_t parity = 0;; parity ^= 1) {
    barrier_wait(&shared.work_full, parity);
    const int first = shared.work.first, end = shared.work.end;
    if (end == kNoMoreWork) return;
    begin_scores(problem, shared.work.unit, shared, state);
    if (first < end) barrier_wait(&shared.q_full, parity);
    for (int tile = first; tile < end; tile++, stage.advance()) {
      multiply_keys(shared, stage, state.scores);
      publish_scores(problem, shared, tile, stage.index, state);
    }
    if (launch.parts == 0) return;
    warp_arrive_all(&shared.work_empty, state.lane, launch.groups);
  }
}

}  // namespace loza::cuda::attention
