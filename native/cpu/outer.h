// Sums of outer products, which gradients of weights are: out[n, k] += sum over rows of y[row, n] *
// x[row, k]. Every sum runs over ascending rows, and starts from what `out` holds.
#pragma once

#include "cpu/axpy.h"

namespace loza::gemm {

inline constexpr int64_t kOuterPanel = 96;  // n of one task, and of one task's strips the k

struct OuterTag;

struct OuterTask {
  float* out;      // [n, k]
  const float* y;  // [rows, n]
  const float* x;  // row i is at source(i) = order ? order[i] / top_k : i
  const int32_t* order = nullptr;
  int64_t top_k = 1;
  int64_t out_stride = 0, y_stride = 0, x_stride = 0;
  int64_t rows = 0;
  int64_t n_begin = 0, n_end = 0, k_begin = 0, k_end = 0;

  LOZA_INLINE const float* row(int64_t i) const {
    return x + (order ? order[i] / top_k : i) * x_stride;
  }
};

// Some rows of x, kStrip columns of them, packed.
struct OuterStrip {
  const float* packed;
  int64_t first, count;  // rows
  int64_t k, columns;
};

template <int R>
LOZA_INLINE void outer_tile(const OuterTask& task, const OuterStrip& strip, int64_t n) {
  float* out = task.out + n * task.out_stride + strip.k;
  f32x8 sums[R][kStripVectors] = {};
  LOZA_UNROLL
  for (int r = 0; r < R; r++) load_strip(sums[r], out + r * task.out_stride, strip.columns);
  const float* y = task.y + strip.first * task.y_stride + n;
  const float* x = strip.packed;
  for (int64_t i = 0; i < strip.count; i++, y += task.y_stride, x += kStrip) {
    f32x8 b[kStripVectors];
    LOZA_UNROLL
    for (int c = 0; c < kStripVectors; c++) b[c] = simd::load(x + c * kWidth);
    LOZA_UNROLL
    for (int r = 0; r < R; r++) {
      LOZA_UNROLL
      for (int c = 0; c < kStripVectors; c++) sums[r][c] += b[c] * y[r];
    }
  }
  LOZA_UNROLL
  for (int r = 0; r < R; r++) store_strip(out + r * task.out_stride, sums[r], strip.columns);
}

LOZA_INLINE void run_outer(const OuterTask& task) {
  const int most = tile_rows();
  float* packed = simd::scratch<OuterTag>(kStripDepth * kStrip);
  for (int64_t k = task.k_begin; k < task.k_end; k += kStrip) {
    const int64_t columns = std::min(kStrip, task.k_end - k);
    for (int64_t first = 0; first < task.rows; first += kStripDepth) {
      const OuterStrip strip{packed, first, std::min(kStripDepth, task.rows - first), k, columns};
      for (int64_t i = 0; i < strip.count; i++) {
        float* to = packed + i * kStrip;
        if (columns < kStrip) std::memset(to, 0, kStrip * sizeof(float));
        std::memcpy(to, task.row(first + i) + k, static_cast<size_t>(columns) * sizeof(float));
      }
      for (int64_t n = task.n_begin, tile; n < task.n_end; n += tile) {
        tile = next_rows(task.n_end - n, most);
        LOZA_FOR_ROWS(tile, outer_tile, task, strip, n)
      }
    }
  }
}

}  // namespace loza::gemm
