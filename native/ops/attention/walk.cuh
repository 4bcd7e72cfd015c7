// How a CTA that owns a tile of rows of one side (queries or keys) walks the rows of the other side
// that they see, segment by segment, a part at a time.
#pragma once

#include "ops/attention/prefill_problem.cuh"

namespace loza::cuda::attention {

// Rows [first, end) of a CTA's tile that belong to one segment, and the position of row 0.
struct Run {
  int32_t first, end;
  int64_t shift;
};

__device__ inline Run run_of(int32_t row, int32_t count, int32_t position, int32_t tile,
                             int32_t tile_rows) {
  return {max(row, tile), min(row + count, tile + tile_rows), int64_t{position} - row};
}

// Rows of the other side, by position: those below `end`, without [skip_begin, skip_end).
struct Walk {
  int64_t position, end, skip_begin, skip_end;
};

// Part of what is walked: rows [row, row + count) of the other side, the first one at `position`.
struct Part {
  int64_t position;
  int32_t row, count;
};

// The keys that queries of the run see. Every row's local part starts at skip_end or later.
__device__ inline Walk walk_keys(const KeyRange& range, const Segment& segment, const Run& run) {
  const int64_t first = run.first + run.shift, last = run.end - 1 + run.shift;
  const auto block = static_cast<int32_t>(first / kBlockTokens);
  return {segment.key_position, min(int64_t{segment.key_position} + segment.key_count, last + 1),
          int64_t{range.sink_blocks} * kBlockTokens,
          int64_t{range.first_local_block(block)} * kBlockTokens};
}

// Takes the next part, at most up to a multiple of kTile; false where there is none.
template <int kTile>
__device__ inline bool next_part(Walk& walk, int32_t row, int32_t position, Part& part) {
  if (walk.position >= walk.skip_begin && walk.position < walk.skip_end)
    walk.position = walk.skip_end;
  if (walk.position >= walk.end) return false;
  const int64_t end = min(walk.end, (walk.position / kTile + 1) * kTile);
  part = {walk.position, static_cast<int32_t>(row + (walk.position - position)),
          static_cast<int32_t>(end - walk.position)};
  walk.position = end;
  return true;
}

// What one own row sees of a part: rows [from, to) of it.
struct Interval {
  int32_t from, to;

  __device__ bool has(int32_t i) const { return i >= from && i < to; }
};

// Of keys, which are part of one block; `row` may lie outside the run.
__device__ inline Interval seen_keys(const KeyRange& range, const Run& run, const Part& part,
                                     int32_t row) {
  const int64_t t = row + run.shift, block = part.position / kBlockTokens;
  const bool visible = row >= run.first && row < run.end &&
                       (block < range.sink_blocks ||
                        block >= range.first_local_block(static_cast<int32_t>(t / kBlockTokens)));
  if (!visible) return {0, 0};
  return {0,
          static_cast<int32_t>(max(int64_t{0}, min(int64_t{part.count}, t + 1 - part.position)))};
}

}  // namespace loza::cuda::attention
