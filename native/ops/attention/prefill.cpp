// Expanded attention on the CPU: flash attention over tiles of one 128-token block.
//
// One item is a tile of query rows times one head; it walks every segment of its rows in the listed
// order, so rows need no lock. A key tile never crosses an absolute block: inside it a row sees a
// prefix of the keys or nothing, which is all the masking there is. Tiles lie where the keys lie,
// not where the queries do, so a row's result does not depend on its neighbours.
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "cpu/gemm.h"
#include "ops/cpu_ops.h"

namespace loza {

void AttentionPrefillParams::check(DType act) const {
  expect("attention_prefill: q", q, act, -1, -1, -1);
  const int64_t rows = q.dim(0), heads = q.dim(1);
  expect("attention_prefill: k_rope", k_rope, act, -1, -1);
  expect("attention_prefill: out", out, out.dtype == act ? act : DType::kF32, rows, heads, -1);
  const int64_t nope = q.dim(2) - k_rope.dim(1);
  loza::check(nope > 0, "attention_prefill: q ", q, " is no wider than k_rope ", k_rope);
  expect("attention_prefill: kv", kv, act, k_rope.dim(0), heads, nope + out.dim(2));
  expect("attention_prefill: lse", lse, DType::kF32, rows, heads);
  expect("attention_prefill: segments", segments, DType::kI32, -1, 6);
  loza::check(softmax_scale > 0, "attention_prefill: softmax_scale is ", softmax_scale);
}

namespace cpu {
namespace {

using gemm::kTileColumns;
using simd::f32x4;
using simd::f32x8;
using simd::kWidth;

constexpr int64_t kQueryTile = 32;
constexpr int64_t kKeyTile = kBlockTokens;
constexpr int kStripVectors = 4;
constexpr int64_t kStrip = kStripVectors * kWidth;  // value columns of a register tile
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Segment {
  int64_t query_row, query_count, query_position, key_row, key_count, key_position;
};

// Query rows [first_row, first_row + rows) of the run that these segments share.
struct Tile {
  const Segment* segments;
  int64_t segment_count, first_row, rows;
};

// A query tile of one head in a thread's scratch memory.
struct State {
  const AttentionPrefillParams& params;
  int64_t head;
  int64_t rows;
  int64_t nope = 0, rope = 0, value = 0;
  int64_t nope_padded = 0, depth = 0;  // to multiples of 8; depth is both parts
  int64_t width = 0;                   // value, to a multiple of kStrip
  float* q = nullptr;                  // [kQueryTile][depth]
  float* k = nullptr;                  // [kKeyTile / 4][depth / 8][4][8]
  float* v = nullptr;                  // [width / kStrip][kKeyTile][kStrip]
  float* scores = nullptr;             // [kQueryTile][kKeyTile], then the softmax's numerators
  float* sums = nullptr;               // [kQueryTile][width]
  float highest[kQueryTile] = {}, total[kQueryTile] = {};
  int64_t limit[kQueryTile] = {};  // keys of the current tile that a row sees
};

struct StateTag;

State make_state(const AttentionPrefillParams& params, int64_t head, int64_t rows) {
  State state{.params = params, .head = head, .rows = rows};
  state.rope = params.k_rope.dim(1);
  state.nope = params.q.dim(2) - state.rope;
  state.value = params.out.dim(2);
  state.nope_padded = simd::round_up(state.nope, kWidth);
  state.depth = state.nope_padded + simd::round_up(state.rope, kWidth);
  state.width = simd::round_up(state.value, kStrip);
  state.q = simd::scratch<StateTag>((kQueryTile + kKeyTile) * (state.depth + state.width) +
                                    kQueryTile * kKeyTile);
  state.k = state.q + kQueryTile * state.depth;
  state.v = state.k + kKeyTile * state.depth;
  state.scores = state.v + kKeyTile * state.width;
  state.sums = state.scores + kQueryTile * kKeyTile;
  std::fill_n(state.sums, rows * state.width, 0.0f);
  std::fill_n(state.highest, rows, kNothing);
  std::fill_n(state.total, rows, 0.0f);
  return state;
}

// Copies `count` floats in vectors that lie `step` apart, zeros up to the next multiple of 8.
LOZA_INLINE void copy_padded(float* to, const float* from, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; i += kWidth, to += step) {
    const int64_t left = count - i;
    simd::store(to, left >= kWidth ? simd::load(from + i) : simd::load_first(from + i, left));
  }
}

LOZA_INLINE void load_queries(const State& s, int64_t first_row) {
  const Tensor& q = s.params.q;
  for (int64_t r = 0; r < s.rows; r++) {
    const float* row = q.as<float>() + (first_row + r) * q.stride(0) + s.head * q.stride(1);
    copy_padded(s.q + r * s.depth, row, s.nope, kWidth);
    copy_padded(s.q + r * s.depth + s.nope_padded, row + s.nope, s.rope, kWidth);
  }
}

// Keys [key_row, key_row + count), both parts side by side in the packed form of gemm.h.
LOZA_INLINE void load_keys(const State& s, int64_t key_row, int64_t count) {
  const Tensor &kv = s.params.kv, &k_rope = s.params.k_rope;
  constexpr int64_t kStep = kTileColumns * kWidth;
  for (int64_t j = 0; j < simd::round_up(count, kTileColumns); j++) {
    float* to = s.k + j / kTileColumns * kTileColumns * s.depth + j % kTileColumns * kWidth;
    if (j >= count) {
      for (int64_t i = 0; i < s.depth; i += kWidth, to += kStep) simd::store(to, f32x8{});
      continue;
    }
    const int64_t row = key_row + j;
    copy_padded(to, kv.as<float>() + row * kv.stride(0) + s.head * kv.stride(1), s.nope, kStep);
    copy_padded(to + s.nope_padded * kTileColumns, k_rope.as<float>() + row * k_rope.stride(0),
                s.rope, kStep);
  }
}

LOZA_INLINE void load_values(const State& s, int64_t key_row, int64_t count) {
  const Tensor& kv = s.params.kv;
  for (int64_t j = 0; j < count; j++) {
    const float* row =
        kv.as<float>() + (key_row + j) * kv.stride(0) + s.head * kv.stride(1) + s.nope;
    for (int64_t c = 0; c < s.width; c += kStrip) {
      float* to = s.v + c * kKeyTile + j * kStrip;
      const int64_t columns = std::min(kStrip, s.value - c);
      if (columns < kStrip) std::fill_n(to, kStrip, 0.0f);
      copy_padded(to, row + c, columns, kWidth);
    }
  }
}

// How many of the keys at absolute positions [begin, end) of one block each row sees.
LOZA_INLINE int64_t set_limits(State& s, int64_t position, int64_t begin, int64_t end) {
  const KeyRange& range = s.params.range;
  const int64_t block = begin / kBlockTokens;
  int64_t most = 0;
  for (int64_t r = 0; r < s.rows; r++) {
    const int64_t t = position + r;
    const bool visible = block < range.sink_blocks ||
                         block >= range.first_local_block(static_cast<int32_t>(t / kBlockTokens));
    s.limit[r] = visible ? std::clamp<int64_t>(t + 1 - begin, 0, end - begin) : 0;
    most = std::max(most, s.limit[r]);
  }
  return most;
}

template <int R>
LOZA_INLINE void score_rows(const State& s, int64_t row, int64_t key) {
  f32x8 sums[R][kTileColumns] = {};
  const float* q[R];
  for (int r = 0; r < R; r++) q[r] = s.q + (row + r) * s.depth;
  gemm::dot_tile(sums, q, gemm::PackedView<kTileColumns>{s.k + key * s.depth}, 0, s.depth);
  LOZA_UNROLL
  for (int r = 0; r < R; r++)
    gemm::store_sums(s.scores + (row + r) * kKeyTile + key, sums[r], false);
}

// Scores of rows that see no key of a group of four are not computed; those of masked keys may be,
// and are never read.
LOZA_INLINE void score(const State& s, int64_t keys) {
  const int most = gemm::tile_rows();
  for (int64_t key = 0; key < keys; key += kTileColumns) {
    for (int64_t row = 0, rows; row < s.rows; row += rows) {
      rows = gemm::next_rows(s.rows - row, most);
      if (*std::max_element(s.limit + row, s.limit + row + rows) <= key) continue;
      LOZA_FOR_ROWS(rows, score_rows, s, row, key)
    }
  }
}

// Turns a row's scores into numerators and rescales what the row has summed up so far.
LOZA_INLINE void soften_row(State& s, int64_t row) {
  const int64_t limit = s.limit[row], padded = simd::round_up(limit, kWidth);
  float* scores = s.scores + row * kKeyTile;
  std::fill(scores + limit, scores + padded, kNothing);
  f32x8 best = simd::splat(kNothing);
  for (int64_t j = 0; j < padded; j += kWidth) best = simd::max(best, simd::load(scores + j));
  const float scale = s.params.softmax_scale;
  const float highest = std::max(s.highest[row], simd::max_lane(best) * scale);
  f32x8 total = {};
  for (int64_t j = 0; j < padded; j += kWidth) {
    const f32x8 p = simd::exp(simd::load(scores + j) * scale - highest);
    simd::store(scores + j, p);
    total += p;
  }
  if (highest != s.highest[row]) {
    const float shrink = std::exp(s.highest[row] - highest);
    s.total[row] *= shrink;
    float* sums = s.sums + row * s.width;
    for (int64_t c = 0; c < s.width; c += kWidth)
      simd::store(sums + c, simd::load(sums + c) * shrink);
  }
  s.total[row] += simd::sum(total);
  s.highest[row] = highest;
}

// sums[row + r][strip] += p[row + r][begin, end) . v[begin, end)[strip]
template <int R>
LOZA_INLINE void add_rows(const State& s, int64_t row, int64_t column, int64_t begin, int64_t end) {
  f32x8 sums[R][kStripVectors];
  const float* p[R];
  float* to = s.sums + row * s.width + column;
  LOZA_UNROLL
  for (int r = 0; r < R; r++) {
    p[r] = s.scores + (row + r) * kKeyTile + begin;
    LOZA_UNROLL
    for (int c = 0; c < kStripVectors; c++) sums[r][c] = simd::load(to + r * s.width + c * kWidth);
  }
  gemm::axpy_tile(sums, p, s.v + column * kKeyTile + begin * kStrip, kStrip, end - begin);
  LOZA_UNROLL
  for (int r = 0; r < R; r++) LOZA_UNROLL
  for (int c = 0; c < kStripVectors; c++) simd::store(to + r * s.width + c * kWidth, sums[r][c]);
}

// Rows of a register tile share the keys that all of them see; the rest is added row by row, since
// a masked key may hold NaN and must not be multiplied, not even by zero.
LOZA_INLINE void add_values(const State& s) {
  const int most = gemm::tile_rows();
  for (int64_t column = 0; column < s.width; column += kStrip) {
    for (int64_t row = 0, rows; row < s.rows; row += rows) {
      rows = gemm::next_rows(s.rows - row, most);
      const int64_t common = *std::min_element(s.limit + row, s.limit + row + rows);
      if (common > 0) {
        LOZA_FOR_ROWS(rows, add_rows, s, row, column, 0, common)
      }
      for (int64_t r = row; r < row + rows; r++)
        if (s.limit[r] > common) add_rows<1>(s, r, column, common, s.limit[r]);
    }
  }
}

LOZA_INLINE void attend(State& s, const Segment& segment, int64_t first_row) {
  const KeyRange& range = s.params.range;
  const int64_t position = segment.query_position + first_row - segment.query_row;
  const int64_t key_end = segment.key_position + segment.key_count;
  const int64_t visible_end = std::min(key_end, position + s.rows);
  const int64_t sink_end = int64_t{range.sink_blocks} * kBlockTokens;
  const int64_t local_begin =
      int64_t{range.first_local_block(static_cast<int32_t>(position / kBlockTokens))} *
      kBlockTokens;
  int64_t begin = segment.key_position;
  while (begin < visible_end) {
    if (begin >= sink_end && begin < local_begin) {
      begin = local_begin;  // every row's local part starts here or later
      continue;
    }
    const int64_t end = std::min(key_end, (begin / kBlockTokens + 1) * kBlockTokens);
    const int64_t keys = set_limits(s, position, begin, end);
    if (keys > 0) {
      const int64_t key_row = segment.key_row + begin - segment.key_position;
      load_keys(s, key_row, keys);
      score(s, keys);
      for (int64_t r = 0; r < s.rows; r++)
        if (s.limit[r] > 0) soften_row(s, r);
      load_values(s, key_row, keys);
      add_values(s);
    }
    begin = end;
  }
}

// Merges by log-sum-exp into `out` and `lse`; an old lse of -inf says that `out` holds nothing.
LOZA_INLINE void merge(const State& s, int64_t first_row) {
  const Tensor &out = s.params.out, &lse = s.params.lse;
  for (int64_t r = 0; r < s.rows; r++) {
    if (s.total[r] == 0) continue;
    const int64_t row = first_row + r;
    float* to = out.as<float>() + row * out.stride(0) + s.head * out.stride(1);
    float* to_lse = lse.as<float>() + row * lse.stride(0) + s.head * lse.stride(1);
    const float* sums = s.sums + r * s.width;
    const float inverse = 1 / s.total[r], found = s.highest[r] + std::log(s.total[r]);
    if (*to_lse == kNothing) {
      for (int64_t c = 0; c < s.value; c++) to[c] = sums[c] * inverse;
      *to_lse = found;
      continue;
    }
    const float highest = std::max(found, *to_lse);
    const float old_part = std::exp(*to_lse - highest), new_part = std::exp(found - highest);
    const float share = new_part / (old_part + new_part);
    for (int64_t c = 0; c < s.value; c++) {
      const float value = sums[c] * inverse;
      to[c] += (value - to[c]) * share;
    }
    *to_lse = highest + std::log(old_part + new_part);
  }
}

LOZA_MULTIVERSION void run_tile(const AttentionPrefillParams& params, const Tile& tile,
                                int64_t head) {
  State state = make_state(params, head, tile.rows);
  load_queries(state, tile.first_row);
  for (int64_t i = 0; i < tile.segment_count; i++) attend(state, tile.segments[i], tile.first_row);
  merge(state, tile.first_row);
}

// The segments that have anything to do, ordered by query row and among equals as listed.
void list_segments(const AttentionPrefillParams& params, std::vector<Segment>& segments) {
  const Tensor& table = params.segments;
  segments.clear();
  for (int64_t i = 0; i < table.dim(0); i++) {
    const int32_t* f = table.as<int32_t>() + i * table.stride(0);
    const Segment s{f[0], f[1], f[2], f[3], f[4], f[5]};
    check(s.query_row >= 0 && s.query_count >= 0 && s.query_position >= 0 &&
              s.query_row + s.query_count <= params.q.dim(0),
          "attention_prefill: segment ", i, " has query rows ", s.query_row, " + ", s.query_count,
          " at position ", s.query_position, " of ", params.q);
    check(s.key_row >= 0 && s.key_count >= 0 && s.key_position >= 0 &&
              s.key_row + s.key_count <= params.kv.dim(0),
          "attention_prefill: segment ", i, " has key rows ", s.key_row, " + ", s.key_count,
          " at position ", s.key_position, " of ", params.kv);
    if (s.query_count > 0 && s.key_count > 0) segments.push_back(s);
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.query_row < b.query_row; });
}

void list_tiles(const std::vector<Segment>& segments, std::vector<Tile>& tiles) {
  tiles.clear();
  for (size_t i = 0, next = 0; i < segments.size(); i = next) {
    const Segment& s = segments[i];
    const int64_t end = s.query_row + s.query_count;
    for (next = i + 1; next < segments.size() && segments[next].query_row == s.query_row; next++)
      check(segments[next].query_count == s.query_count,
            "attention_prefill: two segments share query row ", s.query_row, " but not their run");
    check(next == segments.size() || segments[next].query_row >= end,
          "attention_prefill: the query runs of two segments overlap before row ", end);
    for (int64_t row = s.query_row; row < end; row += kQueryTile)
      tiles.push_back({&s, static_cast<int64_t>(next - i), row, std::min(kQueryTile, end - row)});
  }
}

}  // namespace

void compute(const AttentionPrefillParams& params) {
  thread_local std::vector<Segment> listed_segments;
  thread_local std::vector<Tile> listed_tiles;
  std::vector<Tile>& tiles = listed_tiles;  // the lambda runs on other threads too
  list_segments(params, listed_segments);
  list_tiles(listed_segments, tiles);
  const int64_t heads = params.q.dim(1);
  int64_t keys = 0;
  for (const Segment& segment : listed_segments) keys = std::max(keys, segment.key_count);
  const int64_t work =
      std::min(kQueryTile, params.q.dim(0)) * keys * (params.q.dim(2) + params.out.dim(2));
  parallel_for(static_cast<int64_t>(tiles.size()) * heads, gemm::grain_of(work),
               [&](int64_t begin, int64_t end) {
                 for (int64_t item = begin; item < end; item++)
                   run_tile(params, tiles[item / heads], item % heads);
               });
}

}  // namespace cpu
}  // namespace loza
