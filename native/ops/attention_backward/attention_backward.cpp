// Reverse mode of expanded attention on the CPU, in two passes that are one algorithm: an item sums up
// the gradients of a tile of its own rows while tiles of the other side's rows pass by.
//   own = queries: d_q += ds k                      an item is a tile and a head
//   own = keys:    d_k += ds^T q, d_v += p^T d_out  an item is a tile; the heads share d_k_rope
// Both see scores as own . other and recompute p from the log-sum-exp. In a tile of the other side, an
// own row sees one interval: of keys since those are parts of one block, of queries always.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "cpu/gemm.h"
#include "ops/cpu_ops.h"

namespace loza {

void AttentionBackwardParams::check(DType act) const {
  expect("attention_backward: q", q, act, -1, -1, -1);
  const int64_t rows = q.dim(0), heads = q.dim(1);
  expect("attention_backward: k_rope", k_rope, act, -1, -1);
  expect("attention_backward: d_out", d_out, act, rows, heads, -1);
  const int64_t keys = k_rope.dim(0), rope = k_rope.dim(1);
  const int64_t nope = q.dim(2) - rope, value = d_out.dim(2);
  loza::check(nope > 0, "attention_backward: q ", q, " is no wider than k_rope ", k_rope);
  expect("attention_backward: kv", kv, act, keys, heads, nope + value);
  expect("attention_backward: out", out, out.dtype == act ? act : DType::kF32, rows, heads, value);
  expect("attention_backward: lse", lse, DType::kF32, rows, heads);
  expect("attention_backward: segments", segments, DType::kI32, -1, 6);
  expect("attention_backward: d_q", d_q, act, rows, heads, nope + rope);
  expect("attention_backward: d_kv", d_kv, act, keys, heads, nope + value);
  expect("attention_backward: d_k_rope", d_k_rope, d_k_rope.dtype == act ? act : DType::kF32, keys,
         rope);
  loza::check(softmax_scale > 0, "attention_backward: softmax_scale is ", softmax_scale);
}

namespace cpu {
namespace {

using gemm::kTileColumns;
using simd::f32x8;
using simd::kWidth;

constexpr int64_t kOwnTile = 32;
constexpr int64_t kOtherTile = kBlockTokens;
constexpr int kStripVectors = 4;
constexpr int64_t kStrip = kStripVectors * kWidth;  // columns of a register tile

struct Segment {
  int64_t query_row, query_count, query_position, key_row, key_count, key_position;
};

struct Item {
  const Segment* segment;
  int64_t first, rows;  // of the segment's run of queries or keys
};

// Rows of one side: queries with d_out, lse and d_out . out, or keys with values.
struct Panel {
  float* depth;    // [rows][depth]: q or k, zeros behind their end
  float* value;    // [rows][width]: d_out or v
  float* lse;      // [rows], of queries
  float* product;  // [rows], of queries: d_out . out
};

// A tile of one head in a thread's scratch memory.
struct State {
  const AttentionBackwardParams& params;
  int64_t head = 0, rows = 0;
  int64_t nope = 0, rope = 0, value = 0;
  int64_t depth = 0, width = 0;  // to multiples of kStrip
  Panel own{}, other{};
  float* scores = nullptr;                         // [kOwnTile][kOtherTile]: own . other, then p
  float* gradients = nullptr;                      // the same: d_out . v, then ds
  float* depth_sums = nullptr;                     // [kOwnTile][depth]: d_q or d_k
  float* value_sums = nullptr;                     // [kOwnTile][width]: d_v
  int64_t from[kOwnTile] = {}, to[kOwnTile] = {};  // what each own row sees of the other tile
};

struct StateTag;

int64_t panel_floats(const State& s, int64_t rows) { return rows * (s.depth + s.width + 2); }

Panel make_panel(const State& s, float*& memory, int64_t rows) {
  Panel panel;
  panel.depth = memory;
  panel.value = panel.depth + rows * s.depth;
  panel.lse = panel.value + rows * s.width;
  panel.product = panel.lse + rows;
  memory = panel.product + rows;
  return panel;
}

State make_state(const AttentionBackwardParams& params, int64_t rows) {
  State s{.params = params, .rows = rows};
  s.rope = params.k_rope.dim(1);
  s.nope = params.q.dim(2) - s.rope;
  s.value = params.d_out.dim(2);
  s.depth = simd::round_up(s.nope + s.rope, kStrip);
  s.width = simd::round_up(s.value, kStrip);
  const int64_t floats = panel_floats(s, kOwnTile) + panel_floats(s, kOtherTile) +
                         kOwnTile * (2 * kOtherTile + s.depth + s.width);
  float* memory = simd::scratch<StateTag>(floats);
  s.own = make_panel(s, memory, kOwnTile);
  s.other = make_panel(s, memory, kOtherTile);
  s.scores = memory;
  s.gradients = s.scores + kOwnTile * kOtherTile;
  s.depth_sums = s.gradients + kOwnTile * kOtherTile;
  s.value_sums = s.depth_sums + kOwnTile * s.depth;
  return s;
}

// ---- Loads ----

LOZA_INLINE void copy(float* to, const float* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

template <class T = const float>
LOZA_INLINE T* at(const Tensor& tensor, int64_t row, int64_t head) {
  return tensor.as<T>() + row * tensor.stride(0) + head * tensor.stride(1);
}

LOZA_INLINE float dot(const float* a, const float* b, int64_t count) {
  f32x8 sum = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sum += simd::load(a + i) * simd::load(b + i);
  if (i < count) sum += simd::load_first(a + i, count - i) * simd::load_first(b + i, count - i);
  return simd::sum(sum);
}

LOZA_INLINE void load_queries(const State& s, const Panel& to, int64_t first, int64_t count) {
  const AttentionBackwardParams& p = s.params;
  const int64_t depth = s.nope + s.rope;
  for (int64_t r = 0; r < count; r++) {
    const int64_t row = first + r;
    const float* d_out = at(p.d_out, row, s.head);
    copy(to.depth + r * s.depth, at(p.q, row, s.head), depth);
    std::fill_n(to.depth + r * s.depth + depth, s.depth - depth, 0.0f);
    copy(to.value + r * s.width, d_out, s.value);
    std::fill_n(to.value + r * s.width + s.value, s.width - s.value, 0.0f);
    to.lse[r] = *at(p.lse, row, s.head);
    to.product[r] = dot(d_out, at(p.out, row, s.head), s.value);
  }
}

LOZA_INLINE void load_keys(const State& s, const Panel& to, int64_t first, int64_t count) {
  const AttentionBackwardParams& p = s.params;
  const int64_t depth = s.nope + s.rope;
  for (int64_t r = 0; r < count; r++) {
    const float* kv = at(p.kv, first + r, s.head);
    float* key = to.depth + r * s.depth;
    copy(key, kv, s.nope);
    copy(key + s.nope, p.k_rope.as<const float>() + (first + r) * p.k_rope.stride(0), s.rope);
    std::fill_n(key + depth, s.depth - depth, 0.0f);
    copy(to.value + r * s.width, kv + s.nope, s.value);
    std::fill_n(to.value + r * s.width + s.value, s.width - s.value, 0.0f);
  }
}

// ---- Products ----

// out[row + r][column + c] = own[row + r] . other[column + c], both of `depth` values.
template <int R>
LOZA_INLINE void dot_rows(float* out, const float* own, const float* other, int64_t depth,
                          int64_t row, int64_t column) {
  f32x8 sums[R][kTileColumns] = {};
  const float* x[R];
  for (int r = 0; r < R; r++) x[r] = own + (row + r) * depth;
  gemm::RowsView<float, kTileColumns> w;
  for (int c = 0; c < kTileColumns; c++) w.row[c] = other + (column + c) * depth;
  gemm::dot_tile(sums, x, w, 0, depth);
  LOZA_UNROLL
  for (int r = 0; r < R; r++)
    gemm::store_sums(out + (row + r) * kOtherTile + column, sums[r], false);
}

// sums[row + r][strip] += weights[row + r][begin, end) . other[begin, end)[strip]
template <int R>
LOZA_INLINE void add_rows(float* sums, const float* weights, const float* other, int64_t depth,
                          int64_t row, int64_t begin, int64_t end) {
  const float* p[R];
  for (int r = 0; r < R; r++) p[r] = weights + (row + r) * kOtherTile + begin;
  for (int64_t column = 0; column < depth; column += kStrip) {
    f32x8 strip[R][kStripVectors];
    float* to = sums + row * depth + column;
    LOZA_UNROLL
    for (int r = 0; r < R; r++) LOZA_UNROLL
    for (int c = 0; c < kStripVectors; c++) strip[r][c] = simd::load(to + r * depth + c * kWidth);
    gemm::axpy_tile(strip, p, other + begin * depth + column, depth, end - begin);
    LOZA_UNROLL
    for (int r = 0; r < R; r++) LOZA_UNROLL
    for (int c = 0; c < kStripVectors; c++) simd::store(to + r * depth + c * kWidth, strip[r][c]);
  }
}

// The columns that some of the rows see.
struct Interval {
  int64_t begin, end;
};

LOZA_INLINE Interval seen_by(const State& s, int64_t row, int64_t rows) {
  return {*std::min_element(s.from + row, s.from + row + rows),
          *std::max_element(s.to + row, s.to + row + rows)};
}

// scores = own . other and gradients = d_out . v, where some row of a register tile sees a column.
LOZA_INLINE void multiply(const State& s) {
  const int most = gemm::tile_rows();
  for (int64_t row = 0, rows; row < s.rows; row += rows) {
    rows = gemm::next_rows(s.rows - row, most);
    const Interval seen = seen_by(s, row, rows);
    for (int64_t c = seen.begin / kTileColumns * kTileColumns; c < seen.end; c += kTileColumns) {
      LOZA_FOR_ROWS(rows, dot_rows, s.scores, s.own.depth, s.other.depth, s.depth, row, c)
      LOZA_FOR_ROWS(rows, dot_rows, s.gradients, s.own.value, s.other.value, s.width, row, c)
    }
  }
}

// Adds p (or ds) times the other side to the sums. Weights of pairs that do not see each other are 0.
LOZA_INLINE void add(const State& s, float* sums, const float* weights, const float* other,
                     int64_t depth) {
  const int most = gemm::tile_rows();
  for (int64_t row = 0, rows; row < s.rows; row += rows) {
    rows = gemm::next_rows(s.rows - row, most);
    const Interval seen = seen_by(s, row, rows);
    if (seen.begin >= seen.end) continue;
    LOZA_FOR_ROWS(rows, add_rows, sums, weights, other, depth, row, seen.begin, seen.end)
  }
}

// Scores become p, products d_out . v become ds; both are 0 where the row does not see the column.
template <bool kOwnQueries>
LOZA_INLINE void soften_row(const State& s, int64_t row) {
  const float scale = s.params.softmax_scale;
  const int64_t from = s.from[row], to = s.to[row];
  float *p = s.scores + row * kOtherTile, *ds = s.gradients + row * kOtherTile;
  for (int64_t j = from / kWidth * kWidth; j < to; j += kWidth) {
    f32x8 lse, product;
    if constexpr (kOwnQueries)
      lse = simd::splat(s.own.lse[row]), product = simd::splat(s.own.product[row]);
    else
      lse = simd::load(s.other.lse + j), product = simd::load(s.other.product + j);
    const f32x8 weight = simd::exp(simd::load(p + j) * scale - lse);
    simd::store(p + j, weight);
    simd::store(ds + j, weight * (simd::load(ds + j) - product) * scale);
  }
  std::fill(p, p + from, 0.0f), std::fill(p + std::max(from, to), p + kOtherTile, 0.0f);
  std::fill(ds, ds + from, 0.0f), std::fill(ds + std::max(from, to), ds + kOtherTile, 0.0f);
}

template <bool kOwnQueries>
LOZA_INLINE void attend_tile(const State& s) {
  multiply(s);
  for (int64_t r = 0; r < s.rows; r++) soften_row<kOwnQueries>(s, r);
  add(s, s.depth_sums, s.gradients, s.other.depth, s.depth);
  if constexpr (!kOwnQueries) add(s, s.value_sums, s.scores, s.other.value, s.width);
}

// ---- Gradients of queries ----

// What each row at `position` and behind sees of the keys at [begin, end) of one block.
LOZA_INLINE bool set_keys(State& s, int64_t position, int64_t begin, int64_t end) {
  const KeyRange& range = s.params.range;
  const int64_t block = begin / kBlockTokens;
  bool any = false;
  for (int64_t r = 0; r < s.rows; r++) {
    const int64_t t = position + r;
    const bool visible = block < range.sink_blocks ||
                         block >= range.first_local_block(static_cast<int32_t>(t / kBlockTokens));
    s.from[r] = 0;
    s.to[r] = visible ? std::clamp<int64_t>(t + 1 - begin, 0, end - begin) : 0;
    any |= s.to[r] > 0;
  }
  return any;
}

LOZA_MULTIVERSION void run_queries(const AttentionBackwardParams& params, const Item& item,
                                   int64_t head) {
  const Segment& segment = *item.segment;
  const KeyRange& range = params.range;
  State s = make_state(params, item.rows);
  s.head = head;
  const int64_t first_row = segment.query_row + item.first;
  const int64_t position = segment.query_position + item.first;
  load_queries(s, s.own, first_row, s.rows);
  std::fill_n(s.depth_sums, s.rows * s.depth, 0.0f);
  const int64_t key_end = std::min(segment.key_position + segment.key_count, position + s.rows);
  const int64_t sink_end = int64_t{range.sink_blocks} * kBlockTokens;
  const auto block = static_cast<int32_t>(position / kBlockTokens);
  const int64_t local_begin = int64_t{range.first_local_block(block)} * kBlockTokens;
  for (int64_t begin = segment.key_position, end; begin < key_end; begin = end) {
    end = local_begin;  // every row's local part starts here or later
    if (begin >= sink_end && begin < local_begin) continue;
    end = std::min(key_end, (begin / kBlockTokens + 1) * kBlockTokens);
    if (!set_keys(s, position, begin, end)) continue;
    load_keys(s, s.other, segment.key_row + begin - segment.key_position, end - begin);
    attend_tile<true>(s);
  }
  for (int64_t r = 0; r < s.rows; r++) {
    float* to = at<float>(params.d_q, first_row + r, head);
    const float* sums = s.depth_sums + r * s.depth;
    for (int64_t i = 0; i < s.nope + s.rope; i++) to[i] += sums[i];
  }
}

// ---- Gradients of keys ----

// The queries that see a key of this position: [position, end).
int64_t end_of_queries(const KeyRange& range, int64_t position) {
  const int64_t block = position / kBlockTokens;
  if (block < range.sink_blocks) return INT64_MAX;
  return (block + range.local_blocks) * kBlockTokens;
}

// Which of the queries at [begin, end) see each key at `position` and behind.
LOZA_INLINE bool set_queries(State& s, int64_t position, int64_t begin, int64_t end) {
  bool any = false;
  for (int64_t r = 0; r < s.rows; r++) {
    const int64_t key = position + r;
    s.from[r] = std::clamp(key, begin, end) - begin;
    s.to[r] = std::clamp(end_of_queries(s.params.range, key), begin, end) - begin;
    any |= s.from[r] < s.to[r];
  }
  return any;
}

LOZA_INLINE void store_keys(const State& s, int64_t first_row) {
  const AttentionBackwardParams& p = s.params;
  for (int64_t r = 0; r < s.rows; r++) {
    const int64_t row = first_row + r;
    const float *keys = s.depth_sums + r * s.depth, *values = s.value_sums + r * s.width;
    float* to = at<float>(p.d_kv, row, s.head);
    for (int64_t i = 0; i < s.nope; i++) to[i] += keys[i];
    for (int64_t i = 0; i < s.value; i++) to[s.nope + i] += values[i];
    float* to_rope = p.d_k_rope.as<float>() + row * p.d_k_rope.stride(0);
    for (int64_t i = 0; i < s.rope; i++) to_rope[i] += keys[s.nope + i];
  }
}

LOZA_MULTIVERSION void run_keys(const AttentionBackwardParams& params, const Item& item,
                                int64_t head) {
  const Segment& segment = *item.segment;
  State s = make_state(params, item.rows);
  s.head = head;
  const int64_t first_row = segment.key_row + item.first;
  const int64_t position = segment.key_position + item.first;
  load_keys(s, s.own, first_row, s.rows);
  std::fill_n(s.depth_sums, s.rows * s.depth, 0.0f);
  std::fill_n(s.value_sums, s.rows * s.width, 0.0f);
  int64_t query_end = segment.query_position + segment.query_count;
  query_end = std::min(query_end, std::max(end_of_queries(params.range, position),
                                           end_of_queries(params.range, position + s.rows - 1)));
  for (int64_t begin = std::max(position, segment.query_position), end; begin < query_end;
       begin = end) {
    end = std::min(begin + kOtherTile, query_end);
    if (!set_queries(s, position, begin, end)) continue;
    load_queries(s, s.other, segment.query_row + begin - segment.query_position, end - begin);
    attend_tile<false>(s);
  }
  store_keys(s, first_row);
}

// ---- Work ----

void check_run(const char* what, int64_t index, int64_t row, int64_t count, int64_t position,
               const Tensor& tensor) {
  check(row >= 0 && count >= 0 && position >= 0 && row + count <= tensor.dim(0),
        "attention_backward: segment ", index, " has ", what, " rows ", row, " + ", count,
        " at position ", position, " of ", tensor);
}

// Each row is in one run [first, second) at most.
void check_apart(const char* what, std::vector<std::pair<int64_t, int64_t>> runs) {
  std::sort(runs.begin(), runs.end());
  for (size_t i = 1; i < runs.size(); i++)
    check(runs[i - 1].second <= runs[i].first, "attention_backward: two segments share the ", what,
          " row ", runs[i].first);
}

std::vector<Segment> list_segments(const AttentionBackwardParams& params) {
  const Tensor& table = params.segments;
  std::vector<Segment> segments;
  std::vector<std::pair<int64_t, int64_t>> queries, keys;
  for (int64_t i = 0; i < table.dim(0); i++) {
    const int32_t* f = table.as<int32_t>() + i * table.stride(0);
    const Segment s{f[0], f[1], f[2], f[3], f[4], f[5]};
    check_run("query", i, s.query_row, s.query_count, s.query_position, params.q);
    check_run("key", i, s.key_row, s.key_count, s.key_position, params.kv);
    if (s.query_count == 0 || s.key_count == 0) continue;
    segments.push_back(s);
    queries.emplace_back(s.query_row, s.query_row + s.query_count);
    keys.emplace_back(s.key_row, s.key_row + s.key_count);
  }
  check_apart("query", std::move(queries));
  check_apart("key", std::move(keys));
  return segments;
}

std::vector<Item> cut(const std::vector<Segment>& segments, int64_t Segment::*count) {
  std::vector<Item> items;
  for (const Segment& s : segments)
    for (int64_t first = 0; first < s.*count; first += kOwnTile)
      items.push_back({&s, first, std::min(kOwnTile, s.*count - first)});
  return items;
}

void clear(const Tensor& tensor) {
  const int64_t heads = tensor.rank == 3 ? tensor.dim(1) : 1, width = tensor.dim(-1);
  const int64_t grain = gemm::grain_of(heads * width);
  parallel_for(tensor.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t head = 0; head < heads; head++)
        std::fill_n(at<float>(tensor, row, head), width, 0.0f);
  });
}

}  // namespace

void compute(const AttentionBackwardParams& params) {
  const std::vector<Segment> segments = list_segments(params);
  const std::vector<Item> queries = cut(segments, &Segment::query_count);
  const std::vector<Item> keys = cut(segments, &Segment::key_count);
  const int64_t heads = params.q.dim(1);
  if (!params.accumulate)
    for (const Tensor* tensor : {&params.d_q, &params.d_kv, &params.d_k_rope}) clear(*tensor);
  parallel_for(static_cast<int64_t>(queries.size()) * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) run_queries(params, queries[i / heads], i % heads);
  });
  parallel_for(static_cast<int64_t>(keys.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t head = 0; head < heads; head++) run_keys(params, keys[i], head);
  });
}

}  // namespace cpu
}  // namespace loza
