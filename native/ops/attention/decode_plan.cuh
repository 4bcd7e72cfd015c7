// How a call's work is cut up, by every CTA for itself from what the tables say when it runs: a
// captured graph stays valid as sequences grow.
//
// A *unit* is some pairs (query row, head) of one sequence, `kRows` for each of `groups` CTAs, and the
// tiles of 64 keys that any of them sees, counted from 0: those of the sinks, then those of the
// locals. The CTAs of a unit are in one cluster and bring each tile to shared memory together.
//   lined up   all units' tiles stand in one line, which is cut into equal parts, one a cluster. A unit
//              cut by several parts leaves partial results, merged by a second kernel.
//   clustered  a cluster has one unit; its CTAs also divide the unit's tiles into `shares`, and merge.
#pragma once

#include "cuda/reduce.cuh"
#include "ops/attention/decode_rows.cuh"

namespace loza::cuda::attention {

constexpr int kTileKeys = 64;
constexpr int kBlockTiles = kBlockTokens / kTileKeys;

struct Unit {
  int32_t flat = 0;         // first pair, counted over the whole of q: row * heads + head
  int32_t rows = 0;         // pairs; in a CTA's work those of its own
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
  int32_t slot = 0;            // -1: all the unit's tiles; else which of the CTA's partial results
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

__device__ inline int units_of(const DecodeProblem& problem, SequenceRows rows, int unit_rows) {
  return (rows.count * problem.heads + unit_rows - 1) / unit_rows;
}

__device__ inline Unit describe_unit(const DecodeProblem& problem, int sequence, SequenceRows rows,
                                     int index, int unit_rows) {
  Unit unit;
  const int first = index * unit_rows, heads = problem.heads;
  unit.sequence = sequence;
  unit.flat = rows.begin * heads + first;
  unit.rows = min(unit_rows, rows.count * heads - first);
  int low = INT32_MAX;
  bool padding = false;
  const int last_row = (unit.flat + unit.rows - 1) / heads;
  for (int row = unit.flat / heads; row <= last_row; row++) {
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

__device__ inline int tiles_of(const DecodeProblem& problem, int sequence, int unit_rows) {
  const SequenceRows rows = rows_of(problem, sequence);
  const int units = units_of(problem, rows, unit_rows);
  int tiles = 0;
  for (int index = 0; index < units; index++)
    tiles += describe_unit(problem, sequence, rows, index, unit_rows).tiles;
  return tiles;
}

struct Place {
  int32_t sequence, before;  // `before`: the sum of the sequences before it
};

// Sums of size(sequence) over the sequences, by a whole warp.
template <class Size>
struct Sums {
  const DecodeProblem& problem;
  int32_t lane;
  Size size;

  __device__ int of_lane(int first) const {
    return first + lane < problem.sequences ? size(first + lane) : 0;
  }

  __device__ int total() const {
    int sum = 0;
    for (int first = 0; first < problem.sequences; first += kLanes) sum += of_lane(first);
    return warp_sum(sum);
  }

  // The sequence in which `place` of the sum lies; problem.sequences if in none.
  __device__ Place find(int place) const {
    int before = 0;
    for (int first = 0; first < problem.sequences; first += kLanes) {
      const int own = of_lane(first), behind = before + warp_inclusive_sum(own);
      const unsigned found = __ballot_sync(kFullWarp, place < behind);
      if (found != 0) {
        const int winner = __ffs(static_cast<int>(found)) - 1;
        return {first + winner, __shfl_sync(kFullWarp, behind - own, winner)};
      }
      before = __shfl_sync(kFullWarp, behind, kLanes - 1);
    }
    return {problem.sequences, before};
  }
};
template <class Size>
Sums(const DecodeProblem&, int, Size) -> Sums<Size>;

// By a whole warp: the sequence of a row, and the rows before it.
__device__ inline Place find_sequence_of(const DecodeProblem& problem, int lane, int row) {
  constexpr int kBatch = 4;  // reads under way at a time
  int starts = 0;            // at or before the row
  for (int first = 0; first <= problem.sequences; first += kBatch * kLanes) {
#pragma unroll
    for (int k = 0; k < kBatch; k++) {
      const int i = first + k * kLanes + lane;
      if (i <= problem.sequences) starts += problem.query_starts[i * problem.starts_step] <= row;
    }
  }
  const int sequence = warp_sum(starts) - 1;
  if (sequence < 0 || sequence >= problem.sequences) return {problem.sequences, 0};
  return {sequence, problem.query_starts[sequence * problem.starts_step]};
}

// Where the partial results of a pair (row, head) lie: in row `row` of slot `first`, then of the
// first slots of the next parts' CTAs. A CTA has two slots.
struct alignas(16) Splits {
  int32_t first, count, row, groups;

  __device__ int slot(int split) const {
    return split == 0 ? first : (first / 2 + split * groups) * 2;
  }
};

__device__ inline Unit shuffle(const Unit& unit, int lane) {
  const auto get = [lane](int value) { return __shfl_sync(kFullWarp, value, lane); };
  return {get(unit.flat),    get(unit.rows),        get(unit.sequence),  get(unit.tiles),
          get(unit.sinks),   get(unit.first_local), get(unit.all_local), get(unit.lowest),
          get(unit.highest), get(unit.broken) != 0};
}

// The tiles of a part: a few more than needed where the longest unit is then cut into equal parts, and
// others of its length are cut as seldom.
__device__ inline int even_part(int tiles, int longest) {
  const int cuts = max(1, longest / tiles);
  const int even = (longest + cuts - 1) / cuts;
  return even >= tiles && even <= tiles + tiles / 16 ? even : tiles;
}

// A cluster's part of the line. Every lane holds the same, but for `own` and `behind`.
struct Line {
  int32_t unit_rows, part, part_tiles;  // number and tiles of a part
  int32_t place, end;                   // what is left, along the line
  bool began = false;
  bool simple;                      // a unit a sequence, a sequence a lane:
  Unit own;                         // the lane's
  int32_t behind = 0;               // where it ends
  int32_t sequence = 0, index = 0;  // else the unit that begins at or before `place`
  int32_t unit_begin = 0;           // and where

  __device__ auto sums(const DecodeProblem& problem, int lane) const {
    return Sums(problem, lane, [&problem, rows = unit_rows](int sequence) {
      return tiles_of(problem, sequence, rows);
    });
  }

  __device__ Line(const DecodeProblem& problem, int lane, int unit_rows, int part, int parts)
      : unit_rows(unit_rows), part(part) {
    const SequenceRows rows =
        lane < problem.sequences ? rows_of(problem, lane) : SequenceRows{0, 0};
    simple = problem.sequences <= kLanes &&
             __all_sync(kFullWarp, rows.count * problem.heads <= unit_rows);
    int total, longest = 1;
    if (simple) {
      if (rows.count > 0) own = describe_unit(problem, lane, rows, 0, unit_rows);
      behind = warp_inclusive_sum(own.tiles);
      total = __shfl_sync(kFullWarp, behind, kLanes - 1);
      longest = __reduce_max_sync(kFullWarp, own.tiles);
    } else {
      total = sums(problem, lane).total();
    }
    part_tiles = even_part(max(1, (total + parts - 1) / parts), longest);
    place = part * part_tiles;
    end = min(total, place + part_tiles);
    if (simple) return;
    const Place found = sums(problem, lane).find(place);
    sequence = found.sequence, unit_begin = found.before;
  }

  // The unit in which `place` lies.
  __device__ Unit find_unit(const DecodeProblem& problem) {
    if (simple) {
      const int winner = __ffs(static_cast<int>(__ballot_sync(kFullWarp, place < behind))) - 1;
      const Unit unit = shuffle(own, winner);
      unit_begin = __shfl_sync(kFullWarp, behind, winner) - unit.tiles;
      return unit;
    }
    for (;;) {
      const SequenceRows rows = rows_of(problem, sequence);
      if (index >= units_of(problem, rows, unit_rows)) {
        sequence++, index = 0;
        continue;
      }
      const Unit unit = describe_unit(problem, sequence, rows, index, unit_rows);
      if (place < unit_begin + unit.tiles) return unit;
      index++, unit_begin += unit.tiles;
    }
  }

  // The next run of tiles of one unit, and in how many runs the unit is split; false at the end.
  __device__ bool next(const DecodeProblem& problem, Work& work, int& splits) {
    if (place >= end) return false;
    work.unit = find_unit(problem);
    const int unit_end = unit_begin + work.unit.tiles;
    work.first = place - unit_begin;
    work.end = min(end, unit_end) - unit_begin;
    const bool whole = work.first == 0 && work.end == work.unit.tiles;
    work.slot = whole ? -1 : began ? 1 : 0;
    splits = (unit_end - 1) / part_tiles - part + 1;
    began = true;
    place = unit_begin + work.end;
    return true;
  }
};

// By a whole warp: the unit of a cluster; false where it has none. `row_units`: units of a row, 0 where
// units may have several rows.
__device__ inline bool find_unit(const DecodeProblem& problem, int lane, int unit_rows,
                                 int row_units, int cluster, Unit& unit) {
  Place place;
  if (row_units > 0) {
    const int first = problem.query_starts[0];
    place = find_sequence_of(problem, lane, first + cluster / row_units);
    place.before = (place.before - first) * row_units;
  } else {
    place = Sums(problem, lane, [&](int sequence) {
              return units_of(problem, rows_of(problem, sequence), unit_rows);
            }).find(cluster);
  }
  if (place.sequence >= problem.sequences) return false;
  const SequenceRows rows = rows_of(problem, place.sequence);
  if ((cluster - place.before) * unit_rows >= rows.count * problem.heads) return false;
  unit = describe_unit(problem, place.sequence, rows, cluster - place.before, unit_rows);
  return true;
}

}  // namespace loza::cuda::attention
