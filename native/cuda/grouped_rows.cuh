// Which rows of which expert a CTA of a grouped product computes. The host knows only how many slots
// there are: expert e owns the row tiles from starts[e] / T + e on, a number that grows by at least the
// tiles that e needs from one expert to the next, slots / T + experts tiles in all.
#pragma once

#include <cstdint>

namespace loza::cuda {

// Rows first to first + count, all of one expert.
struct ExpertRows {
  int expert, first, count;  // no work: count is 0
};

// All threads of the CTA call this; at most one finds the tile.
template <int kRows>
__device__ inline ExpertRows find_expert_rows(ExpertRows& shared, const int32_t* starts,
                                              int experts, int tile) {
  if (threadIdx.x == 0) shared = {0, 0, 0};
  __syncthreads();
  for (int expert = static_cast<int>(threadIdx.x); expert < experts;
       expert += static_cast<int>(blockDim.x)) {
    const int begin = starts[expert], end = starts[expert + 1];
    const int own = tile - (begin / kRows + expert), first = begin + own * kRows;
    if (own < 0 || tile > end / kRows + expert || first >= end) continue;
    shared = {expert, first, min(kRows, end - first)};
  }
  __syncthreads();
  return shared;
}

// The row of x behind each row of a tile.
struct GatheredRows {
  const int32_t* order;  // [slots], or null
  int first, top_k;

  __device__ int64_t operator()(int row) const {
    return order ? order[first + row] / top_k : first + row;
  }
};

inline int64_t expert_tiles(int64_t slots, int64_t rows_a_tile, int64_t experts) {
  return slots / rows_a_tile + experts;
}

}  // namespace loza::cuda
