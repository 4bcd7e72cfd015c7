// A plan: the work of every CTA of a call, found once a step for all layers that share tables and
// positions (AttentionPlan), so that a call's CTAs read one line of memory before their first copy.
//
// Record i < clusters is the first one of cluster i; further runs of a part are linked by `next`.
#pragma once

#include <cstddef>

#include "ops/attention/decode_plan.cuh"

namespace loza {
class CudaStream;
}

namespace loza::cuda::attention {

constexpr int kRecordBlocks = 16;

// A line of memory, which a warp reads at once, a word a lane.
struct alignas(128) Record {
  Work work;                      // `end` kNoMoreWork: nothing to do
  int32_t settled = 0;            // tiles of the unit, counted from 0, without keys of this step
  int32_t next = -1;              // the part's next record: higher than this one's number
  int32_t shift = 0;              // from a local block to its table entry
  int32_t blocks[kRecordBlocks];  // table entries of the first blocks from work.first on
};
static_assert(sizeof(Record) == kRecordInts * 4 && sizeof(Splits) == kSplitsInts * 4);
static_assert(sizeof(Work) == 52 && offsetof(Work, first) == 40);

// Where the parts of a plan lie.
struct DecodePlan {
  Record* records;
  Splits* splits;  // [rows, heads], where lined up
};

inline DecodePlan plan_at(const DecodeProblem& problem, void* memory) {
  auto* records = static_cast<Record*>(memory);
  const int64_t count = plan_records(problem.rows, problem.heads, problem.sequences);
  return {records, reinterpret_cast<Splits*>(records + count)};
}

// The fields of a record whose word `lane` this lane has read.
__device__ inline Work unpack_work(int word) {
  const auto get = [word](int index) { return __shfl_sync(kFullWarp, word, index); };
  const Unit unit{get(0), get(1), get(2), get(3), get(4),
                  get(5), get(6), get(7), get(8), (get(9) & 0xff) != 0};
  return {unit, get(10), get(11), get(12)};
}
constexpr int kSettledWord = 13, kNextWord = 14, kShiftWord = 15, kBlocksWord = 16;

// Of the unit's pairs, those of one of the CTAs that share tiles.
template <class Traits>
__device__ void take_rows(Unit& unit, int group) {
  unit.flat += group * Traits::kRows;
  unit.rows = max(0, min(Traits::kRows, unit.rows - group * Traits::kRows));
}

// Of the unit's tiles, those of one share.
__device__ inline void take_tiles(Work& work, int share, int shares) {
  const int tiles = (work.unit.tiles + shares - 1) / shares;
  work.first = min(work.unit.tiles, share * tiles);
  work.end = min(work.unit.tiles, work.first + tiles);
  work.slot = shares == 1 ? -1 : 0;
}

// ---- Making one -----------------------------------------------------------------------------------

struct PlanLaunch {
  int32_t rows, groups;  // of a CTA; CTAs that share tiles
  int32_t clusters;      // that the call has
  int32_t parts;         // lined up: as many; 0: clustered
  int32_t row_units;     // clustered: units of a row, 0 where a unit may have several rows
};

void write_plan(const DecodeProblem& problem, const PlanLaunch& launch, void* plan,
                CudaStream& stream);

// Visible tiles of the unit that hold no key of this step: the step writes its sequence's positions.
__device__ inline int settled_tiles(const DecodeProblem& problem, const Unit& unit) {
  const SequenceRows rows = rows_of(problem, unit.sequence);
  int lowest = INT32_MAX;
  for (int row = rows.begin; row < rows.begin + rows.count; row++) {
    const int position = problem.positions[row * problem.positions_step];
    if (position >= 0) lowest = min(lowest, position);
  }
  const int tiles = lowest / kTileKeys;  // of the whole sequence
  const int local = max(0, tiles - unit.first_local * kBlockTiles);
  return min(unit.tiles, min(tiles, unit.sinks * kBlockTiles) + local);
}

// By a whole warp.
__device__ inline void write_record(const DecodeProblem& problem, const Work& work, int next,
                                    int lane, Record& record) {
  const Unit& unit = work.unit;
  const int shift =
      problem.range.sink_blocks - problem.first_local[unit.sequence * problem.first_local_step];
  const int visible = work.first / kBlockTiles + lane;
  if (lane < kRecordBlocks) {
    const bool any = !unit.broken && visible <= (work.end - 1) / kBlockTiles;
    const int64_t entry = visible < unit.sinks ? visible : absolute_block(unit, visible) + shift;
    record.blocks[lane] = any ? problem.block_table[unit.sequence * problem.table_row + entry] : -1;
  }
  if (lane > 0) return;
  record.work = work;
  record.settled = unit.tiles > 0 ? settled_tiles(problem, unit) : 0;
  record.next = next;
  record.shift = shift;
}

// All runs of a part, and where the partial results of units that begin in it will lie.
__device__ inline void write_part(const DecodeProblem& problem, const PlanLaunch& launch, int part,
                                  int lane, const DecodePlan& plan) {
  const int unit_rows = launch.rows * launch.groups;
  Line line(problem, lane, unit_rows, part, launch.parts);
  Work work, behind;
  int splits, at = part;
  bool any = line.next(problem, work, splits);
  if (!any && lane == 0) plan.records[at].work = {.end = kNoMoreWork};
  while (any) {
    const Unit& unit = work.unit;
    for (int pair = lane; work.first == 0 && pair < unit.rows; pair += kLanes) {
      const int cta = part * launch.groups + pair / launch.rows;
      plan.splits[unit.flat + pair] = {2 * cta + work.slot, splits, pair % launch.rows,
                                       launch.groups};
    }
    any = line.next(problem, behind, splits);
    const int next =
        any ? kMostParts + part + behind.unit.flat / unit_rows + behind.unit.sequence : -1;
    write_record(problem, work, next, lane, plan.records[at]);
    work = behind, at = next;
  }
}

__device__ inline void write_unit(const DecodeProblem& problem, const PlanLaunch& launch,
                                  int cluster, int lane, const DecodePlan& plan) {
  Work work;
  Record& record = plan.records[cluster];
  if (find_unit(problem, lane, launch.rows * launch.groups, launch.row_units, cluster, work.unit)) {
    work.end = work.unit.tiles;
    write_record(problem, work, -1, lane, record);
  } else if (lane == 0) {
    record.work = {.end = kNoMoreWork};
  }
}

// Rows of no sequence, and padding: nothing is merged for them.
__device__ inline void write_no_splits(const DecodeProblem& problem, int warp, int warps, int lane,
                                       const DecodePlan& plan) {
  const int begin = problem.query_starts[0];
  const int end = problem.query_starts[problem.sequences * problem.starts_step];
  for (int row = warp; row < problem.rows; row += warps) {
    if (row >= begin && row < end && problem.positions[row * problem.positions_step] >= 0) continue;
    for (int head = lane; head < problem.heads; head += kLanes)
      plan.splits[row * problem.heads + head] = {};
  }
}

}  // namespace loza::cuda::attention
