// Matrix products whose weight is contiguous along the outputs: the axpy form of gemm.h, for some rows
// and one matrix. Every sum runs over ascending k, whatever the rows.
#pragma once

#include "cpu/gemm.h"

namespace loza::gemm {

inline constexpr int kStripVectors = 4;
inline constexpr int64_t kStrip = kStripVectors * kWidth;  // columns; divides kScaleBlock
inline constexpr int64_t kStripDepth = 256;                // k of a packed strip: 32 KiB

struct StripTag;

// out[r][n] (+)= sum over k of x[r][k] * weight[k][n]
struct AxpyTask {
  const float* const* x;  // [rows], each k values
  float* const* out;      // [rows], each pointing at column 0
  int64_t rows = 0;
  int64_t n_begin = 0;  // a multiple of kStrip
  int64_t n_end = 0;
  int64_t k = 0;
  const void* weight = nullptr;  // [k, n]
  DType dtype = DType::kF32;
  int64_t weight_stride = 0;     // between rows of k
  const float* scale = nullptr;  // [k / 128, n / 128], f8e4m3 only
  int64_t scale_stride = 0;
  bool accumulate = false;
};

// A strip of `depth` values of k: columns from n on, as many as `columns` says exist.
template <class T>
struct Strip {
  const T* data;
  int64_t stride, n, columns, k_begin, depth;
};

// The first `columns` of a strip's row; what lies behind them is zero, and is not stored.
LOZA_INLINE void load_strip(f32x8 (&to)[kStripVectors], const float* from, int64_t columns) {
  LOZA_UNROLL
  for (int c = 0; c < kStripVectors; c++) {
    const int64_t left = columns - c * kWidth;
    if (left >= kWidth)
      to[c] = simd::load(from + c * kWidth);
    else
      to[c] = left > 0 ? simd::load_first(from + c * kWidth, left) : f32x8{};
  }
}

LOZA_INLINE void store_strip(float* to, const f32x8 (&from)[kStripVectors], int64_t columns) {
  LOZA_UNROLL
  for (int c = 0; c < kStripVectors; c++) {
    const int64_t left = columns - c * kWidth;
    if (left >= kWidth)
      simd::store(to + c * kWidth, from[c]);
    else if (left > 0)
      simd::store_first(to + c * kWidth, from[c], left);
  }
}

template <int R, class T>
LOZA_INLINE void strip_rows(const AxpyTask& task, const Strip<T>& strip, int64_t row) {
  f32x8 sums[R][kStripVectors] = {};
  const float* x[R];
  for (int r = 0; r < R; r++) x[r] = task.x[row + r] + strip.k_begin;
  if (task.accumulate || strip.k_begin > 0) {
    LOZA_UNROLL
    for (int r = 0; r < R; r++) load_strip(sums[r], task.out[row + r] + strip.n, strip.columns);
  }
  axpy_tile(sums, x, strip.data, strip.stride, strip.depth);
  LOZA_UNROLL
  for (int r = 0; r < R; r++) store_strip(task.out[row + r] + strip.n, sums[r], strip.columns);
}

template <class T>
LOZA_INLINE void strip_all_rows(const AxpyTask& task, const Strip<T>& strip) {
  const int most = tile_rows();
  for (int64_t row = 0, rows; row < task.rows; row += rows) {
    rows = next_rows(task.rows - row, most);
    LOZA_FOR_ROWS(rows, strip_rows, task, strip, row)
  }
}

// The strip in f32, [depth][kStrip], zeros where no column is.
template <class T>
LOZA_INLINE void pack_strip(float* packed, const AxpyTask& task, const Strip<T>& strip) {
  RowsView<T, 1> w;
  w.row[0] = strip.data;
  for (int64_t i = 0; i < strip.depth; i++, w.row[0] += strip.stride, packed += kStrip) {
    if constexpr (std::is_same_v<T, F8E4M3>)
      w.scale =
          task.scale[(strip.k_begin + i) / kScaleBlock * task.scale_stride + strip.n / kScaleBlock];
    for (int64_t c = 0; c < kStrip; c += kWidth) {
      const int64_t left = std::max<int64_t>(0, strip.columns - c);
      simd::store(packed + c, left >= kWidth ? w.load(0, c)
                                             : w.load_first(0, std::min(c, strip.columns), left));
    }
  }
}

template <class T>
LOZA_INLINE void run_strips(const AxpyTask& task) {
  // Few rows read the weight where it lies.
  const bool direct = !std::is_same_v<T, F8E4M3> && task.rows <= tile_rows();
  for (int64_t n = task.n_begin; n < task.n_end; n += kStrip) {
    const int64_t columns = std::min(kStrip, task.n_end - n);
    const T* from = static_cast<const T*>(task.weight) + n;
    if constexpr (!std::is_same_v<T, F8E4M3>) {
      if (direct && columns == kStrip) {
        strip_all_rows<T>(task, {from, task.weight_stride, n, columns, 0, task.k});
        continue;
      }
    }
    float* packed = simd::scratch<StripTag>(kStripDepth * kStrip);
    for (int64_t k = 0; k < task.k; k += kStripDepth) {
      const int64_t depth = std::min(kStripDepth, task.k - k);
      pack_strip<T>(packed, task,
                    {from + k * task.weight_stride, task.weight_stride, n, columns, k, depth});
      strip_all_rows<float>(task, {packed, kStrip, n, columns, k, depth});
    }
  }
}

// The body of an operation's LOZA_MULTIVERSION entry.
LOZA_INLINE void run_axpy(const AxpyTask& task) {
  if (task.dtype == DType::kF32) run_strips<float>(task);
  if (task.dtype == DType::kBF16) run_strips<Bf16>(task);
  if (task.dtype == DType::kF8E4M3) run_strips<F8E4M3>(task);
}

}  // namespace loza::gemm
