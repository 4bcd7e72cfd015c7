// Absorbed attention on the CPU. One item is a query row, some heads and a split of the keys;
// splits are cut at absolute positions that depend on the row's own position only, and are merged
// in ascending order: a row's result does not depend on the batch or on the form of its table.
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "cpu/gemm.h"
#include "ops/cpu_ops.h"
#include "ops/latent_cache.h"

namespace loza {

static void check_plan(const char* name, const Tensor& plan, int64_t rows, int64_t heads,
                       int64_t sequences) {
  expect(name, plan, DType::kI32, -1);
  const int64_t needed = plan_ints(rows, heads, sequences);
  check(plan.contiguous() && plan.dim(0) >= needed, name, ": ", plan, " has not ", needed,
        " values");
}

void AttentionDecodeParams::check(DType act) const {
  expect("attention_decode: q", q, act, -1, -1, -1);
  const int64_t rows = q.dim(0), heads = q.dim(1), width = q.dim(2);
  expect("attention_decode: out", out, act, rows, heads, -1);
  if (lse) expect("attention_decode: lse", lse, DType::kF32, rows, heads);
  loza::check(out.dim(2) <= width, "attention_decode: out ", out, " is wider than q ", q);
  expect_latent_cache("attention_decode: cache", cache, out.dim(2), width - out.dim(2));
  expect("attention_decode: block_table", block_table, DType::kI32, -1, -1);
  const int64_t sequences = block_table.dim(0);
  expect("attention_decode: first_local", first_local, DType::kI32, sequences);
  expect("attention_decode: query_starts", query_starts, DType::kI32, sequences + 1);
  expect("attention_decode: positions", positions, DType::kI32, rows);
  if (plan) check_plan("attention_decode: plan", plan, rows, heads, sequences);
  loza::check(softmax_scale > 0, "attention_decode: softmax_scale is ", softmax_scale);
}

void AttentionPlanParams::check(DType) const {
  expect("attention_plan: block_table", block_table, DType::kI32, -1, -1);
  const int64_t sequences = block_table.dim(0);
  expect("attention_plan: first_local", first_local, DType::kI32, sequences);
  expect("attention_plan: query_starts", query_starts, DType::kI32, sequences + 1);
  expect("attention_plan: positions", positions, DType::kI32, -1);
  expect("attention_plan: plan", plan, DType::kI32, -1);
  loza::check(heads > 0, "attention_plan: heads is ", heads);
  check_plan("attention_plan: plan", plan, positions.dim(0), heads, sequences);
}

namespace cpu {
namespace {

using simd::f32x8;
using simd::kWidth;

constexpr int64_t kHeadTile = 8;
constexpr int64_t kKeyTile = 64;              // divides a block
constexpr int64_t kMinSplitBlocks = 4;        // blocks of a split, doubled
constexpr int64_t kMaxSplits = 64;            // until a row has at most so many
constexpr int64_t kPartialFloats = 16 << 20;  // partial results alive at a time
constexpr int kMaxHeadRows = 4;               // heads of a register tile
constexpr int kKeyColumns = 4;                // keys of one
constexpr int kStripVectors = 4;
constexpr int64_t kStrip = kStripVectors * kWidth;  // latent columns of one
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// A query row, as the tables say when the operation runs.
struct Row {
  int64_t row, sequence, position;
  int64_t first_local;                 // block of absolute index from which it sees all
  int64_t split_blocks;                // blocks of a split
  int64_t first_item = 0, splits = 0;  // its items, in ascending order of keys
};

// The blocks [begin, end) of one row.
struct Split {
  int64_t row;  // index into Plan::rows
  int64_t begin, end;
};

struct Plan {
  std::vector<Row> rows;
  std::vector<Split> splits;
};

// A partial result: highest score, sum of numerators, then the weighted latents [width].
constexpr int64_t kHighest = 0, kTotal = 1, kSums = 8;

struct Shape {
  int64_t heads, latent, width;  // width: latent to a multiple of kStrip
  int64_t depth, depth_padded;   // latent + rope, to a multiple of 8
  int64_t partial;               // floats of a partial result
};

Shape shape_of(const AttentionDecodeParams& params) {
  const int64_t latent = params.out.dim(2), depth = params.q.dim(2);
  const int64_t width = simd::round_up(latent, kStrip);
  return {params.q.dim(1), latent, width, depth, simd::round_up(depth, kWidth), kSums + width};
}

int64_t entry_of(const AttentionDecodeParams& params, const Row& row, int64_t block) {
  const int64_t sinks = params.range.sink_blocks;
  if (block < sinks) return block;
  return sinks + block - params.first_local.as<int32_t>()[row.sequence];
}

// ---- One item ----

struct TileTag;

struct State {
  const AttentionDecodeParams& params;
  const Shape& shape;
  int64_t heads;
  float* partials;              // [heads][shape.partial]
  bool direct = false;          // the cache's rows can be used where they are
  float* q = nullptr;           // [kHeadTile][depth_padded]
  float* scores = nullptr;      // [kHeadTile][kKeyTile], then the softmax's numerators
  float* tile = nullptr;        // [kKeyTile][stride], unless direct
  int64_t stride = 0;           // between keys
  const float* keys = nullptr;  // the tile's keys, wherever they are
};

template <int R, int C>
LOZA_INLINE void score_tile(const State& s, int64_t head, int64_t key) {
  f32x8 sums[R][C] = {};
  const float* q[R];
  for (int r = 0; r < R; r++) q[r] = s.q + (head + r) * s.shape.depth_padded;
  gemm::RowsView<float, C> keys;
  for (int c = 0; c < C; c++) keys.row[c] = s.keys + (key + c) * s.stride;
  gemm::dot_tile(sums, q, keys, 0, s.shape.depth_padded);
  LOZA_UNROLL
  for (int r = 0; r < R; r++)
    gemm::store_sums(s.scores + (head + r) * kKeyTile + key, sums[r], false);
}

template <int R>
LOZA_INLINE void score_heads(const State& s, int64_t head, int64_t count) {
  int64_t key = 0;
  if constexpr (R == 1)
    for (; key + 8 <= count; key += 8) score_tile<R, 8>(s, head, key);
  for (; key + kKeyColumns <= count; key += kKeyColumns) score_tile<R, kKeyColumns>(s, head, key);
  for (; key < count; key++) score_tile<R, 1>(s, head, key);
}

LOZA_INLINE void soften_head(const State& s, int64_t head, int64_t count) {
  float* scores = s.scores + head * kKeyTile;
  float* partial = s.partials + head * s.shape.partial;
  const int64_t padded = simd::round_up(count, kWidth);
  std::fill(scores + count, scores + padded, kNothing);
  f32x8 best = simd::splat(kNothing);
  for (int64_t j = 0; j < padded; j += kWidth) best = simd::max(best, simd::load(scores + j));
  const float scale = s.params.softmax_scale;
  const float highest = std::max(partial[kHighest], simd::max_lane(best) * scale);
  f32x8 total = {};
  for (int64_t j = 0; j < padded; j += kWidth) {
    const f32x8 p = simd::exp(simd::load(scores + j) * scale - highest);
    simd::store(scores + j, p);
    total += p;
  }
  if (highest != partial[kHighest]) {
    const float shrink = std::exp(partial[kHighest] - highest);
    partial[kTotal] *= shrink;
    for (int64_t c = kSums; c < s.shape.partial; c += kWidth)
      simd::store(partial + c, simd::load(partial + c) * shrink);
  }
  partial[kTotal] += simd::sum(total);
  partial[kHighest] = highest;
}

template <int R, int C>
LOZA_INLINE void add_strip(const State& s, int64_t head, int64_t count, int64_t column) {
  f32x8 sums[R][C];
  const float* p[R];
  float* to = s.partials + head * s.shape.partial + kSums + column;
  LOZA_UNROLL
  for (int r = 0; r < R; r++) {
    p[r] = s.scores + (head + r) * kKeyTile;
    LOZA_UNROLL
    for (int c = 0; c < C; c++) sums[r][c] = simd::load(to + r * s.shape.partial + c * kWidth);
  }
  gemm::axpy_tile(sums, p, s.keys + column, s.stride, count);
  LOZA_UNROLL
  for (int r = 0; r < R; r++) LOZA_UNROLL
  for (int c = 0; c < C; c++) simd::store(to + r * s.shape.partial + c * kWidth, sums[r][c]);
}

template <int R>
LOZA_INLINE void add_heads(const State& s, int64_t head, int64_t count) {
  for (int64_t column = 0; column < s.shape.width; column += kStrip)
    add_strip<R, kStripVectors>(s, head, count, column);
}

template <class T>
LOZA_INLINE void load_tile(State& s, const T* rows, int64_t count) {
  const int64_t stride = s.params.cache.stride(0), depth = s.shape.depth;
  for (int64_t j = 0; j < count; j++, rows += stride) {
    float* to = s.tile + j * s.stride;
    for (int64_t i = 0; i < depth; i += kWidth) {
      const int64_t left = depth - i;
      simd::store(to + i, left >= kWidth ? simd::load(rows + i) : simd::load_first(rows + i, left));
    }
  }
  s.keys = s.tile;
}

template <class T>
LOZA_INLINE void load_scaled(float* to, const T* from, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t left = count - i;
    if (left >= kWidth)
      simd::store(to + i, simd::load(from + i) * scale);
    else
      simd::store_first(to + i, simd::load_first(from + i, left) * scale, left);
  }
}

LOZA_INLINE void load_quantised_tile(State& s, int64_t slot, int64_t count) {
  const Shape& shape = s.shape;
  const LatentCache cache = latent_cache(s.params.cache, shape.latent, shape.depth - shape.latent);
  for (int64_t j = 0; j < count; j++) {
    float* to = s.tile + j * s.stride;
    const float scale = *cache.scale(slot + j);
    load_scaled(to, cache.codes<const simd::F8E4M3>(slot + j), cache.latent, scale);
    load_scaled(to + cache.latent, cache.ropes<const simd::Bf16>(slot + j), cache.rope, scale);
  }
  s.keys = s.tile;
}

// `count` keys of the cache from slot `slot` on.
LOZA_INLINE void attend(State& s, int64_t slot, int64_t count) {
  const Tensor& cache = s.params.cache;
  const int64_t offset = slot * cache.stride(0);
  if (s.direct)
    s.keys = cache.as<float>() + offset;
  else if (is_latent_cache(cache))
    load_quantised_tile(s, slot, count);
  else if (cache.dtype == DType::kF32)
    load_tile(s, cache.as<float>() + offset, count);
  else
    load_tile(s, cache.as<simd::Bf16>() + offset, count);
  const int most = std::min(kMaxHeadRows, gemm::tile_rows());
  for (int64_t head = 0, heads; head < s.heads; head += heads) {
    heads = gemm::next_rows(s.heads - head, most);
    LOZA_FOR_ROWS(heads, score_heads, s, head, count)
  }
  for (int64_t head = 0; head < s.heads; head++) soften_head(s, head, count);
  for (int64_t head = 0, heads; head < s.heads; head += heads) {
    heads = gemm::next_rows(s.heads - head, most);
    LOZA_FOR_ROWS(heads, add_heads, s, head, count)
  }
}

State make_state(const AttentionDecodeParams& params, const Shape& shape, int64_t heads,
                 float* partials) {
  State state{.params = params, .shape = shape, .heads = heads, .partials = partials};
  state.direct = params.cache.dtype == DType::kF32 && shape.width == shape.latent &&
                 shape.depth == shape.depth_padded;
  // A strip may reach past the latent part and even past the key: those columns stay unused.
  const int64_t padded = std::max(shape.depth_padded, shape.width);
  state.stride = state.direct ? params.cache.stride(0) : padded;
  state.q = simd::scratch<TileTag>(kHeadTile * (shape.depth_padded + kKeyTile) + kKeyTile * padded);
  state.scores = state.q + kHeadTile * shape.depth_padded;
  state.tile = state.scores + kHeadTile * kKeyTile;
  if (!state.direct && padded > shape.depth)
    for (int64_t j = 0; j < kKeyTile; j++)
      std::fill(state.tile + j * padded + shape.depth, state.tile + (j + 1) * padded, 0.0f);
  for (int64_t head = 0; head < heads; head++) {
    float* partial = partials + head * shape.partial;
    std::fill_n(partial, shape.partial, 0.0f);
    partial[kHighest] = kNothing;
  }
  return state;
}

LOZA_MULTIVERSION void run_split(const AttentionDecodeParams& params, const Shape& shape,
                                 const Row& row, const Split& split, int64_t head,
                                 float* partials) {
  const int64_t heads = std::min(kHeadTile, shape.heads - head);
  State state = make_state(params, shape, heads, partials + head * shape.partial);
  const Tensor& q = params.q;
  for (int64_t h = 0; h < heads; h++) {
    float* to = state.q + h * shape.depth_padded;
    std::fill(to + shape.depth, to + shape.depth_padded, 0.0f);
    std::copy_n(q.as<float>() + row.row * q.stride(0) + (head + h) * q.stride(1), shape.depth, to);
  }
  const int32_t* table =
      params.block_table.as<int32_t>() + row.sequence * params.block_table.stride(0);
  for (int64_t block = split.begin; block < split.end; block++) {
    if (block >= params.range.sink_blocks && block < row.first_local) continue;
    const int64_t keys = std::min<int64_t>(kBlockTokens, row.position + 1 - block * kBlockTokens);
    const int64_t slot = int64_t{table[entry_of(params, row, block)]} * kBlockTokens;
    check(slot >= 0 && slot + keys <= params.cache.dim(0), "attention_decode: sequence ",
          row.sequence, " has block ", slot / kBlockTokens, " of ", params.cache);
    for (int64_t key = 0; key < keys; key += kKeyTile)
      attend(state, slot + key, std::min(kKeyTile, keys - key));
  }
}

// ---- All items ----

void check_entry(const AttentionDecodeParams& params, const Row& row, int64_t block) {
  const int64_t entry = entry_of(params, row, block);
  check(entry >= 0 && entry < params.block_table.dim(1) &&
            (block < params.range.sink_blocks) == (entry < params.range.sink_blocks),
        "attention_decode: row ", row.row, " at position ", row.position, " needs block ", block,
        ", which is not in its table of ", params.block_table.dim(1), " entries");
}

// Appends the row's splits that hold a block it sees.
void list_splits(const AttentionDecodeParams& params, Row& row, Plan& plan) {
  const int64_t blocks = row.position / kBlockTokens + 1;
  const int64_t sinks = std::min<int64_t>(params.range.sink_blocks, blocks);
  const int64_t index = static_cast<int64_t>(plan.rows.size());
  row.first_item = static_cast<int64_t>(plan.splits.size());
  int64_t next = 0;  // first block not yet in a split
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    check_entry(params, row, begin);
    check_entry(params, row, end - 1);
    for (int64_t block = std::max(next, begin / row.split_blocks * row.split_blocks); block < end;
         block = next) {
      next = std::min(block + row.split_blocks, blocks);
      plan.splits.push_back({index, block, next});
    }
  };
  add(0, sinks);
  add(std::max(sinks, row.first_local), blocks);
  row.splits = static_cast<int64_t>(plan.splits.size()) - row.first_item;
  plan.rows.push_back(row);
}

// Plans rows from `first` on until their partial results fill the budget; returns the next row.
int64_t make_plan(const AttentionDecodeParams& params, const Shape& shape, int64_t first,
                  Plan& plan) {
  const int32_t* positions = params.positions.as<int32_t>();
  const int32_t* starts = params.query_starts.as<int32_t>();
  const int64_t sequences = params.block_table.dim(0);
  plan.rows.clear();
  plan.splits.clear();
  int64_t t = first;
  for (; t < params.q.dim(0); t++) {
    const int64_t planned = static_cast<int64_t>(plan.splits.size()) * shape.heads * shape.partial;
    if (planned >= kPartialFloats) break;
    Row row{
        .row = t, .sequence = -1, .position = positions[t], .first_local = 0, .split_blocks = 0};
    if (row.position < 0) {
      plan.rows.push_back(row);
      continue;
    }
    row.sequence = std::upper_bound(starts, starts + sequences + 1, t) - starts - 1;
    check(row.sequence >= 0 && row.sequence < sequences, "attention_decode: row ", t,
          " at position ", row.position, " belongs to no sequence");
    const int64_t block = row.position / kBlockTokens;
    row.first_local = params.range.first_local_block(static_cast<int32_t>(block));
    row.split_blocks = kMinSplitBlocks;
    while (block / row.split_blocks >= kMaxSplits) row.split_blocks *= 2;
    list_splits(params, row, plan);
  }
  return t;
}

LOZA_MULTIVERSION void merge_head(const AttentionDecodeParams& params, const Shape& shape,
                                  const Row& row, int64_t head, float* partials) {
  float* out =
      params.out.as<float>() + row.row * params.out.stride(0) + head * params.out.stride(1);
  const int64_t step = shape.heads * shape.partial;  // from one split to the next
  const float* first = partials + row.first_item * step + head * shape.partial;
  float highest = kNothing, total = 0;
  for (int64_t i = 0; i < row.splits; i++) highest = std::max(highest, first[i * step + kHighest]);
  std::fill_n(out, shape.latent, 0.0f);
  const Tensor& lse = params.lse;
  if (lse) lse.as<float>()[row.row * lse.stride(0) + head * lse.stride(1)] = kNothing;
  if (highest == kNothing) return;
  for (int64_t i = 0; i < row.splits; i++) {
    const float* partial = first + i * step;
    const float weight = std::exp(partial[kHighest] - highest);
    total += partial[kTotal] * weight;
    for (int64_t c = 0; c < shape.latent; c++) out[c] += partial[kSums + c] * weight;
  }
  const float inverse = 1 / total;
  for (int64_t c = 0; c < shape.latent; c++) out[c] *= inverse;
  if (lse)
    lse.as<float>()[row.row * lse.stride(0) + head * lse.stride(1)] = highest + std::log(total);
}

struct PartialTag;

void run_plan(const AttentionDecodeParams& params, const Shape& shape, const Plan& plan) {
  const int64_t splits = static_cast<int64_t>(plan.splits.size());
  const int64_t head_tiles = (shape.heads + kHeadTile - 1) / kHeadTile;
  const int64_t step = shape.heads * shape.partial;
  float* partials = simd::scratch<PartialTag>(splits * step);
  int64_t blocks = 1;
  for (const Split& split : plan.splits) blocks = std::max(blocks, split.end - split.begin);
  const int64_t work =
      std::min(kHeadTile, shape.heads) * blocks * kBlockTokens * (shape.depth + shape.latent);
  parallel_for(splits * head_tiles, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const Split& split = plan.splits[item / head_tiles];
      run_split(params, shape, plan.rows[split.row], split, item % head_tiles * kHeadTile,
                partials + item / head_tiles * step);
    }
  });
  const int64_t rows = static_cast<int64_t>(plan.rows.size());
  const int64_t merge_work =
      std::max<int64_t>(1, splits / std::max<int64_t>(1, rows)) * shape.latent;
  parallel_for(rows * shape.heads, gemm::grain_of(merge_work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++)
      merge_head(params, shape, plan.rows[item / shape.heads], item % shape.heads, partials);
  });
}

}  // namespace

void compute(const AttentionDecodeParams& params) {
  thread_local Plan plan;
  Plan& shared = plan;  // a lambda's threads would see their own
  const Shape shape = shape_of(params);
  for (int64_t row = 0; row < params.q.dim(0);) {
    row = make_plan(params, shape, row, shared);
    run_plan(params, shape, shared);
  }
}

// Rows are planned by the attention itself.
void compute(const AttentionPlanParams&) {}

}  // namespace cpu
}  // namespace loza
