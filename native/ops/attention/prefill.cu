// Expanded attention on CUDA, and its kernel for heads of any size: flash attention with mma.sync, bf16
// operands and fp32 sums. Heads of released models go to prefill_wgmma.cu.
//
//   out[t, h] = softmax_j(scale q[t, h] . [kv[j, h, :nope] | k_rope[j]]) kv[j, h, nope:]
//   q [rows, heads, nope + rope], kv [keys, heads, nope + value], k_rope [keys, rope] bf16;
//   out [rows, heads, value] bf16, or f32 and merged in place by log-sum-exp; lse [rows, heads] f32
//
// Grid: (tiles of 64 query rows, heads). Segments are read on the device, so the grid covers rows: a
// CTA looks for the runs of segments that its rows belong to and treats one run at a time, all of its
// segments in the listed order; rows of other runs see no key meanwhile, so that a run's values never
// enter another's results. Warp w owns rows 16 w to 16 w + 15 of the tile. Key tiles of 64 lie at
// absolute positions: a tile is part of one block, in which a row sees a prefix of the keys or
// nothing. Keys that no row of the CTA sees are zeros in shared memory: they may be NaN.
#include "cuda/attention_mma.cuh"
#include "cuda/cuda_ops.h"
#include "ops/attention/prefill_wgmma.h"

namespace loza::cuda {
namespace attention {
namespace {

template <int kDepth_, int kValue_>
struct PrefillTraits {
  static constexpr int kDepth = kDepth_;  // nope + rope, padded
  static constexpr int kValue = kValue_;  // padded
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kQueryTile = kWarps * 16;
  static constexpr int kKeyTile = 64;  // divides a block
  static constexpr int kStages = 2;
};

template <class Traits>
struct PrefillStorage {
  alignas(128) bf16 q[Traits::kQueryTile * Traits::kDepth];
  alignas(128) bf16 k[Traits::kStages][Traits::kKeyTile * Traits::kDepth];
  alignas(128) bf16 v[Traits::kStages][Traits::kKeyTile * Traits::kValue];
};

// Rows [first, end) of the query tile at first_row that belong to one run.
struct Run {
  int32_t query_row, first, end;
};

// Which keys of a segment the run's rows see: those below key_end, without [sink_end, local_begin).
struct Walk {
  int64_t first_position, last_position, key_end, sink_end, local_begin;
};

// Keys [begin, begin + keys) by absolute position: those that at least one row sees.
struct BlockPart {
  int64_t begin;
  int32_t keys;
};

template <class Traits>
struct PrefillState {
  float sums[Traits::kValue / 8][4] = {};
  float highest[2];     // of rows g and g + 8, in powers of two
  float total[2] = {};  // this lane's columns only
  int32_t warp, lane;
  int32_t first_row;  // of the query tile
  int32_t head;
};

// ---- Runs and tiles ----

// The first run that has rows in [row, end).
__device__ bool find_run(const PrefillProblem& problem, int row, int end, Run& run) {
  run = {INT32_MAX, 0, 0};
  for (int i = 0; i < problem.segment_count; i++) {
    const Segment s = read_segment(problem, i);
    if (s.query_count == 0 || s.query_row >= end || s.query_row + s.query_count <= row) continue;
    if (s.query_row < run.query_row)
      run = {s.query_row, max(row, s.query_row), min(end, s.query_row + s.query_count)};
  }
  return run.end > run.first;
}

__device__ Walk plan_walk(const KeyRange& range, const Segment& segment, const Run& run) {
  const int64_t shift = int64_t{segment.query_position} - segment.query_row;
  Walk walk;
  walk.first_position = run.first + shift;
  walk.last_position = run.end - 1 + shift;
  walk.key_end = min(int64_t{segment.key_position} + segment.key_count, walk.last_position + 1);
  walk.sink_end = int64_t{range.sink_blocks} * kBlockTokens;
  const auto block = static_cast<int32_t>(walk.first_position / kBlockTokens);
  walk.local_begin = int64_t{range.first_local_block(block)} * kBlockTokens;
  return walk;
}

// The first tile at or behind `begin` of which some row sees a key.
template <class Traits>
__device__ bool find_tile(const KeyRange& range, const Walk& walk, int64_t begin, BlockPart& tile) {
  while (begin < walk.key_end) {
    if (begin >= walk.sink_end && begin < walk.local_begin) {
      begin = walk.local_begin;  // every row's local part starts here or later
      continue;
    }
    const int64_t end = min(walk.key_end, (begin / Traits::kKeyTile + 1) * Traits::kKeyTile);
    const int64_t block = begin / kBlockTokens;
    int64_t last = walk.last_position;  // of the rows that see this block
    if (block >= range.sink_blocks)
      last = min(last, (block + range.local_blocks) * kBlockTokens - 1);
    if (last >= walk.first_position && last >= begin) {
      tile = {begin, static_cast<int32_t>(min(end, last + 1) - begin)};
      return true;
    }
    begin = end;
  }
  return false;
}

// How many keys of the tile the row at position t sees.
__device__ int row_limit(const KeyRange& range, const BlockPart& tile, int64_t t) {
  const int64_t block = tile.begin / kBlockTokens;
  const bool visible = block < range.sink_blocks ||
                       block >= range.first_local_block(static_cast<int32_t>(t / kBlockTokens));
  if (!visible) return 0;
  return static_cast<int>(max(int64_t{0}, min(int64_t{tile.keys}, t + 1 - tile.begin)));
}

// ---- Loads ----

template <class Traits>
__device__ void load_queries(const PrefillProblem& problem, PrefillStorage<Traits>& shared,
                             int first_row, int head) {
  const bf16* q = problem.q + first_row * problem.q_row + head * problem.q_head;
  load_tile<Traits::kQueryTile, Traits::kDepth, Traits::kThreads>(
      shared.q, problem.rows - first_row, problem.nope + problem.rope, problem.vector, problem.q,
      [&](int row, int column) { return q + row * problem.q_row + column; });
}

template <class Traits>
__device__ void load_keys(const PrefillProblem& problem, PrefillStorage<Traits>& shared, int stage,
                          int64_t key_row, int keys, int head) {
  const bf16* kv = problem.kv + key_row * problem.kv_row + head * problem.kv_head;
  const bf16* k_rope = problem.k_rope + key_row * problem.k_rope_row;
  const int nope = problem.nope;
  load_tile<Traits::kKeyTile, Traits::kDepth, Traits::kThreads>(
      shared.k[stage], keys, nope + problem.rope, problem.vector, problem.kv,
      [&](int row, int column) {
        return column < nope ? kv + row * problem.kv_row + column
                             : k_rope + row * problem.k_rope_row + (column - nope);
      });
  load_tile<Traits::kKeyTile, Traits::kValue, Traits::kThreads>(
      shared.v[stage], keys, problem.value, problem.vector, problem.kv,
      [&](int row, int column) { return kv + row * problem.kv_row + nope + column; });
}

// ---- Compute ----

template <class Traits>
__device__ void score(const PrefillStorage<Traits>& shared, int stage,
                      const PrefillState<Traits>& state, float (&scores)[Traits::kKeyTile / 8][4]) {
  constexpr int kDepth = Traits::kDepth;
  const uint32_t q = shared_address(shared.q), k = shared_address(shared.k[stage]);
  const int lane = state.lane;
  const int row = state.warp * 16 + lane % 16;
  const int key = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < kDepth / 16; step++) {
    uint32_t a[4];
    load_matrices(a, q + tile_offset<kDepth>(row, step * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < Traits::kKeyTile / 16; n++) {
      uint32_t b[4];
      load_matrices(b, k + tile_offset<kDepth>(n * 16 + key, step * 2 + lane / 8 % 2));
      multiply_add(scores[2 * n], a, b[0], b[1]);
      multiply_add(scores[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Turns scores into the softmax's numerators and rescales what the rows have summed up so far.
template <class Traits>
__device__ void soften(PrefillState<Traits>& state, float (&scores)[Traits::kKeyTile / 8][4],
                       const int (&limits)[2], float scale) {
  float shrink[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float best = negative_infinity();
#pragma unroll
    for (int n = 0; n < Traits::kKeyTile / 8; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float& value = scores[n][2 * r + c];
        if (n * 8 + state.lane % 4 * 2 + c >= limits[r]) value = negative_infinity();
        best = fmaxf(best, value);
      }
    const float highest = fmaxf(state.highest[r], quad_max(best) * scale);
    // A row that has seen nothing yet must not subtract infinities.
    const float base = highest == negative_infinity() ? 0.0f : highest;
    shrink[r] = exp2_fast(state.highest[r] - base);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < Traits::kKeyTile / 8; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float& value = scores[n][2 * r + c];
        value = exp2_fast(fmaf(value, scale, -base));
        sum += value;
      }
    state.total[r] = state.total[r] * shrink[r] + sum;
    state.highest[r] = highest;
  }
  if (!__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (auto& sums : state.sums) {
    sums[0] *= shrink[0], sums[1] *= shrink[0];
    sums[2] *= shrink[1], sums[3] *= shrink[1];
  }
}

template <class Traits>
__device__ void add_values(const PrefillStorage<Traits>& shared, int stage,
                           PrefillState<Traits>& state, const float (&p)[Traits::kKeyTile / 8][4]) {
  const uint32_t v = shared_address(shared.v[stage]);
  const int lane = state.lane;
#pragma unroll
  for (int step = 0; step < Traits::kKeyTile / 16; step++) {
    const auto &left = p[2 * step], &right = p[2 * step + 1];
    const uint32_t a[4] = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]),
                           pack(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < Traits::kValue / 16; n++) {
      uint32_t b[4];
      load_transposed(b, v + tile_offset<Traits::kValue>(step * 16 + lane % 16, n * 2 + lane / 16));
      multiply_add(state.sums[2 * n], a, b[0], b[1]);
      multiply_add(state.sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

template <class Traits>
__device__ void attend_tile(const PrefillProblem& problem, const PrefillStorage<Traits>& shared,
                            int stage, const Segment& segment, const Run& run,
                            const BlockPart& tile, PrefillState<Traits>& state) {
  int limits[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = state.first_row + state.warp * 16 + state.lane / 4 + 8 * r;
    const int64_t t = int64_t{segment.query_position} + row - segment.query_row;
    const bool member = row >= run.first && row < run.end;
    limits[r] = member ? row_limit(problem.range, tile, t) : 0;
  }
  if (!__any_sync(0xffffffff, limits[0] > 0 || limits[1] > 0)) return;
  float scores[Traits::kKeyTile / 8][4] = {};
  score(shared, stage, state, scores);
  soften(state, scores, limits, problem.scale);
  add_values(shared, stage, state, scores);
}

template <class Traits>
__device__ void attend(const PrefillProblem& problem, PrefillStorage<Traits>& shared,
                       const Segment& segment, const Run& run, PrefillState<Traits>& state) {
  const Walk walk = plan_walk(problem.range, segment, run);
  BlockPart tile, next;
  if (!find_tile<Traits>(problem.range, walk, segment.key_position, tile)) return;
  const auto load = [&](int stage, const BlockPart& wanted) {
    const int64_t key_row = segment.key_row + (wanted.begin - segment.key_position);
    load_keys(problem, shared, stage, key_row, wanted.keys, state.head);
  };
  __syncthreads();  // nobody reads the stages of the segment before
  load(0, tile);
  for (int stage = 0;; stage ^= 1) {
    const int64_t behind = (tile.begin / Traits::kKeyTile + 1) * Traits::kKeyTile;
    const bool more = find_tile<Traits>(problem.range, walk, behind, next);
    wait_for_copies();
    __syncthreads();  // the tile is there, and nobody reads the other stage any more
    if (more) load(stage ^ 1, next);
    attend_tile(problem, shared, stage, segment, run, tile, state);
    if (!more) break;
    tile = next;
  }
}

// ---- Store ----

// Merges one row by log-sum-exp; an old lse of -inf says that `out` holds nothing, maybe NaN.
template <class Out, class Traits>
__device__ void merge_row(const PrefillProblem& problem, const PrefillState<Traits>& state, int r,
                          float total, float* to_lse, float old_lse) {
  const int64_t row = state.first_row + state.warp * 16 + state.lane / 4 + 8 * r;
  Out* to = static_cast<Out*>(problem.out) + row * problem.out_row + state.head * problem.out_head;
  const float inverse = 1 / total, found = state.highest[r] * kLn2 + logf(total);
  const bool first = old_lse == negative_infinity();
  const float highest = first ? found : fmaxf(found, old_lse);
  const float old_part = first ? 0 : expf(old_lse - highest);
  const float new_part = expf(found - highest);
  const float share = new_part / (old_part + new_part);
#pragma unroll
  for (int n = 0; n < Traits::kValue / 8; n++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int column = n * 8 + state.lane % 4 * 2 + c;
      if (column >= problem.value) continue;
      float value = state.sums[n][2 * r + c] * inverse;
      if (!first) value = float{to[column]} + (value - float{to[column]}) * share;
      to[column] = value;
    }
  if (state.lane % 4 == 0) *to_lse = first ? found : highest + logf(old_part + new_part);
}

template <class Traits>
__device__ void merge(const PrefillProblem& problem, const PrefillState<Traits>& state) {
  float total[2], old_lse[2];
  float* to_lse[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t row = state.first_row + state.warp * 16 + state.lane / 4 + 8 * r;
    total[r] = quad_sum(state.total[r]);
    to_lse[r] = problem.lse + row * problem.lse_row + state.head * problem.lse_head;
    // total is also 0 for rows of other runs or none
    old_lse[r] = problem.merges && total[r] != 0 ? *to_lse[r] : negative_infinity();
  }
  __syncwarp();  // all four lanes of a row have read what one of them overwrites
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (total[r] == 0) continue;
    if (problem.merges)
      merge_row<float>(problem, state, r, total[r], to_lse[r], old_lse[r]);
    else
      merge_row<bf16>(problem, state, r, total[r], to_lse[r], old_lse[r]);
  }
}

// ---- Kernel ----

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) prefill_kernel(const PrefillProblem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<PrefillStorage<Traits>*>(shared_bytes);
  // Late rows see the most keys: they go first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int first_row = tile * Traits::kQueryTile, head = static_cast<int>(blockIdx.y);
  const int end_row = min(problem.rows, first_row + Traits::kQueryTile);
  Run run;
  if (!find_run(problem, first_row, end_row, run)) return;
  load_queries(problem, shared, first_row, head);
  do {
    PrefillState<Traits> state;
    state.highest[0] = state.highest[1] = negative_infinity();
    state.warp = static_cast<int>(threadIdx.x) / kLanes;
    state.lane = static_cast<int>(threadIdx.x) % kLanes;
    state.first_row = first_row;
    state.head = head;
    for (int i = 0; i < problem.segment_count; i++) {
      const Segment segment = read_segment(problem, i);
      if (segment.query_count > 0 && segment.query_row == run.query_row)
        attend(problem, shared, segment, run, state);
    }
    merge(problem, state);
  } while (find_run(problem, run.end, end_row, run));
  wait_for_copies();  // of the queries, where no key was seen
}

// ---- Launch ----

template <int kDepth, int kValue>
void launch_prefill(const PrefillProblem& problem, int heads, cudaStream_t stream) {
  using Traits = PrefillTraits<kDepth, kValue>;
  constexpr size_t kBytes = sizeof(PrefillStorage<Traits>);
  allow_shared_memory<prefill_kernel<Traits>>(kBytes);
  const dim3 grid((problem.rows + Traits::kQueryTile - 1) / Traits::kQueryTile, heads);
  prefill_kernel<Traits><<<grid, Traits::kThreads, kBytes, stream>>>(problem);
  check_launch("attention_prefill");
}

}  // namespace
}  // namespace attention

void launch(const AttentionPrefillParams& params, CudaStream& stream) {
  const attention::PrefillProblem problem = attention::describe(params);
  const int depth = problem.nope + problem.rope, value = problem.value, heads = problem.heads;
  if (params.out.elements() == 0 || problem.segment_count == 0 || problem.keys == 0) return;
  if (attention::has_wgmma_prefill(problem, params.out))
    attention::launch_wgmma_prefill(params, problem,
                                    stream.scratch(attention::wgmma_prefill_scratch(problem)),
                                    stream.multiprocessors(), stream.handle());
  else if (depth <= 32 && value <= 32)
    attention::launch_prefill<32, 32>(problem, heads, stream.handle());
  else if (depth <= 64 && value <= 64)
    attention::launch_prefill<64, 64>(problem, heads, stream.handle());
  else if (depth <= 128 && value <= 128)
    attention::launch_prefill<128, 128>(problem, heads, stream.handle());
  else if (depth <= 192 && value <= 128)
    attention::launch_prefill<192, 128>(problem, heads, stream.handle());
  else if (depth <= 256 && value <= 256)
    attention::launch_prefill<256, 256>(problem, heads, stream.handle());
  else
    fail(code::kInternal, "attention_prefill: no kernel for q ", params.q, " and out ", params.out);
}

}  // namespace loza::cuda
