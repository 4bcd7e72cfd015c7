// Matrix products of the CPU operations, with one promise: an output element is the same sum in the
// same order whatever rows and columns are computed with it.
//
// Dot form (weights contiguous along k): lane i of one 8-wide sum takes k = i, i + 8, ..., then the
// lanes are added as simd::sum does. Axpy form (contiguous along n): one sum over ascending k.
// Few rows read the weights where they are; more rows share a panel converted to f32 once. Both see
// the same f32 values, so both give the same bits.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/tensor.h"
#include "cpu/simd.h"
#include "ops/linear/linear.h"

namespace loza::gemm {

using simd::Bf16;
using simd::f32x4;
using simd::f32x8;
using simd::F8E4M3;
using simd::kWidth;

inline constexpr int kTileColumns = 4;       // weights of a packed tile
inline constexpr int kMaxTileRows = 6;       // rows of a tile with 32 vector registers
inline constexpr int kNarrowTileRows = 3;    // and with 16
inline constexpr int kDirectRows = 12;       // up to here no panel is packed
inline constexpr int kDirectRowsF8 = 6;      // f8e4m3 costs more to convert
inline constexpr int64_t kPanel = 64;        // columns of one task; divides kScaleBlock
inline constexpr int64_t kRowBlock = 96;     // rows of one task
inline constexpr int64_t kDepth = 512;       // k of a packed panel; a multiple of kScaleBlock
inline constexpr int64_t kGrain = 64 << 10;  // multiply-adds worth handing to another thread

inline int tile_rows() { return simd::wide_registers() ? kMaxTileRows : kNarrowTileRows; }

// Rows of the next tile when `left` are to be cut into even tiles of at most `most`.
inline int64_t next_rows(int64_t left, int64_t most) {
  const int64_t tiles = (left + most - 1) / most;
  return (left + tiles - 1) / tiles;
}

// Tasks a chunk of parallel_for should have when one costs `work` multiply-adds.
inline int64_t grain_of(int64_t work) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
}

// ---- Micro kernels ----

// C rows of weights where they lie.
template <class T, int C>
struct RowsView {
  const T* row[C];
  float scale = 1;  // of the current 128 x 128 block, f8e4m3 only

  LOZA_INLINE f32x8 load(int c, int64_t i) const { return scaled(simd::load(row[c] + i)); }
  LOZA_INLINE f32x8 load_first(int c, int64_t i, int64_t count) const {
    return scaled(simd::load_first(row[c] + i, count));
  }
  LOZA_INLINE f32x8 scaled(f32x8 value) const {
    if constexpr (std::is_same_v<T, F8E4M3>) return value * scale;
    return value;
  }
};

// A packed tile: [k / 8][C][8], zeros behind the end.
template <int C>
struct PackedView {
  const float* tile;

  LOZA_INLINE f32x8 load(int c, int64_t i) const { return simd::load(tile + i * C + c * kWidth); }
  LOZA_INLINE f32x8 load_first(int c, int64_t i, int64_t) const { return load(c, i); }
};

// sums[r][c] += x[r] . w[c] over [begin, end); begin is a multiple of 8.
template <int R, int C, class View>
LOZA_INLINE void dot_tile(f32x8 (&sums)[R][C], const float* const (&x)[R], const View& w,
                          int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    f32x8 a[R];
    LOZA_UNROLL
    for (int r = 0; r < R; r++) a[r] = simd::load(x[r] + i);
    LOZA_UNROLL
    for (int c = 0; c < C; c++) {
      const f32x8 b = w.load(c, i);
      LOZA_UNROLL
      for (int r = 0; r < R; r++) sums[r][c] += a[r] * b;
    }
  }
  if (i == end) return;
  f32x8 a[R];
  LOZA_UNROLL
  for (int r = 0; r < R; r++) a[r] = simd::load_first(x[r] + i, end - i);
  LOZA_UNROLL
  for (int c = 0; c < C; c++) {
    const f32x8 b = w.load_first(c, i, end - i);
    LOZA_UNROLL
    for (int r = 0; r < R; r++) sums[r][c] += a[r] * b;
  }
}

// sums[r][:] += sum over j < count of p[r][j] * v[j][0 : 8 C], j ascending.
template <int R, int C, class T>
LOZA_INLINE void axpy_tile(f32x8 (&sums)[R][C], const float* const (&p)[R], const T* v,
                           int64_t stride, int64_t count) {
  for (int64_t j = 0; j < count; j++, v += stride) {
    f32x8 b[C];
    LOZA_UNROLL
    for (int c = 0; c < C; c++) b[c] = simd::load(v + c * kWidth);
    LOZA_UNROLL
    for (int r = 0; r < R; r++) {
      const float a = p[r][j];
      LOZA_UNROLL
      for (int c = 0; c < C; c++) sums[r][c] += b[c] * a;
    }
  }
}

// Calls f<R> for the R in [1, 6] that `rows` says: the step from a run-time count to a tile.
// clang-format off
#define LOZA_FOR_ROWS(rows, f, ...)   \
  switch (rows) {                     \
    case 1: f<1>(__VA_ARGS__); break; \
    case 2: f<2>(__VA_ARGS__); break; \
    case 3: f<3>(__VA_ARGS__); break; \
    case 4: f<4>(__VA_ARGS__); break; \
    case 5: f<5>(__VA_ARGS__); break; \
    case 6: f<6>(__VA_ARGS__); break; \
    default: break;                   \
  }
// clang-format on

// ---- Dot form: out[r][n] (+)= x[r] . w[n] ----

// Some rows by the columns of one panel.
struct Task {
  const float* const* x;  // [rows], each k values
  float* const* out;      // [rows], each pointing at column 0
  int64_t rows = 0;       // at most kRowBlock
  int64_t n_begin = 0;    // a multiple of kPanel
  int64_t n_end = 0;      // at most n_begin + kPanel
  int64_t k = 0;
  const void* weight = nullptr;  // [n, k]
  DType dtype = DType::kF32;
  int64_t weight_stride = 0;     // between rows of the weight
  const float* scale = nullptr;  // [n / 128, k / 128], f8e4m3 only
  int64_t scale_stride = 0;
  bool accumulate = false;
};

LOZA_INLINE const float* scale_row(const Task& task, int64_t n) {
  return task.scale + n / kScaleBlock * task.scale_stride;
}

// Adds the lanes of C sums and stores them.
template <int C>
LOZA_INLINE void store_sums(float* out, const f32x8 (&sums)[C], bool accumulate) {
  if constexpr (C % 4 == 0) {
    LOZA_UNROLL
    for (int c = 0; c < C; c += 4) {
      f32x4 value = simd::sum4(sums[c], sums[c + 1], sums[c + 2], sums[c + 3]);
      if (accumulate) {
        f32x4 old;
        std::memcpy(&old, out + c, sizeof(old));
        value += old;
      }
      simd::store(out + c, value);
    }
  } else {
    LOZA_UNROLL
    for (int c = 0; c < C; c++)
      out[c] = accumulate ? out[c] + simd::sum(sums[c]) : simd::sum(sums[c]);
  }
}

// The first `count` of them.
template <int C>
LOZA_INLINE void store_sums(float* out, const f32x8 (&sums)[C], bool accumulate, int64_t count) {
  if (count >= C) return store_sums(out, sums, accumulate);
  float all[C];
  store_sums(all, sums, false);
  for (int64_t c = 0; c < count; c++) out[c] = accumulate ? out[c] + all[c] : all[c];
}

// R rows by C columns from (row, n) on, straight from the weight.
template <int R, int C, class T>
LOZA_INLINE void direct_tile(const Task& task, int64_t row, int64_t n) {
  f32x8 sums[R][C] = {};
  const float* x[R];
  for (int r = 0; r < R; r++) x[r] = task.x[row + r];
  RowsView<T, C> w;
  for (int c = 0; c < C; c++)
    w.row[c] = static_cast<const T*>(task.weight) + (n + c) * task.weight_stride;
  if constexpr (std::is_same_v<T, F8E4M3>) {
    const float* scale = scale_row(task, n);
    for (int64_t k = 0; k < task.k; k += kScaleBlock) {
      w.scale = scale[k / kScaleBlock];
      dot_tile(sums, x, w, k, std::min(task.k, k + kScaleBlock));
    }
  } else {
    dot_tile(sums, x, w, 0, task.k);
  }
  LOZA_UNROLL
  for (int r = 0; r < R; r++) store_sums(task.out[row + r] + n, sums[r], task.accumulate);
}

template <int R, class T>
LOZA_INLINE void direct_four(const Task& task, int64_t row, int64_t n, const T*) {
  direct_tile<R, 4, T>(task, row, n);
}

template <class T>
LOZA_INLINE void run_direct(const Task& task) {
  const int most = tile_rows();
  int64_t n = task.n_begin;
  if (task.rows == 1)  // at least eight sums hide the latency of one
    for (; n + 8 <= task.n_end; n += 8) direct_tile<1, 8, T>(task, 0, n);
  for (; n + 4 <= task.n_end; n += 4) {
    for (int64_t row = 0, rows; row < task.rows; row += rows) {
      rows = next_rows(task.rows - row, most);
      LOZA_FOR_ROWS(rows, direct_four, task, row, n, static_cast<const T*>(nullptr))
    }
  }
  for (; n < task.n_end; n++)
    for (int64_t row = 0; row < task.rows; row++) direct_tile<1, 1, T>(task, row, n);
}

// Packs k in [k_begin, k_begin + depth) of four weights from n on; columns past n_end are zero.
template <class T>
LOZA_INLINE void pack_tile(float* tile, const Task& task, int64_t n, int64_t k_begin,
                           int64_t depth) {
  for (int c = 0; c < kTileColumns; c++) {
    const bool present = n + c < task.n_end;
    RowsView<T, 1> w;
    w.row[0] = static_cast<const T*>(task.weight) +
               (present ? n + c : task.n_begin) * task.weight_stride + k_begin;
    float* to = tile + c * kWidth;
    for (int64_t i = 0; i < depth; i += kWidth, to += kTileColumns * kWidth) {
      // The next panel continues these rows; a jump from row to row defeats the hardware's guesses.
      if (i % (64 / sizeof(T)) == 0) __builtin_prefetch(w.row[0] + i + kDepth, 0, 2);
      if constexpr (std::is_same_v<T, F8E4M3>)
        if (i % kScaleBlock == 0) w.scale = scale_row(task, n)[(k_begin + i) / kScaleBlock];
      const f32x8 value = i + kWidth <= depth ? w.load(0, i) : w.load_first(0, i, depth - i);
      simd::store(to, present ? value : f32x8{});
    }
  }
}

struct PackTag;

// What run_packed hands to its rows.
struct Panel {
  const float* packed;  // [tiles][stride], see PackedView
  int64_t stride;
  float* sums;  // [rows][kPanel][8], the sums so far when k needs several panels
  int64_t k_begin, depth;
};

template <int R>
LOZA_INLINE void packed_rows(const Task& task, const Panel& panel, int64_t row) {
  const bool first = panel.k_begin == 0, last = panel.k_begin + panel.depth == task.k;
  const float* x[R];
  for (int r = 0; r < R; r++) x[r] = task.x[row + r] + panel.k_begin;
  for (int64_t n = task.n_begin; n < task.n_end; n += kTileColumns) {
    const int64_t column = n - task.n_begin;
    f32x8 sums[R][kTileColumns] = {};
    float* saved = panel.sums + (row * kPanel + column) * kWidth;
    if (!first) {
      LOZA_UNROLL
      for (int r = 0; r < R; r++) LOZA_UNROLL
      for (int c = 0; c < kTileColumns; c++)
        sums[r][c] = simd::load(saved + (r * kPanel + c) * kWidth);
    }
    const PackedView<kTileColumns> w{panel.packed + column / kTileColumns * panel.stride};
    dot_tile(sums, x, w, 0, panel.depth);
    LOZA_UNROLL
    for (int r = 0; r < R; r++) {
      if (last) {
        store_sums(task.out[row + r] + n, sums[r], task.accumulate, task.n_end - n);
        continue;
      }
      LOZA_UNROLL
      for (int c = 0; c < kTileColumns; c++)
        simd::store(saved + (r * kPanel + c) * kWidth, sums[r][c]);
    }
  }
}

template <class T>
LOZA_INLINE void pack_panel(float* packed, int64_t stride, const Task& task, int64_t k_begin,
                            int64_t depth) {
  for (int64_t n = task.n_begin; n < task.n_end; n += kTileColumns, packed += stride)
    pack_tile<T>(packed, task, n, k_begin, depth);
}

LOZA_INLINE void run_packed(const Task& task) {
  const int64_t stride = simd::round_up(std::min(task.k, kDepth), kWidth) * kTileColumns;
  const int64_t packed_floats = stride * (kPanel / kTileColumns);
  const int64_t saved_floats = task.k > kDepth ? task.rows * kPanel * kWidth : 0;
  float* packed = simd::scratch<PackTag>(packed_floats + saved_floats);
  const int most = tile_rows();
  for (int64_t k = 0; k < task.k; k += kDepth) {
    const int64_t depth = std::min(kDepth, task.k - k);
    if (task.dtype == DType::kF32) pack_panel<float>(packed, stride, task, k, depth);
    if (task.dtype == DType::kBF16) pack_panel<Bf16>(packed, stride, task, k, depth);
    if (task.dtype == DType::kF8E4M3) pack_panel<F8E4M3>(packed, stride, task, k, depth);
    const Panel panel{packed, stride, packed + packed_floats, k, depth};
    for (int64_t row = 0, rows; row < task.rows; row += rows) {
      rows = next_rows(task.rows - row, most);
      LOZA_FOR_ROWS(rows, packed_rows, task, panel, row)
    }
  }
}

// The body of an operation's LOZA_MULTIVERSION entry.
LOZA_INLINE void run_task(const Task& task) {
  if (task.rows > (task.dtype == DType::kF8E4M3 ? kDirectRowsF8 : kDirectRows))
    return run_packed(task);
  if (task.dtype == DType::kF32) run_direct<float>(task);
  if (task.dtype == DType::kBF16) run_direct<Bf16>(task);
  if (task.dtype == DType::kF8E4M3) run_direct<F8E4M3>(task);
}

}  // namespace loza::gemm
