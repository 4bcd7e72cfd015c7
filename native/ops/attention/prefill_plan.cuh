// The work of one call of expanded attention, found on the device because segments are device data:
// each run of query rows is cut where blocks of 128 positions begin, so that all rows of a query tile
// see the same blocks and a row's result does not depend on what else the call holds.
#pragma once

#include "cuda/check.h"
#include "ops/attention/prefill_problem.cuh"

namespace loza::cuda::attention {

// A query tile: row r has position block * 128 + r, where the run has that position.
struct QueryTile {
  int32_t segment;  // the first of the run; the others hang on its chain
  int32_t block;
};

// In device memory, rewritten by each call.
struct PrefillPlan {
  int32_t* next_item;  // the work counter: items are pairs of tile and head
  int32_t* tile_count;
  int32_t* counts;   // [segments], tiles of the run that begins with the segment
  int32_t* chain;    // [segments], the next segment of the same run, or -1
  QueryTile* tiles;  // [at most max_tiles], in the order they are found
};

// A run of n rows touches at most n / 128 + 2 blocks.
inline int64_t max_tiles(const PrefillProblem& problem) {
  return problem.rows / kBlockTokens + 2 * int64_t{problem.segment_count};
}

inline size_t plan_bytes(const PrefillProblem& problem) {
  return sizeof(int32_t) * (2 + 2 * (problem.segment_count + int64_t{problem.segment_count} % 2)) +
         sizeof(QueryTile) * max_tiles(problem);
}

inline PrefillPlan place_plan(const PrefillProblem& problem, std::byte* memory) {
  const int segments = problem.segment_count + problem.segment_count % 2;  // keeps tiles aligned
  auto* words = reinterpret_cast<int32_t*>(memory);
  return {words, words + 1, words + 2, words + 2 + segments,
          reinterpret_cast<QueryTile*>(words + 2 + 2 * segments)};
}

inline constexpr int kPlanThreads = 256;

__device__ inline int blocks_of(const Segment& s) {
  const int first = s.query_position / kBlockTokens;
  return (s.query_position + s.query_count - 1) / kBlockTokens - first + 1;
}

// One CTA.
static __global__ void __launch_bounds__(kPlanThreads)
    plan_prefill_kernel(const PrefillProblem problem, const PrefillPlan plan) {
  const int thread = static_cast<int>(threadIdx.x), segments = problem.segment_count;
  for (int i = thread; i < segments; i += kPlanThreads) {
    const Segment segment = read_segment(problem, i);
    bool first = segment.query_count > 0;
    int next = -1;
    for (int j = 0; j < segments && segment.query_count > 0; j++) {
      const Segment other = read_segment(problem, j);
      if (j == i || other.query_count == 0 || other.query_row != segment.query_row) continue;
      if (j < i) first = false;
      if (j > i && next < 0) next = j;
    }
    plan.counts[i] = first ? blocks_of(segment) : 0;
    plan.chain[i] = next;
  }
  __syncthreads();
  constexpr int kWarp = 32;
  for (int i = thread / kWarp; i < segments; i += kPlanThreads / kWarp) {
    const int count = plan.counts[i];
    if (count == 0) continue;
    int start = 0;
    for (int j = 0; j < i; j++) start += plan.counts[j];
    const int block = read_segment(problem, i).query_position / kBlockTokens;
    for (int t = thread % kWarp; t < count; t += kWarp) plan.tiles[start + t] = {i, block + t};
  }
  if (thread != 0) return;
  int total = 0;
  for (int i = 0; i < segments; i++) total += plan.counts[i];
  *plan.tile_count = total;
  *plan.next_item = 0;
}

}  // namespace loza::cuda::attention
