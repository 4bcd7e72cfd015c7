// Reverse mode of expanded attention on Hopper: wgmma, bf16 operands, fp32 sums (formulas in
// attention_backward.h). Two kernels; each recomputes p from the log-sum-exp, so that no sum needs
// atomics and the bits repeat:
//   queries_kernel: a CTA owns 128 query rows of a head, keys pass by:    d_q += ds k
//   keys_kernel:    a CTA owns 128 key rows of a head, queries pass by:   d_k += ds^T q,
//                                                                         d_v += p^T d_out
// Grid: (tiles of own rows, heads). Each of two warpgroups owns 64 rows of the tile; its p and ds stay in
// registers, where sums of one product are operands of the next. Parts of the other side come in two
// stages. What no own row sees is zeros in shared memory: it may be NaN.
#include "cuda/attention_mma.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"
#include "ops/attention_backward/problem.cuh"

namespace loza::cuda {
namespace attention {
namespace {

template <int kDepth_, int kValue_>
struct BackwardTraits {
  static constexpr int kDepth = kDepth_;  // nope + rope, padded
  static constexpr int kValue = kValue_;  // padded
  static constexpr int kGroups = 2, kThreads = kGroups * 128;
  static constexpr int kOwn = kGroups * 64;
  static constexpr int kStages = 2;
  // Sums of both gradients of keys, where one thread has the registers for them.
  static constexpr bool kTogether = kDepth + kValue <= 320;
  static constexpr int kKeyPart = kDepth <= 192 ? 64 : 32;
  static constexpr int kQueryPart = 32;
};

inline constexpr int kPanel = 64;  // columns of 128 bytes, what a swizzled row holds

// Tiles are panels of 64 columns whose 128-byte rows are swizzled, as wgmma reads them.
template <int kRows, int kColumns>
using Tile = bf16[kColumns / kPanel][kRows * kPanel];

template <class T, int kPart>
struct BackwardStorage {
  alignas(1024) Tile<T::kOwn, T::kDepth> own_depth;
  alignas(1024) Tile<T::kOwn, T::kValue> own_value;
  alignas(1024) Tile<kPart, T::kDepth> depth[T::kStages];
  alignas(1024) Tile<kPart, T::kValue> value[T::kStages];
  float lse[T::kStages][kPart], product[T::kStages][kPart];  // of queries
};

template <class T>
using QueryStorage = BackwardStorage<T, T::kKeyPart>;  // of the CTA that owns queries
template <class T>
using KeyStorage = BackwardStorage<T, T::kQueryPart>;

using Problem = BackwardProblem<bf16>;

// A warpgroup's sums over its 64 rows, as wgmma.cuh says: element i is column 8 (i / 4) + 2 t + i % 2 of
// row g or, where i / 2 is odd, g + 8.
template <int kColumns>
using Sums = float[kColumns / 2];
// A factor of 64 rows and kColumns columns in registers.
template <int kColumns>
using Factor = uint32_t[kColumns / 16][4];

// What rows g and g + 8 of this lane's warp see, and whether all rows of the CTA see the whole part.
struct Seen {
  Interval rows[2];
  bool all;
};

struct Lane {
  int thread = static_cast<int>(threadIdx.x);

  __device__ int group() const { return thread / 128; }
  __device__ int row(int r) const { return thread / kLanes * 16 + thread % kLanes / 4 + 8 * r; }
  __device__ int column(int i) const { return i / 4 * 8 + thread % 4 * 2 + i % 2; }
};

// ---- Loads ----

template <class T, int kRows, int kColumns, class At>
__device__ void load_panels(Tile<kRows, kColumns>& to, int rows, int columns,
                            const Problem& problem, const At& at) {
#pragma unroll
  for (int panel = 0; panel < kColumns / kPanel; panel++)
    load_tile<kRows, kPanel, T::kThreads>(
        to[panel], rows, columns - panel * kPanel, problem.vector, problem.q,
        [&](int row, int column) { return at(row, panel * kPanel + column); });
}

template <class T, int kRows>
__device__ void load_queries(const Problem& problem, Tile<kRows, T::kDepth>& depth,
                             Tile<kRows, T::kValue>& value, int64_t row, int rows, int head) {
  const bf16* q = problem.q + row * problem.q_row + head * problem.q_head;
  const bf16* d_out = problem.d_out + row * problem.d_out_row + head * problem.d_out_head;
  load_panels<T, kRows, T::kDepth>(depth, rows, problem.nope + problem.rope, problem,
                                   [&](int r, int i) { return q + r * problem.q_row + i; });
  load_panels<T, kRows, T::kValue>(value, rows, problem.value, problem,
                                   [&](int r, int i) { return d_out + r * problem.d_out_row + i; });
}

template <class T, int kRows>
__device__ void load_keys(const Problem& problem, Tile<kRows, T::kDepth>& depth,
                          Tile<kRows, T::kValue>& value, int64_t row, int rows, int head) {
  const bf16* kv = problem.kv + row * problem.kv_row + head * problem.kv_head;
  const bf16* k_rope = problem.k_rope + row * problem.k_rope_row;
  const int nope = problem.nope;
  load_panels<T, kRows, T::kDepth>(depth, rows, nope + problem.rope, problem, [&](int r, int i) {
    return i < nope ? kv + r * problem.kv_row + i : k_rope + r * problem.k_rope_row + (i - nope);
  });
  load_panels<T, kRows, T::kValue>(value, rows, problem.value, problem, [&](int r, int i) {
    return kv + r * problem.kv_row + nope + i;
  });
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

// products = own[64 rows of the group] . other[kPart rows], over kColumns values, asynchronously
template <class T, int kColumns, int kPart>
__device__ __forceinline__ void start_products(Sums<kPart>& products,
                                               const Tile<T::kOwn, kColumns>& own,
                                               const Tile<kPart, kColumns>& other, int group) {
  const uint64_t a = wgmma_descriptor(own[0] + group * 64 * kPanel), b = wgmma_descriptor(other);
#pragma unroll
  for (int panel = 0; panel < kColumns / kPanel; panel++)
#pragma unroll
    for (int step = 0; step < kPanel / 16; step++)
      wgmma_bf16(products, wgmma_advance(a, panel * T::kOwn * 128 + step * 32),
                 wgmma_advance(b, panel * kPart * 128 + step * 32), panel + step > 0);
  wgmma_commit();
}

// sums += weights[64 rows, kPart] other[kPart rows, kColumns], asynchronously
template <int kColumns, int kPart>
__device__ __forceinline__ void start_sums(Sums<kColumns>& sums, const Factor<kPart>& weights,
                                           const Tile<kPart, kColumns>& other) {
  const uint64_t b = wgmma_descriptor(other, kPart * 128);
#pragma unroll
  for (int step = 0; step < kPart / 16; step++)
    wgmma_bf16<1>(sums, weights[step], wgmma_advance(b, step * 16 * 128), true);
}

// Scores become p. terms(r, column): lse and product of that pair's query.
template <int kPart, class Terms>
__device__ __forceinline__ void weigh(Sums<kPart>& scores, float scale, const Seen& seen,
                                      const Lane& at, const Terms& terms) {
#pragma unroll
  for (int i = 0; i < kPart / 2; i++) {
    const int r = i / 2 % 2, column = at.column(i);
    const float p = exp2_fast(fmaf(scores[i], scale, -terms(r, column).x));
    scores[i] = seen.all || seen.rows[r].has(column) ? p : 0.0f;
  }
}

// Products become ds, without softmax_scale, which the sums get at the end.
template <int kPart, class Terms>
__device__ __forceinline__ void differ(Sums<kPart>& products, const Sums<kPart>& p,
                                       const Seen& seen, const Lane& at, const Terms& terms) {
#pragma unroll
  for (int i = 0; i < kPart / 2; i++) {
    const int r = i / 2 % 2, column = at.column(i);
    const float ds = p[i] * (products[i] - terms(r, column).y);
    products[i] = seen.all || seen.rows[r].has(column) ? ds : 0.0f;
  }
}

template <int kPart>
__device__ __forceinline__ void narrow_to(Factor<kPart>& factor, const Sums<kPart>& values) {
#pragma unroll
  for (int i = 0; i < kPart / 4; i++) factor[i / 4][i % 4] = pack(values[2 * i], values[2 * i + 1]);
}

// ---- Store ----

__device__ inline void put(bf16* to, float value, bool accumulate) {
  *to = __float2bfloat16_rn(accumulate ? __bfloat162float(*to) + value : value);
}

// Calls to(row, column, value) with what exists of this thread's sums.
template <int kColumns, class To>
__device__ void store(const Sums<kColumns>& sums, int tile, int rows, int columns, const Lane& at,
                      const To& to) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; i++) {
    const int row = tile + at.row(i / 2 % 2), column = at.column(i);
    if (row < rows && column < columns) to(int64_t{row}, column, sums[i]);
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
    proxy_fence();
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
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
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
          const auto query = [&](int r, int) { return terms[r]; };
          Sums<T::kKeyPart> scores, products;
          wgmma_fence();
          start_products<T, T::kDepth, T::kKeyPart>(scores, shared.own_depth, shared.depth[stage],
                                                    at.group());
          start_products<T, T::kValue, T::kKeyPart>(products, shared.own_value, shared.value[stage],
                                                    at.group());
          wgmma_wait<1>();
          wgmma_pin(scores);
          weigh<T::kKeyPart>(scores, problem.binary_scale, seen, at, query);
          wgmma_wait<0>();
          wgmma_pin(products);
          differ<T::kKeyPart>(products, scores, seen, at, query);
          Factor<T::kKeyPart> ds;
          narrow_to<T::kKeyPart>(ds, products);
          wgmma_fence();
          start_sums<T::kDepth, T::kKeyPart>(sums, ds, shared.depth[stage]);
          wgmma_commit();
          wgmma_wait<0>();
          wgmma_pin(sums);
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
using KeySums = Sums<(kWanted & kKeys) != 0 ? T::kDepth : 16>;
template <class T, int kWanted>
using ValueSums = Sums<(kWanted & kValues) != 0 ? T::kValue : 16>;

template <class T, int kWanted>
__device__ __forceinline__ void add_queries(const Problem& problem, const KeyStorage<T>& shared,
                                            int stage, const Seen& seen, const Lane& at,
                                            KeySums<T, kWanted>& keys,
                                            ValueSums<T, kWanted>& values) {
  constexpr int kPart = T::kQueryPart;
  const auto query = [&](int, int column) {
    return float2{shared.lse[stage][column], shared.product[stage][column]};
  };
  Sums<kPart> scores, products;
  Factor<kPart> p, ds;
  wgmma_fence();
  start_products<T, T::kDepth, kPart>(scores, shared.own_depth, shared.depth[stage], at.group());
  if constexpr ((kWanted & kKeys) != 0) {
    start_products<T, T::kValue, kPart>(products, shared.own_value, shared.value[stage],
                                        at.group());
    wgmma_wait<1>();
  } else {
    wgmma_wait<0>();
  }
  wgmma_pin(scores);
  weigh<kPart>(scores, problem.binary_scale, seen, at, query);
  narrow_to<kPart>(p, scores);
  if constexpr ((kWanted & kKeys) != 0) {
    wgmma_wait<0>();
    wgmma_pin(products);
    differ<kPart>(products, scores, seen, at, query);
    narrow_to<kPart>(ds, products);
  }
  wgmma_fence();
  if constexpr ((kWanted & kValues) != 0)
    start_sums<T::kValue, kPart>(values, p, shared.value[stage]);
  if constexpr ((kWanted & kKeys) != 0) start_sums<T::kDepth, kPart>(keys, ds, shared.depth[stage]);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(values);
  wgmma_pin(keys);
}

template <class T, int kWanted>
__global__ void __launch_bounds__(T::kThreads)
    keys_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<KeyStorage<T>*>(shared_bytes);
  const int tile = static_cast<int>(blockIdx.x) * T::kOwn, head = static_cast<int>(blockIdx.y);
  const int rows = min(T::kOwn, problem.keys - tile);
  const Lane at;
  load_keys<T, T::kOwn>(problem, shared.own_depth, shared.own_value, tile, rows, head);
  KeySums<T, kWanted> keys = {};
  ValueSums<T, kWanted> values = {};
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
          add_queries<T, kWanted>(problem, shared, stage,
                                  see_queries<T>(problem, run, part, tile, at), at, keys, values);
        });
  }
  wait_for_copies();  // of the own rows, where no query saw them
  if constexpr ((kWanted & kKeys) != 0) store_keys<T>(problem, keys, tile, head, at);
  if constexpr ((kWanted & kValues) != 0) store_values<T>(problem, values, tile, head, at);
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
