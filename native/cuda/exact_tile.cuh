// Matrix products of f32 activations, in plain fp32 arithmetic: for checkpoints whose values must not
// be rounded to bf16, which are small. dense_exact.cu and grouped_exact.cu share them.
//   out[rows, columns] = x[rows, k] W[columns, k]^T, or out += ...
// W is f32, bf16, or f8e4m3 times the scale of its 128 x 128 block.
//
// A CTA computes 32 x 64 sums, a thread 2 x 4 of them. The products of each step of kDepth values of k
// are summed by themselves and then added to the total, which keeps rounding errors near those of the
// inputs. Which sums are made, and in which order, depends on k alone.
#pragma once

#include "cuda/check.h"
#include "cuda/types.cuh"
#include "ops/linear/linear.h"

namespace loza::cuda {

struct ExactTile {
  static constexpr int kRows = 32, kColumns = 64, kDepth = 32;
  static constexpr int kThreadsX = 16, kThreadsY = 16, kThreads = kThreadsX * kThreadsY;
  static constexpr int kThreadRows = kRows / kThreadsY, kThreadColumns = kColumns / kThreadsX;
  static_assert(kScaleBlock % kColumns == 0 && kScaleBlock % kDepth == 0);  // one scale a step
};

// A padded column more, so that a warp that writes along k meets different banks.
struct ExactStorage {
  float x[ExactTile::kDepth][ExactTile::kRows + 1];
  float weight[ExactTile::kDepth][ExactTile::kColumns + 1];
};

// What one CTA computes. Pointers are those of the tile's first row and column.
template <class Weight>
struct ExactTask {
  const float* x;        // rows of k values, found through the kernel's Source
  const Weight* weight;  // element (column, k) at column * weight_stride + k * weight_step
  const float* scale;    // f32 [ceil(k / 128)], the block row of the tile's columns; f8e4m3 only
  float* out;            // [rows, columns]
  int64_t x_stride, weight_stride, weight_step, out_stride;
  int rows, columns, k;  // what exists of the tile
  bool accumulate;
};

// Fills a step; what does not exist becomes zeros.
template <class Weight, class Source>
__device__ inline void load_step(ExactStorage& shared, const ExactTask<Weight>& task,
                                 const Source& source, int step) {
  using T = ExactTile;
  for (int i = static_cast<int>(threadIdx.x); i < T::kRows * T::kDepth; i += T::kThreads) {
    const int row = i / T::kDepth, depth = i % T::kDepth, k = step + depth;
    const bool exists = row < task.rows && k < task.k;
    shared.x[depth][row] = exists ? task.x[source(row) * task.x_stride + k] : 0.0f;
  }
  const float scale = task.scale == nullptr ? 1.0f : task.scale[step / kScaleBlock];
  const bool along_k = task.weight_step == 1;  // neighbouring threads read neighbours in memory
  for (int i = static_cast<int>(threadIdx.x); i < T::kColumns * T::kDepth; i += T::kThreads) {
    const int column = along_k ? i / T::kDepth : i % T::kColumns;
    const int depth = along_k ? i % T::kDepth : i / T::kColumns, k = step + depth;
    const bool exists = column < task.columns && k < task.k;
    const int64_t at = column * task.weight_stride + k * task.weight_step;
    shared.weight[depth][column] = exists ? widen(task.weight[at]) * scale : 0.0f;
  }
}

using ExactSums = float[ExactTile::kThreadRows][ExactTile::kThreadColumns];

__device__ inline void add_step(ExactSums& totals, const ExactStorage& shared, int x, int y) {
  using T = ExactTile;
  ExactSums sums = {};
#pragma unroll
  for (int k = 0; k < T::kDepth; k++)
#pragma unroll
    for (int row = 0; row < T::kThreadRows; row++)
#pragma unroll
      for (int column = 0; column < T::kThreadColumns; column++)
        sums[row][column] = fmaf(shared.x[k][y + row * T::kThreadsY],
                                 shared.weight[k][x + column * T::kThreadsX], sums[row][column]);
#pragma unroll
  for (int row = 0; row < T::kThreadRows; row++)
#pragma unroll
    for (int column = 0; column < T::kThreadColumns; column++)
      totals[row][column] += sums[row][column];
}

// source(i): the row of x that row i of the tile multiplies, for i < task.rows. All threads of the
// CTA call this, once a launch.
template <class Weight, class Source>
__device__ inline void run_exact_tile(ExactStorage& shared, const ExactTask<Weight>& task,
                                      const Source& source) {
  using T = ExactTile;
  const int x = static_cast<int>(threadIdx.x) % T::kThreadsX;
  const int y = static_cast<int>(threadIdx.x) / T::kThreadsX;
  ExactSums totals = {};
  for (int step = 0; step < task.k; step += T::kDepth) {
    load_step(shared, task, source, step);
    __syncthreads();
    if (y < task.rows) add_step(totals, shared, x, y);
    __syncthreads();
  }
  for (int row = 0; row < T::kThreadRows; row++) {
    for (int column = 0; column < T::kThreadColumns; column++) {
      const int r = y + row * T::kThreadsY, c = x + column * T::kThreadsX;
      if (r >= task.rows || c >= task.columns) continue;
      float* out = task.out + r * task.out_stride + c;
      *out = task.accumulate ? *out + totals[row][column] : totals[row][column];
    }
  }
}

}  // namespace loza::cuda
