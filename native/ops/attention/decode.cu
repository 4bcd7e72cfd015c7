// Absorbed attention on CUDA over the paged latent cache.
//
//   out[t, h] = softmax_j(scale q[t, h] . cache[slot(j)]) cache[slot(j)][:latent]
//   q [rows, heads, latent + rope], out [rows, heads, latent] bf16; cache [slots, latent + rope]
//
// latent 512, rope 64, bf16 cache: mma.sync. Grid (rows x head tiles, splits), the latter as many as
// the table can hold; CTAs behind a row's last split return at once. A CTA brings tiles of 64 keys to
// shared memory once, for the scores q k^T and for the sums p k[:, :512] of all its 16, 32 or 64
// heads. Its 8 warps divide the scores by heads and keys and the sums by columns: 64 each. Partial
// sums of several splits go through scratch memory and are merged by a second kernel, in ascending
// order of keys.
// Everything else: decode_simple.cuh. Rows, visible blocks and splits: decode_rows.cuh.
//
// The device cannot fail a stream: a row whose table or sequence is broken becomes NaN.
#include <algorithm>

#include "cuda/attention_mma.cuh"
#include "cuda/barrier.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "ops/attention/decode_rows.cuh"
#include "ops/attention/decode_simple.cuh"

namespace loza::cuda {
namespace attention {
namespace {

constexpr size_t kMaxPartialBytes = size_t{256} << 20;  // of partial results alive at a time
constexpr int kMergeThreads = 128;

template <int kHeadTiles_>
struct DecodeTraits {
  static constexpr int kWidth = 576, kLatent = 512;
  static constexpr int kKeyTile = 64;             // divides a block
  static constexpr int kHeadTiles = kHeadTiles_;  // of 16 heads: 1, 2 or 4
  static constexpr int kHeads = 16 * kHeadTiles;
  static constexpr int kWarps = 8, kThreads = kWarps * kLanes;
  static constexpr int kKeyWarps = kWarps / kHeadTiles;    // share the keys of a head tile
  static constexpr int kWarpKeys = kKeyTile / kKeyWarps;   // scores of a warp: [16, kWarpKeys]
  static constexpr int kWarpColumns = kLatent / kWarps;    // sums of a warp: [kHeads, 64]
  static constexpr int kChains = kHeadTiles == 1 ? 2 : 1;  // independent sums of one score tile
  static constexpr int kStages = 2;
};

template <class Traits>
struct DecodeStorage {
  alignas(128) bf16 q[Traits::kHeads * Traits::kWidth];
  alignas(128) bf16 k[Traits::kStages][Traits::kKeyTile * Traits::kWidth];
  alignas(128) bf16 p[Traits::kHeads * Traits::kKeyTile];
  float exchange[Traits::kKeyWarps][Traits::kHeads];  // highest scores, at the end totals
  float shrink[Traits::kHeads];
};

// ---- Tensor cores ----

template <class Traits>
struct DecodeState {
  float sums[Traits::kHeadTiles][Traits::kWarpColumns / 8][4] = {};  // of all heads
  float highest[2];     // of the warp's heads g and g + 8, in powers of two
  float total[2] = {};  // of the same, this lane's keys only
  int32_t warp, lane;
  int32_t head_warp, key_warp;  // which scores are the warp's
  int32_t first_head, split;
  bool broken = false;
};

template <class Traits>
__device__ void load_queries(const DecodeProblem& problem, DecodeStorage<Traits>& shared,
                             int64_t row, int first_head) {
  const bf16* q = problem.q + row * problem.q_row + first_head * problem.q_head;
  load_tile<Traits::kHeads, Traits::kWidth, Traits::kThreads>(
      shared.q, problem.heads - first_head, Traits::kWidth, true, problem.q,
      [&](int head, int column) { return q + head * problem.q_head + column; });
}

// Tile `tile` of the row's visible keys; keys that the row does not see become zeros. False where
// the table is broken.
template <class Traits>
__device__ bool load_keys(const DecodeProblem& problem, DecodeStorage<Traits>& shared, int stage,
                          const Row& row, int tile) {
  constexpr int kTiles = kBlockTokens / Traits::kKeyTile;
  const int visible = tile / kTiles, offset = tile % kTiles * Traits::kKeyTile;
  const int64_t slot = slot_of(problem, row, visible);
  const auto* cache = static_cast<const bf16*>(problem.cache);
  const bf16* from = cache + (slot + offset) * problem.cache_row;
  load_tile<Traits::kKeyTile, Traits::kWidth, Traits::kThreads>(
      shared.k[stage], slot < 0 ? 0 : keys_of(row, visible) - offset, Traits::kWidth, true, cache,
      [&](int key, int column) { return from + key * problem.cache_row + column; });
  return slot >= 0;
}

template <class Traits>
__device__ void score(const DecodeStorage<Traits>& shared, int stage,
                      const DecodeState<Traits>& state, float (&scores)[Traits::kWarpKeys / 8][4]) {
  constexpr int kWidth = Traits::kWidth, kChains = Traits::kChains;
  constexpr int kTiles = Traits::kWarpKeys / 8;
  const uint32_t q = shared_address(shared.q), k = shared_address(shared.k[stage]);
  const int lane = state.lane;
  const int head = state.head_warp * 16 + lane % 16;
  const int key = state.key_warp * Traits::kWarpKeys + lane % 8;
  float chains[kChains][kTiles][4] = {};
#pragma unroll 6
  for (int step = 0; step < kWidth / 32; step++) {
    uint32_t a[2][4];
    load_matrices(a[0], q + tile_offset<kWidth>(head, step * 4 + lane / 16));
    load_matrices(a[1], q + tile_offset<kWidth>(head, step * 4 + 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      uint32_t b[4];  // eight keys, 32 columns
      load_matrices(b, k + tile_offset<kWidth>(key + n * 8, step * 4 + lane / 8));
      multiply_add(chains[0][n], a[0], b[0], b[1]);
      multiply_add(chains[kChains - 1][n], a[1], b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      scores[n][i] = kChains == 1 ? chains[0][n][i] : chains[0][n][i] + chains[kChains - 1][n][i];
}

// Masks the warp's scores and tells the warps of the same heads the highest ones.
template <class Traits>
__device__ void publish_highest(DecodeStorage<Traits>& shared, const DecodeState<Traits>& state,
                                float (&scores)[Traits::kWarpKeys / 8][4], int keys) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float best = negative_infinity();
#pragma unroll
    for (int n = 0; n < Traits::kWarpKeys / 8; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const int key = state.key_warp * Traits::kWarpKeys + n * 8 + state.lane % 4 * 2 + c;
        float& value = scores[n][2 * r + c];
        if (key >= keys) value = negative_infinity();
        best = fmaxf(best, value);
      }
    best = quad_max(best);
    const int head = state.head_warp * 16 + state.lane / 4 + 8 * r;
    if (state.lane % 4 == 0) shared.exchange[state.key_warp][head] = best;
  }
}

// Writes the softmax's numerators and by how much the heads' sums shrink.
template <class Traits>
__device__ void soften(DecodeStorage<Traits>& shared, DecodeState<Traits>& state,
                       const float (&scores)[Traits::kWarpKeys / 8][4], float scale) {
  const uint32_t p = shared_address(shared.p);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int head = state.head_warp * 16 + state.lane / 4 + 8 * r;
    float best = shared.exchange[0][head];
#pragma unroll
    for (int w = 1; w < Traits::kKeyWarps; w++) best = fmaxf(best, shared.exchange[w][head]);
    const float highest = fmaxf(state.highest[r], best * scale);
    const float base = highest == negative_infinity() ? 0.0f : highest;
    const float shrink = exp2_fast(state.highest[r] - base);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < Traits::kWarpKeys / 8; n++) {
      const float left = exp2_fast(fmaf(scores[n][2 * r], scale, -base));
      const float right = exp2_fast(fmaf(scores[n][2 * r + 1], scale, -base));
      sum += left + right;
      const int chunk = state.key_warp * (Traits::kWarpKeys / 8) + n;
      const uint32_t to =
          p + tile_offset<Traits::kKeyTile>(head, chunk) + state.lane % 4 * 2 * sizeof(bf16);
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(pack(left, right)) : "memory");
    }
    state.total[r] = state.total[r] * shrink + sum;
    state.highest[r] = highest;
    if (state.key_warp == 0 && state.lane % 4 == 0) shared.shrink[head] = shrink;
  }
}

template <class Traits>
__device__ void add_values(const DecodeStorage<Traits>& shared, int stage,
                           DecodeState<Traits>& state) {
  constexpr int kHeadTiles = Traits::kHeadTiles, kColumns = Traits::kWarpColumns;
  const uint32_t p = shared_address(shared.p), v = shared_address(shared.k[stage]);
  const int lane = state.lane;
#pragma unroll
  for (int m = 0; m < kHeadTiles; m++) {
    const float upper = shared.shrink[m * 16 + lane / 4];
    const float lower = shared.shrink[m * 16 + lane / 4 + 8];
    if (!__any_sync(0xffffffff, upper != 1.0f || lower != 1.0f)) continue;
#pragma unroll
    for (auto& sums : state.sums[m]) {
      sums[0] *= upper, sums[1] *= upper;
      sums[2] *= lower, sums[3] *= lower;
    }
  }
#pragma unroll
  for (int step = 0; step < Traits::kKeyTile / 16; step++) {
    uint32_t a[kHeadTiles][4];
#pragma unroll
    for (int m = 0; m < kHeadTiles; m++)
      load_matrices(a[m],
                    p + tile_offset<Traits::kKeyTile>(m * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < kColumns / 16; n++) {
      const int chunk = state.warp * (kColumns / kChunk) + n * 2 + lane / 16;
      uint32_t b[4];
      load_transposed(b, v + tile_offset<Traits::kWidth>(step * 16 + lane % 16, chunk));
#pragma unroll
      for (int m = 0; m < kHeadTiles; m++) {
        multiply_add(state.sums[m][2 * n], a[m], b[0], b[1]);
        multiply_add(state.sums[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Sums up the totals of all lanes and warps of a head; afterwards they are in shared.exchange[0], and
// the split's highest score and total in `stats` where another kernel merges.
template <class Traits>
__device__ void finish_totals(const DecodeProblem& problem, DecodeStorage<Traits>& shared,
                              const DecodeState<Traits>& state, float* stats) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float total = quad_sum(state.total[r]);
    const int head = state.head_warp * 16 + state.lane / 4 + 8 * r;
    if (state.lane % 4 == 0) shared.exchange[state.key_warp][head] = total;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int head = state.head_warp * 16 + state.lane / 4 + 8 * r;
    if (state.key_warp != 0 || state.lane % 4 != 0) continue;
    float total = shared.exchange[0][head];
#pragma unroll
    for (int w = 1; w < Traits::kKeyWarps; w++) total += shared.exchange[w][head];
    if (state.broken) total = not_a_number();
    shared.exchange[0][head] = total;
    if (stats == nullptr || state.first_head + head >= problem.heads) continue;
    stats[(state.first_head + head) * 2] = state.highest[r];
    stats[(state.first_head + head) * 2 + 1] = total;
  }
  __syncthreads();
}

// Where a split's partial results lie, counted in heads.
__device__ int64_t partial_index(const DecodeProblem& problem, int64_t row, int split) {
  return ((row - problem.first_row) * problem.max_splits + split) * problem.heads;
}

template <class Traits>
__device__ void store(const DecodeProblem& problem, DecodeStorage<Traits>& shared,
                      const DecodeState<Traits>& state, int64_t row, bool whole) {
  const int64_t partial = whole ? 0 : partial_index(problem, row, state.split);
  finish_totals(problem, shared, state, whole ? nullptr : problem.stats + partial * 2);
#pragma unroll
  for (int m = 0; m < Traits::kHeadTiles; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int tile_head = m * 16 + state.lane / 4 + 8 * r;
      const int head = state.first_head + tile_head;
      if (head >= problem.heads) continue;
      const int column = state.warp * Traits::kWarpColumns + state.lane % 4 * 2;
      float* sums = problem.sums + (partial + head) * Traits::kLatent + column;
      bf16* out = problem.out + row * problem.out_row + head * problem.out_head + column;
      const float inverse = 1 / shared.exchange[0][tile_head];
#pragma unroll
      for (int n = 0; n < Traits::kWarpColumns / 8; n++) {
        const float left = state.sums[m][n][2 * r], right = state.sums[m][n][2 * r + 1];
        if (whole)
          *reinterpret_cast<uint32_t*>(out + n * 8) = pack(left * inverse, right * inverse);
        else
          *reinterpret_cast<float2*>(sums + n * 8) = make_float2(left, right);
      }
    }
}

// A row that sees nothing: padding, or broken.
template <class Traits>
__device__ void store_nothing(const DecodeProblem& problem, int64_t row, int first_head,
                              float value) {
  const int heads = min(Traits::kHeads, problem.heads - first_head);
  for (int i = static_cast<int>(threadIdx.x); i < heads * Traits::kLatent; i += Traits::kThreads) {
    const int head = first_head + i / Traits::kLatent;
    problem.out[row * problem.out_row + head * problem.out_head + i % Traits::kLatent] =
        __float2bfloat16(value);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) decode_kernel(const DecodeProblem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<DecodeStorage<Traits>*>(shared_bytes);
  launch_dependents();
  wait_for_prerequisites();
  constexpr int kTiles = kBlockTokens / Traits::kKeyTile;
  const int64_t index = problem.first_row + blockIdx.x / problem.head_tiles;
  DecodeState<Traits> state;
  state.first_head = static_cast<int>(blockIdx.x) % problem.head_tiles * Traits::kHeads;
  state.split = static_cast<int>(blockIdx.y);
  const Row row = describe_row(problem, index);
  if (row.blocks == 0 && state.split == 0)
    store_nothing<Traits>(problem, index, state.first_head, row.nothing);
  if (state.split >= row.splits) return;

  state.highest[0] = state.highest[1] = negative_infinity();
  state.warp = static_cast<int>(threadIdx.x) / kLanes;
  state.lane = static_cast<int>(threadIdx.x) % kLanes;
  state.head_warp = state.warp % Traits::kHeadTiles;
  state.key_warp = state.warp / Traits::kHeadTiles;
  const int first_block = state.split * row.split_blocks;
  const int last_block = min(first_block + row.split_blocks, row.blocks) - 1;
  const int first = first_block * kTiles;
  const int end =
      last_block * kTiles + (keys_of(row, last_block) + Traits::kKeyTile - 1) / Traits::kKeyTile;
  load_queries(problem, shared, index, state.first_head);
  state.broken = !load_keys(problem, shared, 0, row, first);
  for (int tile = first, stage = 0; tile < end; tile++, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is there, and nobody reads the other stage or p any more
    if (tile + 1 < end && !load_keys(problem, shared, stage ^ 1, row, tile + 1))
      state.broken = true;
    float scores[Traits::kWarpKeys / 8][4];
    score(shared, stage, state, scores);
    publish_highest(shared, state, scores,
                    keys_of(row, tile / kTiles) - tile % kTiles * Traits::kKeyTile);
    __syncthreads();
    soften(shared, state, scores, problem.scale);
    __syncthreads();
    add_values(shared, stage, state);
  }
  store(problem, shared, state, index, row.splits == 1);
}

// Grid (rows, heads). Adds up the splits of a row that has several.
template <class Traits>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const DecodeProblem problem) {
  static_assert(Traits::kLatent == kMergeThreads * 4);
  launch_dependents();
  wait_for_prerequisites();
  const int64_t index = problem.first_row + blockIdx.x;
  const int64_t head = blockIdx.y, column = threadIdx.x * 4;
  const Row row = describe_row(problem, index);
  if (row.splits <= 1) return;
  const int64_t first = partial_index(problem, index, 0) + head, step = problem.heads;
  float highest = negative_infinity(), total = 0;
  for (int split = 0; split < row.splits; split++)
    highest = fmaxf(highest, problem.stats[(first + split * step) * 2]);
  float4 sums = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int split = 0; split < row.splits; split++) {
    const int64_t partial = first + split * step;
    const float weight = exp2_fast(problem.stats[partial * 2] - highest);
    const float4 own =
        *reinterpret_cast<const float4*>(problem.sums + partial * Traits::kLatent + column);
    total += problem.stats[partial * 2 + 1] * weight;
    sums.x += own.x * weight, sums.y += own.y * weight;
    sums.z += own.z * weight, sums.w += own.w * weight;
  }
  const float inverse = 1 / total;
  auto* out = reinterpret_cast<uint32_t*>(problem.out + index * problem.out_row +
                                          head * problem.out_head + column);
  out[0] = pack(sums.x * inverse, sums.y * inverse);
  out[1] = pack(sums.z * inverse, sums.w * inverse);
}

// ---- Launch ----

bool fits_tensor_cores(const AttentionDecodeParams& params) {
  using Traits = DecodeTraits<1>;
  const auto aligned = [](const Tensor& tensor, int64_t step) {
    bool result = reinterpret_cast<uintptr_t>(tensor.data) % (step * sizeof(bf16)) == 0;
    for (int i = 0; i + 1 < tensor.rank; i++)
      result = result && (tensor.dim(i) <= 1 || tensor.stride(i) % step == 0);
    return result;
  };
  return params.q.dim(2) == Traits::kWidth && params.out.dim(2) == Traits::kLatent &&
         params.cache.dtype == DType::kBF16 && aligned(params.q, kChunk) &&
         aligned(params.cache, kChunk) && aligned(params.out, 2);
}

// Rows in groups whose partial results fit the budget; a row's result does not depend on its group.
template <int kHeadTiles>
void launch_decode(DecodeProblem problem, int64_t rows, CudaStream& stream) {
  using Traits = DecodeTraits<kHeadTiles>;
  constexpr size_t kBytes = sizeof(DecodeStorage<Traits>);
  static_assert(kBytes <= 227 * 1024);
  allow_shared_memory<decode_kernel<Traits>>(kBytes);
  problem.head_tiles = (problem.heads + Traits::kHeads - 1) / Traits::kHeads;
  const bool several = problem.max_splits > 1;
  const size_t partials = several ? size_t(problem.max_splits) * problem.heads : 0;  // of a row
  const size_t row_bytes = partials * (Traits::kLatent + 2) * sizeof(float);
  const int64_t group = several ? std::clamp<int64_t>(kMaxPartialBytes / row_bytes, 1, rows) : rows;
  if (several) {
    problem.sums = reinterpret_cast<float*>(stream.scratch(row_bytes * group));
    problem.stats = problem.sums + partials * group * Traits::kLatent;
  }
  for (int64_t first = 0; first < rows; first += group) {
    const auto count = static_cast<unsigned>(std::min(group, rows - first));
    problem.first_row = first;
    const dim3 grid(count * problem.head_tiles, problem.max_splits);
    launch_kernel("attention_decode", decode_kernel<Traits>, {grid, Traits::kThreads, kBytes},
                  stream.handle(), problem);
    if (!several) continue;
    const dim3 merge_grid(count, problem.heads);
    launch_kernel("attention_decode: merge", merge_kernel<Traits>, {merge_grid, kMergeThreads},
                  stream.handle(), problem);
  }
}

}  // namespace
}  // namespace attention

void launch(const AttentionDecodeParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  const attention::DecodeProblem problem = attention::describe(params);
  const int64_t rows = params.q.dim(0);
  if (!attention::fits_tensor_cores(params)) {
    if (params.cache.dtype == DType::kF32)
      attention::launch_simple<float>(problem, rows, stream.handle());
    else
      attention::launch_simple<attention::bf16>(problem, rows, stream.handle());
  } else if (problem.heads <= 16) {
    attention::launch_decode<1>(problem, rows, stream);
  } else if (problem.heads <= 32) {
    attention::launch_decode<2>(problem, rows, stream);
  } else {
    attention::launch_decode<4>(problem, rows, stream);
  }
}

}  // namespace loza::cuda
