// Reverse mode of expanded attention with mma.sync: bf16 operands, fp32 sums (formulas in
// attention_backward.h). Two kernels; each recomputes p from the log-sum-exp, so that no sum needs
// atomics and the bits repeat:
//   queries_kernel: a CTA owns 128 query rows of a head, keys pass by:    d_q += ds k
//   keys_kernel:    a CTA owns 128 key rows of a head, queries pass by:   d_k += ds^T q, d_v += p^T d_out
// Grid: (tiles of own rows, heads). Warp w owns rows 16 w to 16 w + 15 of the tile; its p and ds stay in
// registers, where accumulators of one product are operands of the next. Parts of the other side come
// in two stages. What no own row sees is zeros in shared memory: it may be NaN.
#include "cuda/attention_mma.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/reduce.cuh"
#include "ops/attention_backward/problem.cuh"

namespace loza::cuda {
namespace attention {
namespace {

template <int kDepth_, int kValue_>
struct BackwardTraits {
  static constexpr int kDepth = kDepth_;  // nope + rope, padded
  static constexpr int kValue = kValue_;  // padded
  static constexpr int kWarps = 8, kThreads = kWarps * kLanes;
  static constexpr int kOwn = kWarps * 16;
  static constexpr int kStages = 2;
  // Sums of both gradients of keys, where one thread has the registers for them.
  static constexpr bool kTogether = kDepth + kValue <= 320;
  static constexpr int kKeyPart = kDepth <= 192 ? 64 : 32;
  static constexpr int kQueryPart = 32;
};

template <class T, int kPart>
struct BackwardStorage {
  alignas(128) bf16 own_depth[T::kOwn * T::kDepth];
  alignas(128) bf16 own_value[T::kOwn * T::kValue];
  alignas(128) bf16 depth[T::kStages][kPart * T::kDepth];
  alignas(128) bf16 value[T::kStages][kPart * T::kValue];
  float lse[T::kStages][kPart], product[T::kStages][kPart];  // of queries
};

template <class T>
using QueryStorage = BackwardStorage<T, T::kKeyPart>;  // of the CTA that owns queries
template <class T>
using KeyStorage = BackwardStorage<T, T::kQueryPart>;

using Problem = BackwardProblem<bf16>;

// A fragment of m16n8: rows g and g + 8 of the warp's, columns 2t and 2t + 1 of 8.
template <int kColumns>
using Sums = float[kColumns / 8][4];

// What rows g and g + 8 of this lane's warp see, and whether all rows of the CTA see the whole part.
struct Seen {
  Interval rows[2];
  bool all;
};

struct Lane {
  int warp, lane;

  __device__ Lane()
      : warp(static_cast<int>(threadIdx.x) / kLanes),
        lane(static_cast<int>(threadIdx.x) % kLanes) {}
  __device__ int row(int r) const { return warp * 16 + lane / 4 + 8 * r; }
  __device__ int column(int n, int c) const { return n * 8 + lane % 4 * 2 + c; }
};

// ---- Loads ----

template <class T, int kRows>
__device__ void load_queries(const Problem& problem, bf16* depth, bf16* value, int64_t row,
                             int rows, int head) {
  const bf16* q = problem.q + row * problem.q_row + head * problem.q_head;
  const bf16* d_out = problem.d_out + row * problem.d_out_row + head * problem.d_out_head;
  load_tile<kRows, T::kDepth, T::kThreads>(
      depth, rows, problem.nope + problem.rope, problem.vector, problem.q,
      [&](int r, int column) { return q + r * problem.q_row + column; });
  load_tile<kRows, T::kValue, T::kThreads>(
      value, rows, problem.value, problem.vector, problem.q,
      [&](int r, int column) { return d_out + r * problem.d_out_row + column; });
}

template <class T, int kRows>
__device__ void load_keys(const Problem& problem, bf16* depth, bf16* value, int64_t row, int rows,
                          int head) {
  const bf16* kv = problem.kv + row * problem.kv_row + head * problem.kv_head;
  const bf16* k_rope = problem.k_rope + row * problem.k_rope_row;
  const int nope = problem.nope;
  load_tile<kRows, T::kDepth, T::kThreads>(
      depth, rows, nope + problem.rope, problem.vector, problem.kv, [&](int r, int column) {
        return column < nope ? kv + r * problem.kv_row + column
                             : k_rope + r * problem.k_rope_row + (column - nope);
      });
  load_tile<kRows, T::kValue, T::kThreads>(
      value, rows, problem.value, problem.vector, problem.kv,
      [&](int r, int column) { return kv + r * problem.kv_row + nope + column; });
}

// Queries that do not exist weigh nothing: exp2(score - infinity) is 0.
template <class T>
__device__ void load_terms(const Problem& problem, KeyStorage<T>& shared, int stage, int64_t row,
                           int rows, int head) {
  const int i = static_cast<int>(threadIdx.x) % T::kQueryPart;
  const bool first = threadIdx.x < T::kQueryPart;
  if (threadIdx.x >= 2 * T::kQueryPart) return;
  float* to = first ? &shared.lse[stage][i] : &shared.product[stage][i];
  const float* from = (first ? problem.lse : problem.product) + int64_t{head} * problem.rows + row;
  if (i < rows)
    cp_async_4(to, from + i);
  else
    *to = first ? -negative_infinity() : 0.0f;
}

// ---- Compute ----

// Where this lane reads chunks of its row of a tile (tile_offset, in parts that need few registers).
template <int kColumns>
struct Chunks {
  static_assert(kColumns % 64 == 0);
  uint32_t row, first;

  __device__ Chunks(const bf16* tile, int row, int half)
      : row(shared_address(tile) + row * kColumns * 2), first((half ^ row % 8) << 4) {}
  // Of the 16 columns `step`, `rows` further down (a multiple of 8).
  __device__ uint32_t at(int rows, int step) const {
    return row + rows * kColumns * 2 + step / 4 * 128 + (first ^ step % 4 * 32);
  }
};

// sums = own[16 rows of the warp] . other[kPart rows], over kColumns values
template <int kColumns, int kPart>
__device__ void multiply(Sums<kPart>& sums, const bf16* own, const bf16* other, const Lane& at) {
  const Chunks<kColumns> left(own, at.warp * 16 + at.lane % 16, at.lane / 16);
  const Chunks<kColumns> right(other, at.lane / 16 * 8 + at.lane % 8, at.lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < kColumns / 16; step++) {
    uint32_t a[4];
    load_matrices(a, left.at(0, step));
#pragma unroll
    for (int n = 0; n < kPart / 16; n++) {
      uint32_t b[4];
      load_matrices(b, right.at(n * 16, step));
      multiply_add(sums[2 * n], a, b[0], b[1]);
      multiply_add(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// sums += weights[16 rows, kPart] other[kPart rows, kColumns]
template <int kColumns, int kPart>
__device__ void add(Sums<kColumns>& sums, const Sums<kPart>& weights, const bf16* other,
                    const Lane& at) {
  const Chunks<kColumns> chunks(other, at.lane % 16, at.lane / 16);
#pragma unroll
  for (int step = 0; step < kPart / 16; step++) {
    const auto &left = weights[2 * step], &right = weights[2 * step + 1];
    const uint32_t a[4] = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]),
                           pack(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < kColumns / 16; n++) {
      uint32_t b[4];
      load_transposed(b, chunks.at(step * 16, n));
      multiply_add(sums[2 * n], a, b[0], b[1]);
      multiply_add(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Scores become p and products become ds, without softmax_scale, which the sums get at the end.
// terms(r, column): lse and product of that pair's query.
template <int kPart, class Terms>
__device__ void weigh(Sums<kPart>& scores, Sums<kPart>& products, float scale, const Seen& seen,
                      const Lane& at, const Terms& terms) {
#pragma unroll
  for (int n = 0; n < kPart / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = i / 2, column = at.column(n, i % 2);
      const float2 query = terms(r, column);
      const float p = exp2_fast(fmaf(scores[n][i], scale, -query.x));
      const float ds = p * (products[n][i] - query.y);
      const bool visible = seen.all || seen.rows[r].has(column);
      scores[n][i] = visible ? p : 0.0f;
      products[n][i] = visible ? ds : 0.0f;
    }
}

// ---- Store ----

__device__ inline void put(bf16* to, float value, bool accumulate) {
  *to = __float2bfloat16_rn(accumulate ? __bfloat162float(*to) + value : value);
}

// Calls to(row, column, value) with what exists of this lane's sums.
template <int kColumns, class To>
__device__ void store(const Sums<kColumns>& sums, int tile, int rows, int columns, const Lane& at,
                      const To& to) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = tile + at.row(i / 2), column = at.column(n, i % 2);
      if (row < rows && column < columns) to(int64_t{row}, column, sums[n][i]);
    }
}

template <class T>
__device__ void store_keys(const Problem& problem, const Sums<T::kDepth>& keys, int tile, int head,
                           const Lane& at) {
  const int nope = problem.nope, rope = problem.rope;
  bf16* d_kv = problem.d_kv + head * problem.d_kv_head;
  float* d_k_rope = problem.d_k_rope + int64_t{head} * problem.keys * rope;
  store<T::kDepth>(keys, tile, problem.keys, nope + rope, at, [&](int64_t r, int i, float value) {
    if (i < nope)
      put(d_kv + r * problem.d_kv_row + i, value * problem.scale, problem.accumulate);
    else
      d_k_rope[r * rope + i - nope] = value * problem.scale;
  });
}

template <class T>
__device__ void store_values(const Problem& problem, const Sums<T::kValue>& values, int tile,
                             int head, const Lane& at) {
  bf16* d_kv = problem.d_kv + head * problem.d_kv_head + problem.nope;
  store<T::kValue>(values, tile, problem.keys, problem.value, at,
                   [&](int64_t r, int i, float value) {
                     put(d_kv + r * problem.d_kv_row + i, value, problem.accumulate);
                   });
}

// ---- Schedule ----

// Loads each part of the walk into the stages in turn while the one before is computed.
template <int kPart, class Load, class Compute>
__device__ void for_each_part(Walk& walk, int32_t row, int32_t position, const Load& load,
                              const Compute& compute) {
  Part part, next;
  if (!next_part<kPart>(walk, row, position, part)) return;
  __syncthreads();  // nobody reads the stages of the segment before
  load(0, part);
  for (int stage = 0;; stage ^= 1) {
    const bool more = next_part<kPart>(walk, row, position, next);
    wait_for_copies();
    __syncthreads();  // the part is there, and nobody reads the other stage any more
    if (more) load(stage ^ 1, next);
    compute(stage, part);
    if (!more) return;
    part = next;
  }
}

// ---- Kernels ----

template <class T>
__device__ Seen see_keys(const Problem& problem, const Run& run, const Part& part, int tile,
                         const Lane& at) {
  Seen seen;
  for (int r = 0; r < 2; r++) seen.rows[r] = seen_keys(problem.range, run, part, tile + at.row(r));
  // The first row sees every key that comes before it, the last row the fewest of other blocks.
  const bool whole = run.first == tile && run.end == tile + T::kOwn && part.count == T::kKeyPart;
  seen.all = whole && seen_keys(problem.range, run, part, run.first).to == part.count &&
             seen_keys(problem.range, run, part, run.end - 1).to == part.count;
  return seen;
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    queries_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<QueryStorage<T>*>(shared_bytes);
  // Late rows see the most keys: they go first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x) * T::kOwn;
  const int head = static_cast<int>(blockIdx.y), rows = min(T::kOwn, problem.rows - tile);
  const Lane at;
  load_queries<T, T::kOwn>(problem, shared.own_depth, shared.own_value, tile, rows, head);
  float2 terms[2];
  for (int r = 0; r < 2; r++) {
    const int64_t row = int64_t{head} * problem.rows + tile + min(at.row(r), rows - 1);
    terms[r] = {problem.lse[row], problem.product[row]};
  }
  Sums<T::kDepth> sums = {};
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run =
        run_of(segment.query_row, segment.query_count, segment.query_position, tile, T::kOwn);
    if (run.first >= run.end) continue;
    Walk walk = walk_keys(problem.range, segment, run);
    for_each_part<T::kKeyPart>(
        walk, segment.key_row, segment.key_position,
        [&](int stage, const Part& part) {
          load_keys<T, T::kKeyPart>(problem, shared.depth[stage], shared.value[stage], part.row,
                                    part.count, head);
        },
        [&](int stage, const Part& part) {
          const Seen seen = see_keys<T>(problem, run, part, tile, at);
          if (!__any_sync(kFullWarp, seen.rows[0].to > 0 || seen.rows[1].to > 0)) return;
          Sums<T::kKeyPart> scores = {}, products = {};
          multiply<T::kDepth, T::kKeyPart>(scores, shared.own_depth, shared.depth[stage], at);
          multiply<T::kValue, T::kKeyPart>(products, shared.own_value, shared.value[stage], at);
          weigh<T::kKeyPart>(scores, products, problem.binary_scale, seen, at,
                             [&](int r, int) { return terms[r]; });
          add<T::kDepth, T::kKeyPart>(sums, products, shared.depth[stage], at);
        });
  }
  wait_for_copies();  // of the own rows, where no key was seen
  bf16* d_q = problem.d_q + head * problem.d_q_head;
  store<T::kDepth>(sums, tile, problem.rows, problem.nope + problem.rope, at,
                   [&](int64_t r, int i, float value) {
                     put(d_q + r * problem.d_q_row + i, value * problem.scale, problem.accumulate);
                   });
}

template <class T>
__device__ Seen see_queries(const Problem& problem, const Run& run, const Part& part, int tile,
                            const Lane& at) {
  Seen seen;
  for (int r = 0; r < 2; r++)
    seen.rows[r] = seen_queries(problem.range, run, part, tile + at.row(r));
  const Interval first = seen_queries(problem.range, run, part, run.first);
  const Interval last = seen_queries(problem.range, run, part, run.end - 1);
  // The last key is the last to be seen; the first key's block, or the sinks', is the last to be left.
  seen.all = run.first == tile && run.end == tile + T::kOwn && last.from == 0 &&
             first.to == part.count && last.to == part.count;
  return seen;
}

// Which gradients of keys a launch computes: of k, of v.
enum Wanted { kKeys = 1, kValues = 2 };

template <class T, int kWanted>
__global__ void __launch_bounds__(T::kThreads)
    keys_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<KeyStorage<T>*>(shared_bytes);
  const int tile = static_cast<int>(blockIdx.x) * T::kOwn, head = static_cast<int>(blockIdx.y);
  const int rows = min(T::kOwn, problem.keys - tile);
  const Lane at;
  load_keys<T, T::kOwn>(problem, shared.own_depth, shared.own_value, tile, rows, head);
  Sums<kWanted& kKeys ? T::kDepth : 8> keys = {};
  Sums<kWanted& kValues ? T::kValue : 8> values = {};
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run = run_of(segment.key_row, segment.key_count, segment.key_position, tile, T::kOwn);
    if (run.first >= run.end) continue;
    Walk walk = walk_queries(problem.range, segment, run);
    for_each_part<T::kQueryPart>(
        walk, segment.query_row, segment.query_position,
        [&](int stage, const Part& part) {
          load_queries<T, T::kQueryPart>(problem, shared.depth[stage], shared.value[stage],
                                         part.row, part.count, head);
          load_terms<T>(problem, shared, stage, part.row, part.count, head);
        },
        [&](int stage, const Part& part) {
          const Seen seen = see_queries<T>(problem, run, part, tile, at);
          const bool any =
              seen.rows[0].from < seen.rows[0].to || seen.rows[1].from < seen.rows[1].to;
          if (!__any_sync(kFullWarp, any)) return;
          Sums<T::kQueryPart> scores = {}, products = {};
          multiply<T::kDepth, T::kQueryPart>(scores, shared.own_depth, shared.depth[stage], at);
          if constexpr (kWanted & kKeys)
            multiply<T::kValue, T::kQueryPart>(products, shared.own_value, shared.value[stage], at);
          weigh<T::kQueryPart>(
              scores, products, problem.binary_scale, seen, at, [&](int, int column) {
                return float2{shared.lse[stage][column], shared.product[stage][column]};
              });
          if constexpr (kWanted & kValues)
            add<T::kValue, T::kQueryPart>(values, scores, shared.value[stage], at);
          if constexpr (kWanted & kKeys)
            add<T::kDepth, T::kQueryPart>(keys, products, shared.depth[stage], at);
        });
  }
  wait_for_copies();  // of the own rows, where no query saw them
  if constexpr (kWanted & kKeys) store_keys<T>(problem, keys, tile, head, at);
  if constexpr (kWanted & kValues) store_values<T>(problem, values, tile, head, at);
}

// ---- Launch ----

template <class T, int kWanted>
void launch_keys(const Problem& problem, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(KeyStorage<T>);
  allow_shared_memory<keys_kernel<T, kWanted>>(kBytes);
  const dim3 grid(static_cast<unsigned>(ceil_div(problem.keys, T::kOwn)), problem.heads);
  keys_kernel<T, kWanted><<<grid, T::kThreads, kBytes, stream>>>(problem);
}

template <int kDepth, int kValue>
void launch_kernels(const Problem& problem, cudaStream_t stream) {
  using T = BackwardTraits<kDepth, kValue>;
  constexpr size_t kBytes = sizeof(QueryStorage<T>);
  if (problem.rows > 0) {
    allow_shared_memory<queries_kernel<T>>(kBytes);
    const dim3 grid(static_cast<unsigned>(ceil_div(problem.rows, T::kOwn)), problem.heads);
    queries_kernel<T><<<grid, T::kThreads, kBytes, stream>>>(problem);
  }
  if (problem.keys > 0) {
    if constexpr (T::kTogether) {
      launch_keys<T, kKeys | kValues>(problem, stream);
    } else {
      launch_keys<T, kKeys>(problem, stream);
      launch_keys<T, kValues>(problem, stream);
    }
  }
  check_launch("attention_backward");
}

}  // namespace
}  // namespace attention

void launch(const AttentionBackwardParams& params, CudaStream& stream) {
  const auto problem = attention::describe_backward<attention::bf16>(params, stream);
  const int depth = problem.nope + problem.rope, value = problem.value;
  attention::launch_row_terms(params, problem, stream.handle());
  if (depth <= 64 && value <= 64)
    attention::launch_kernels<64, 64>(problem, stream.handle());
  else if (depth <= 128 && value <= 128)
    attention::launch_kernels<128, 128>(problem, stream.handle());
  else if (depth <= 192 && value <= 128)
    attention::launch_kernels<192, 128>(problem, stream.handle());
  else if (depth <= 256 && value <= 256)
    attention::launch_kernels<256, 256>(problem, stream.handle());
  else
    fail(code::kInternal, "attention_backward: no kernel for q ", params.q, " and out ",
         params.out);
  attention::launch_sum_heads(params, problem, stream.handle());
}

}  // namespace loza::cuda
