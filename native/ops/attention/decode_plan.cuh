// How a call's work is cut up, by every CTA for itself from what the tables say when it runs: a
// captured graph stays valid as sequences grow.
//
// A *unit* is up to `kRows` pairs (query row, head) of one sequence, and the tiles of 64 keys that
// any of them sees, counted from 0: those of the sinks, then those of the locals.
//   lined up   all units' tiles stand in one line, which is cut into equal parts, one a CTA. A unit
//              cut by several parts leaves partial results, merged by a second kernel.
//   clustered  a cluster has one unit; its CTAs take equal runs of the unit's tiles and merge them.
#pragma once

#include "cuda/reduce.cuh"
#include "ops/attention/decode_rows.cuh"

namespace loza::cuda::attention {

constexpr int kTileKeys = 64;
constexpr int kBlockTiles = kBlockTokens / kTileKeys;

struct Unit {
  int32_t flat = 0;         // first pair, counted over the whole of q: row * heads + head
  int32_t rows = 0;         // pairs
  int32_t sequence = 0;     // for its table
  int32_t tiles = 0;        // visible ones; 0: only padding
  int32_t sinks = 0;        // visible sink blocks
  int32_t first_local = 0;  // first local block that any row sees
  int32_t all_local = 0;    // first local block that all rows see
  int32_t lowest = -1;      // position; -1 where a row is padding
  int32_t highest = -1;
  bool broken = false;  // the table is too short
};

// What a CTA does at a time: some tiles of a unit.
struct Work {
  Unit unit;
  int32_t first = 0, end = 0;  // tiles
  int32_t slot = 0;            // of the partial result, -1: the unit's whole
};
constexpr int32_t kNoMoreWork = -1;  // as `end`

__device__ inline int absolute_block(const Unit& unit, int visible) {
  return visible < unit.sinks ? visible : unit.first_local + visible - unit.sinks;
}

struct SequenceRows {
  int32_t begin, count;
};

__device__ inline SequenceRows rows_of(const DecodeProblem& problem, int sequence) {
  const int begin = max(0, problem.query_starts[sequence * problem.starts_step]);
  const int end = min(problem.rows, problem.query_starts[(sequence + 1) * problem.starts_step]);
  return {begin, max(0, end - begin)};
}

template <int kRows>
__device__ int units_of(const DecodeProblem& problem, SequenceRows rows) {
  return (rows.count * problem.heads + kRows - 1) / kRows;
}

template <int kRows>
__device__ Unit describe_unit(const DecodeProblem& problem, int sequence, SequenceRows rows,
                              int index) {
  Unit unit;
  const int first = index * kRows, heads = problem.heads;
  unit.sequence = sequence;
  unit.flat = rows.begin * heads + first;
  unit.rows = min(kRows, rows.count * heads - first);
  int low = INT32_MAX;
  bool padding = false;
  for (int row = unit.flat / heads; row <= (unit.flat + unit.rows - 1) / heads; row++) {
    const int position = problem.positions[row * problem.positions_step];
    padding = padding || position < 0;
    if (position >= 0) low = min(low, position);
    unit.highest = max(unit.highest, position);
  }
  if (unit.highest < 0) return unit;
  unit.lowest = padding ? -1 : low;
  const int block = unit.highest / kBlockTokens, sink_blocks = problem.range.sink_blocks;
  unit.sinks = min(sink_blocks, block + 1);
  unit.first_local = problem.range.first_local_block(low / kBlockTokens);
  unit.all_local = problem.range.first_local_block(block);
  const int locals = max(0, block + 1 - unit.first_local);
  const int first_entry =
      problem.first_local[sequence * problem.first_local_step];  // of block first_entry
  unit.broken = unit.sinks > problem.entries ||
                (locals > 0 && (unit.first_local < first_entry ||
                                int64_t{block} - first_entry + sink_blocks >= problem.entries));
  const bool half = unit.highest + 1 - block * kBlockTokens <= kTileKeys;
  unit.tiles = unit.broken ? 1 : (unit.sinks + locals) * kBlockTiles - (half ? 1 : 0);
  return unit;
}

template <int kRows>
__device__ int tiles_of(const DecodeProblem& problem, int sequence) {
  const SequenceRows rows = rows_of(problem, sequence);
  int tiles = 0;
  for (int index = 0; index < units_of<kRows>(problem, rows); index++)
    tiles += describe_unit<kRows>(problem, sequence, rows, index).tiles;
  return tiles;
}

// By a whole warp: the sum of size(sequence) over all sequences.
template <class Size>
__device__ int total_of(const DecodeProblem& problem, int lane, const Size& size) {
  int total = 0;
  for (int first = 0; first < problem.sequences; first += kLanes)
    total += first + lane < problem.sequences ? size(first + lane) : 0;
  return warp_sum(total);
}

struct Place {
  int32_t sequence, before;  // `before`: the sum of the sequences before it
};

// By a whole warp: the sequence in which `place` of that sum lies; problem.sequences if in none.
template <class Size>
__device__ Place find_place(const DecodeProblem& problem, int lane, int place, const Size& size) {
  int before = 0;
  for (int first = 0; first < problem.sequences; first += kLanes) {
    const int own = first + lane < problem.sequences ? size(first + lane) : 0;
    const int behind = before + warp_inclusive_sum(own);
    const unsigned found = __ballot_sync(kFullWarp, place < behind);
    if (found != 0) {
      const int winner = __ffs(static_cast<int>(found)) - 1;
      return {first + winner, __shfl_sync(kFullWarp, behind - own, winner)};
    }
    before = __shfl_sync(kFullWarp, behind, kLanes - 1);
  }
  return {problem.sequences, before};
}

// Where the partial results of a pair (row, head) lie: in row `row` of slot `first`, then of slots
// 2 (first / 2 + 1), 2 (first / 2 + 2), ..., one a part.
struct alignas(16) Splits {
  int32_t first, count, row;

  __device__ int slot(int split) const { return split == 0 ? first : (first / 2 + split) * 2; }
};

// A CTA's part of the line. Every lane holds the same.
template <int kRows>
struct Line {
  int32_t part, part_tiles;     // number and tiles of a part
  int32_t place, end;           // what is left, along the line
  int32_t sequence, index = 0;  // the unit that begins at or before `place`
  int32_t unit_begin;           // where
  bool began = false;

  __device__ Line(const DecodeProblem& problem, int lane, int part, int parts, int min_tiles)
      : part(part) {
    const auto size = [&](int sequence) { return tiles_of<kRows>(problem, sequence); };
    const int total = total_of(problem, lane, size);
    part_tiles = max(min_tiles, (total + parts - 1) / parts);
    place = part * part_tiles;
    end = min(total, place + part_tiles);
    const Place found = find_place(problem, lane, place, size);
    sequence = found.sequence, unit_begin = found.before;
  }

  // The next run of tiles of one unit, and how the unit is split; false at the end.
  __device__ bool next(const DecodeProblem& problem, Work& work, Splits& splits) {
    while (place < end && sequence < problem.sequences) {
      const SequenceRows rows = rows_of(problem, sequence);
      if (index >= units_of<kRows>(problem, rows)) {
        sequence++, index = 0;
        continue;
      }
      work.unit = describe_unit<kRows>(problem, sequence, rows, index);
      const int unit_end = unit_begin + work.unit.tiles;
      if (unit_end <= place) {
        index++, unit_begin = unit_end;
        continue;
      }
      work.first = place - unit_begin;
      work.end = min(end, unit_end) - unit_begin;
      const bool whole = work.first == 0 && work.end == work.unit.tiles;
      work.slot = whole ? -1 : 2 * part + (began ? 1 : 0);
      splits = {work.slot, (unit_end - 1) / part_tiles - part + 1, 0};
      began = true;
      place = unit_begin + work.end;
      return true;
    }
    return false;
  }
};

// The share of a CTA of a cluster; false where the cluster has no unit.
template <int kRows>
__device__ bool find_share(const DecodeProblem& problem, int lane, int cluster, int rank, int ctas,
                           Work& work) {
  const auto size = [&](int sequence) {
    return units_of<kRows>(problem, rows_of(problem, sequence));
  };
  const Place place = find_place(problem, lane, cluster, size);
  if (place.sequence >= problem.sequences) return false;
  work.unit = describe_unit<kRows>(problem, place.sequence, rows_of(problem, place.sequence),
                                   cluster - place.before);
  const int share = (work.unit.tiles + ctas - 1) / ctas;
  work.first = min(work.unit.tiles, rank * share);
  work.end = min(work.unit.tiles, work.first + share);
  return true;
}

}  // namespace loza::cuda::attention
