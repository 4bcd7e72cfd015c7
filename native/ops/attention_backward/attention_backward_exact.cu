// Reverse mode of expanded attention for f32 activations, in fp32 arithmetic (formulas in
// attention_backward.h). Two kernels of one shape; each recomputes p from the log-sum-exp:
//   queries_kernel: a CTA owns kTile query rows of a head, keys pass by:    d_q += ds k
//   keys_kernel:    a CTA owns kTile key rows of a head, queries pass by:   d_k += ds^T q, d_v += p^T
//   d_out
// Grid: (tiles of own rows, heads). Own rows are the first factor of exact_panel.cuh.
#include "cuda/cuda_ops.h"
#include "ops/attention/exact_panel.cuh"
#include "ops/attention_backward/problem.cuh"

namespace loza::cuda {
namespace attention {
namespace {

template <class T>
struct ExactStorage {
  ExactPanel<T> own, other;
  ExactRows<T, T::kTile> p, ds;            // of an own row and another
  float lse[T::kTile], product[T::kTile];  // of the queries among them
};

using Problem = BackwardProblem<float>;

// ---- Loads ----

template <class T>
__device__ void load_queries(const Problem& problem, ExactStorage<T>& shared, ExactPanel<T>& to,
                             int64_t row, int rows, int head) {
  const float* q = problem.q + row * problem.q_row + head * problem.q_head;
  const float* d_out = problem.d_out + row * problem.d_out_row + head * problem.d_out_head;
  load_rows<T>(to.depth, rows, problem.nope + problem.rope, problem.vector,
               [&](int r, int i) { return q + r * problem.q_row + i; });
  load_rows<T>(to.value, rows, problem.value, problem.vector,
               [&](int r, int i) { return d_out + r * problem.d_out_row + i; });
  const int i = static_cast<int>(threadIdx.x);
  if (i >= rows) return;
  const int64_t term = int64_t{head} * problem.rows + row + i;
  cp_async_4(&shared.lse[i], problem.lse + term);
  cp_async_4(&shared.product[i], problem.product + term);
}

template <class T>
__device__ void load_keys(const Problem& problem, ExactPanel<T>& to, int64_t row, int rows,
                          int head) {
  const float* kv = problem.kv + row * problem.kv_row + head * problem.kv_head;
  const float* k_rope = problem.k_rope + row * problem.k_rope_row;
  const int nope = problem.nope;
  load_rows<T>(to.depth, rows, nope + problem.rope, problem.vector, [&](int r, int i) {
    return i < nope ? kv + r * problem.kv_row + i : k_rope + r * problem.k_rope_row + (i - nope);
  });
  load_rows<T>(to.value, rows, problem.value, problem.vector,
               [&](int r, int i) { return kv + r * problem.kv_row + nope + i; });
}

// ---- Compute ----

// p and ds of the own rows and a part of the others; 0 where the interval says so.
template <bool kOwnQueries, class T>
__device__ void weigh(const Problem& problem, ExactStorage<T>& shared,
                      const Interval (&seen)[T::kRows], const ExactPlace& at) {
  ExactProducts<T> scores = {}, products = {};
  multiply<T>(scores, shared.own.depth, shared.other.depth, problem.nope + problem.rope, at);
  multiply<T>(products, shared.own.value, shared.other.value, problem.value, at);
#pragma unroll
  for (int i = 0; i < T::kRows; i++)
#pragma unroll
    for (int j = 0; j < T::kRows; j++) {
      const int own = at.y + i * T::kSide, other = at.x + j * T::kSide;
      const int query = kOwnQueries ? own : other;
      const bool visible = seen[i].has(other);
      const float p = exp2f(fmaf(scores[i][j], problem.binary_scale, -shared.lse[query]));
      const float ds = problem.scale * p * (products[i][j] - shared.product[query]);
      shared.p[own][other] = visible ? p : 0.0f;
      shared.ds[own][other] = visible ? ds : 0.0f;
    }
}

// ---- Store ----

__device__ inline void put(float* to, float value, bool accumulate) {
  *to = accumulate ? *to + value : value;
}

template <class T>
__device__ void store_queries(const Problem& problem, const ExactSums<T, T::kDepth>& sums, int tile,
                              int head, const ExactPlace& at) {
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
    const int64_t row = tile + at.y + i * T::kSide;
    if (row >= problem.rows) continue;
    float* d_q = problem.d_q + row * problem.d_q_row + head * problem.d_q_head;
    for_each_sum<T, T::kDepth>(
        sums, i, problem.nope + problem.rope, at,
        [&](int column, float value) { put(d_q + column, value, problem.accumulate); });
  }
}

template <class T>
__device__ void store_keys(const Problem& problem, const ExactSums<T, T::kDepth>& keys,
                           const ExactSums<T, T::kValue>& values, int tile, int head,
                           const ExactPlace& at) {
  const int nope = problem.nope, rope = problem.rope;
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
    const int64_t row = tile + at.y + i * T::kSide;
    if (row >= problem.keys) continue;
    float* d_kv = problem.d_kv + row * problem.d_kv_row + head * problem.d_kv_head;
    float* d_k_rope = problem.d_k_rope + (int64_t{head} * problem.keys + row) * rope;
    for_each_sum<T, T::kDepth>(keys, i, nope + rope, at, [&](int column, float value) {
      if (column < nope)
        put(d_kv + column, value, problem.accumulate);
      else
        d_k_rope[column - nope] = value;
    });
    for_each_sum<T, T::kValue>(values, i, problem.value, at, [&](int column, float value) {
      put(d_kv + nope + column, value, problem.accumulate);
    });
  }
}

// ---- Kernels ----

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    exact_queries_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ExactStorage<T>*>(shared_bytes);
  const ExactPlace at;
  // Late rows see the most keys: they go first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x) * T::kTile;
  const int head = static_cast<int>(blockIdx.y);
  ExactSums<T, T::kDepth> sums = {};
  load_queries(problem, shared, shared.own, tile, min(T::kTile, problem.rows - tile), head);
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run =
        run_of(segment.query_row, segment.query_count, segment.query_position, tile, T::kTile);
    if (run.first >= run.end) continue;
    Walk walk = walk_keys(problem.range, segment, run);
    for (Part part; next_part<T::kTile>(walk, segment.key_row, segment.key_position, part);) {
      Interval seen[T::kRows];
      for (int i = 0; i < T::kRows; i++)
        seen[i] = seen_keys(problem.range, run, part, tile + at.y + i * T::kSide);
      __syncthreads();  // nobody reads the part before
      load_keys(problem, shared.other, part.row, part.count, head);
      wait_for_copies();
      __syncthreads();
      weigh<true>(problem, shared, seen, at);
      __syncthreads();
      add<T, T::kDepth>(sums, shared.ds, shared.other.depth, part.count, at);
    }
  }
  wait_for_copies();  // of the own rows, where no key was seen
  store_queries<T>(problem, sums, tile, head, at);
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    exact_keys_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ExactStorage<T>*>(shared_bytes);
  const ExactPlace at;
  const int tile = static_cast<int>(blockIdx.x) * T::kTile, head = static_cast<int>(blockIdx.y);
  ExactSums<T, T::kDepth> keys = {};
  ExactSums<T, T::kValue> values = {};
  load_keys(problem, shared.own, tile, min(T::kTile, problem.keys - tile), head);
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run =
        run_of(segment.key_row, segment.key_count, segment.key_position, tile, T::kTile);
    if (run.first >= run.end) continue;
    Walk walk = walk_queries(problem.range, segment, run);
    for (Part part; next_part<T::kTile>(walk, segment.query_row, segment.query_position, part);) {
      Interval seen[T::kRows];
      for (int i = 0; i < T::kRows; i++)
        seen[i] = seen_queries(problem.range, run, part, tile + at.y + i * T::kSide);
      __syncthreads();  // nobody reads the part before
      load_queries(problem, shared, shared.other, part.row, part.count, head);
      wait_for_copies();
      __syncthreads();
      weigh<false>(problem, shared, seen, at);
      __syncthreads();
      add<T, T::kDepth>(keys, shared.ds, shared.other.depth, part.count, at);
      add<T, T::kValue>(values, shared.p, shared.other.value, part.count, at);
    }
  }
  wait_for_copies();  // of the own rows, where no query saw them
  store_keys<T>(problem, keys, values, tile, head, at);
}

// ---- Launch ----

template <class T>
void launch_exact_kernels(const Problem& problem, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(ExactStorage<T>);
  const auto grid = [&](int32_t rows) {
    return dim3(static_cast<unsigned>(ceil_div(rows, T::kTile)), problem.heads);
  };
  allow_shared_memory<exact_queries_kernel<T>>(kBytes);
  allow_shared_memory<exact_keys_kernel<T>>(kBytes);
  if (problem.rows > 0)
    exact_queries_kernel<T><<<grid(problem.rows), T::kThreads, kBytes, stream>>>(problem);
  if (problem.keys > 0)
    exact_keys_kernel<T><<<grid(problem.keys), T::kThreads, kBytes, stream>>>(problem);
  check_launch("attention_backward");
}

}  // namespace
}  // namespace attention

void launch_exact(const AttentionBackwardParams& params, CudaStream& stream) {
  const auto problem = attention::describe_backward<float>(params, stream);
  attention::launch_row_terms(params, problem, stream.handle());
  const bool found =
      attention::with_exact_traits(problem.nope + problem.rope, problem.value, [&](auto traits) {
        attention::launch_exact_kernels<decltype(traits)>(problem, stream.handle());
      });
  loza::check(found, "attention_backward: no kernel for q ", params.q, " and out ", params.out);
  attention::launch_sum_heads(params, problem, stream.handle());
}

}  // namespace loza::cuda
