// Reverse mode of expanded attention for f32 activations, in fp32 arithmetic (formulas in
// attention_backward.h). Two kernels of one shape; each recomputes p from the log-sum-exp:
//   queries_kernel: a CTA owns kTile query rows of a head, keys pass by:    d_q += ds k
//   keys_kernel:    a CTA owns kTile key rows of a head, queries pass by:   d_k += ds^T q, d_v += p^T d_out
// Grid: (tiles of own rows, heads). 16 x 16 threads; thread (x, y) has own rows y + 16 i, of scores the
// other side's rows x + 16 j, of sums the columns 4 x + 64 c to 4 x + 64 c + 3.
#include "cuda/attention_mma.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/reduce.cuh"
#include "ops/attention_backward/problem.cuh"

namespace loza::cuda {
namespace attention {
namespace {

template <int kDepth_, int kValue_>
struct ExactTraits {
  static constexpr int kDepth = kDepth_;  // nope + rope, padded
  static constexpr int kValue = kValue_;  // padded
  static constexpr int kSide = 16, kThreads = kSide * kSide;
  static constexpr int kTile = kDepth + kValue <= 320 ? 64 : 32;
  static constexpr int kRows = kTile / kSide;  // of a thread
  static constexpr int kStrip = 4 * kSide;     // columns of all threads of a row
};

// Rows are padded by 16 bytes: eight of them, read side by side, lie in different banks.
template <class T>
struct ExactPanel {
  float depth[T::kTile][T::kDepth + 4];  // q or k
  float value[T::kTile][T::kValue + 4];  // d_out or v
};

template <class T>
struct ExactStorage {
  ExactPanel<T> own, other;
  float p[T::kTile][T::kTile + 4];  // of an own row and another
  float ds[T::kTile][T::kTile + 4];
  float lse[T::kTile], product[T::kTile];  // of the queries among them
};

template <class T, int kColumns>
using ExactSums = float4[T::kRows][kColumns / T::kStrip];

using Problem = BackwardProblem<float>;

__device__ inline void add_product(float& sum, const float4& a, const float4& b) {
  sum = fmaf(a.x, b.x, sum), sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum), sum = fmaf(a.w, b.w, sum);
}

__device__ inline void add_scaled(float4& sum, float factor, const float4& b) {
  sum.x = fmaf(factor, b.x, sum.x), sum.y = fmaf(factor, b.y, sum.y);
  sum.z = fmaf(factor, b.z, sum.z), sum.w = fmaf(factor, b.w, sum.w);
}

// ---- Loads ----

// Zeros up to the next multiple of 4 columns and behind the last row. at(row, column): a value.
template <class T, int kStride, class At>
__device__ void load_rows(float (&to)[T::kTile][kStride], int rows, int columns, const At& at) {
  const int padded = (columns + 3) / 4 * 4;
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < T::kTile;
       row += T::kThreads / kWarpSize)
    for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < padded; i += kWarpSize)
      to[row][i] = row < rows && i < columns ? at(row, i) : 0.0f;
}

template <class T>
__device__ void load_queries(const Problem& problem, ExactStorage<T>& shared, ExactPanel<T>& to,
                             int64_t row, int rows, int head) {
  const float* q = problem.q + row * problem.q_row + head * problem.q_head;
  const float* d_out = problem.d_out + row * problem.d_out_row + head * problem.d_out_head;
  load_rows<T>(to.depth, rows, problem.nope + problem.rope,
               [&](int r, int i) { return q[r * problem.q_row + i]; });
  load_rows<T>(to.value, rows, problem.value,
               [&](int r, int i) { return d_out[r * problem.d_out_row + i]; });
  const int i = static_cast<int>(threadIdx.x);
  if (i >= rows) return;
  shared.lse[i] = problem.lse[int64_t{head} * problem.rows + row + i];
  shared.product[i] = problem.product[int64_t{head} * problem.rows + row + i];
}

template <class T>
__device__ void load_keys(const Problem& problem, ExactPanel<T>& to, int64_t row, int rows,
                          int head) {
  const float* kv = problem.kv + row * problem.kv_row + head * problem.kv_head;
  const float* k_rope = problem.k_rope + row * problem.k_rope_row;
  const int nope = problem.nope;
  load_rows<T>(to.depth, rows, nope + problem.rope, [&](int r, int i) {
    return i < nope ? kv[r * problem.kv_row + i] : k_rope[r * problem.k_rope_row + i - nope];
  });
  load_rows<T>(to.value, rows, problem.value,
               [&](int r, int i) { return kv[r * problem.kv_row + nope + i]; });
}

// ---- Compute ----

// products[i][j] = a[y + 16 i] . b[x + 16 j]
template <class T, int kStride>
__device__ void multiply(float (&products)[T::kRows][T::kRows], const float (&a)[T::kTile][kStride],
                         const float (&b)[T::kTile][kStride], int columns, int x, int y) {
#pragma unroll 2
  for (int k = 0; k < columns; k += 4) {
    float4 own[T::kRows], other[T::kRows];
#pragma unroll
    for (int i = 0; i < T::kRows; i++) {
      own[i] = *reinterpret_cast<const float4*>(&a[y + i * T::kSide][k]);
      other[i] = *reinterpret_cast<const float4*>(&b[x + i * T::kSide][k]);
    }
#pragma unroll
    for (int i = 0; i < T::kRows; i++)
#pragma unroll
      for (int j = 0; j < T::kRows; j++) add_product(products[i][j], own[i], other[j]);
  }
}

// sums[i] += sum over j < count of weights[y + 16 i][j] * b[j]
template <class T, int kColumns>
__device__ void add(ExactSums<T, kColumns>& sums, const float (&weights)[T::kTile][T::kTile + 4],
                    const float (&b)[T::kTile][kColumns + 4], int count, int x, int y) {
  for (int j = 0; j < count; j += 4) {
    float weight[T::kRows][4];
#pragma unroll
    for (int i = 0; i < T::kRows; i++)
      *reinterpret_cast<float4*>(weight[i]) =
          *reinterpret_cast<const float4*>(&weights[y + i * T::kSide][j]);
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int c = 0; c < kColumns / T::kStrip; c++) {
        const float4 value = *reinterpret_cast<const float4*>(&b[j + k][4 * x + c * T::kStrip]);
#pragma unroll
        for (int i = 0; i < T::kRows; i++) add_scaled(sums[i][c], weight[i][k], value);
      }
  }
}

// p and ds of the own rows and a part of the others; 0 where the interval says so.
template <bool kOwnQueries, class T>
__device__ void weigh(const Problem& problem, ExactStorage<T>& shared,
                      const Interval (&seen)[T::kRows], int x, int y) {
  float scores[T::kRows][T::kRows] = {}, products[T::kRows][T::kRows] = {};
  multiply<T>(scores, shared.own.depth, shared.other.depth, problem.nope + problem.rope, x, y);
  multiply<T>(products, shared.own.value, shared.other.value, problem.value, x, y);
#pragma unroll
  for (int i = 0; i < T::kRows; i++)
#pragma unroll
    for (int j = 0; j < T::kRows; j++) {
      const int own = y + i * T::kSide, other = x + j * T::kSide;
      const int query = kOwnQueries ? own : other;
      const bool visible = seen[i].has(other);
      const float p = exp2f(fmaf(scores[i][j], problem.binary_scale, -shared.lse[query]));
      const float ds = problem.scale * p * (products[i][j] - shared.product[query]);
      shared.p[own][other] = visible ? p : 0.0f;
      shared.ds[own][other] = visible ? ds : 0.0f;
    }
}

// ---- Store ----

// Own row's sums; to(i, column): where the four columns from there on begin, column by column.
template <class T, int kColumns, class To>
__device__ void store(const ExactSums<T, kColumns>& sums, int row, int rows, int columns,
                      bool accumulate, int x, int y, const To& to) {
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
    const int own = row + y + i * T::kSide;
    if (own >= rows) continue;
#pragma unroll
    for (int c = 0; c < kColumns / T::kStrip; c++) {
      const float values[4] = {sums[i][c].x, sums[i][c].y, sums[i][c].z, sums[i][c].w};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int column = 4 * x + c * T::kStrip + k;
        if (column < columns) to(own, column, values[k], accumulate);
      }
    }
  }
}

__device__ inline void put(float* to, float value, bool accumulate) {
  *to = accumulate ? *to + value : value;
}

// ---- Kernels ----

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    exact_queries_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ExactStorage<T>*>(shared_bytes);
  const int x = static_cast<int>(threadIdx.x) % T::kSide,
            y = static_cast<int>(threadIdx.x) / T::kSide;
  // Late rows see the most keys: they go first.
  const int row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * T::kTile;
  const int head = static_cast<int>(blockIdx.y);
  ExactSums<T, T::kDepth> sums = {};
  load_queries(problem, shared, shared.own, row, min(T::kTile, problem.rows - row), head);
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run =
        run_of(segment.query_row, segment.query_count, segment.query_position, row, T::kTile);
    if (run.first >= run.end) continue;
    Walk walk = walk_keys(problem.range, segment, run);
    for (Part part; next_part<T::kTile>(walk, segment.key_row, segment.key_position, part);) {
      Interval seen[T::kRows];
      for (int i = 0; i < T::kRows; i++)
        seen[i] = seen_keys(problem.range, run, part, row + y + i * T::kSide);
      __syncthreads();  // nobody reads the part before
      load_keys(problem, shared.other, part.row, part.count, head);
      __syncthreads();
      weigh<true>(problem, shared, seen, x, y);
      __syncthreads();
      add<T, T::kDepth>(sums, shared.ds, shared.other.depth, part.count, x, y);
    }
  }
  float* d_q = problem.d_q + head * problem.d_q_head;
  store<T, T::kDepth>(sums, row, problem.rows, problem.nope + problem.rope, problem.accumulate, x,
                      y, [&](int64_t r, int i, float value, bool accumulate) {
                        put(d_q + r * problem.d_q_row + i, value, accumulate);
                      });
}

template <class T>
__device__ void store_keys(const Problem& problem, const ExactSums<T, T::kDepth>& keys,
                           const ExactSums<T, T::kValue>& values, int row, int head, int x, int y) {
  const int nope = problem.nope, rope = problem.rope;
  float* d_kv = problem.d_kv + head * problem.d_kv_head;
  float* d_k_rope = problem.d_k_rope + int64_t{head} * problem.keys * rope;
  store<T, T::kDepth>(keys, row, problem.keys, nope + rope, problem.accumulate, x, y,
                      [&](int64_t r, int i, float value, bool accumulate) {
                        if (i < nope)
                          put(d_kv + r * problem.d_kv_row + i, value, accumulate);
                        else
                          d_k_rope[r * rope + i - nope] = value;
                      });
  store<T, T::kValue>(values, row, problem.keys, problem.value, problem.accumulate, x, y,
                      [&](int64_t r, int i, float value, bool accumulate) {
                        put(d_kv + r * problem.d_kv_row + nope + i, value, accumulate);
                      });
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    exact_keys_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ExactStorage<T>*>(shared_bytes);
  const int x = static_cast<int>(threadIdx.x) % T::kSide,
            y = static_cast<int>(threadIdx.x) / T::kSide;
  const int row = static_cast<int>(blockIdx.x) * T::kTile, head = static_cast<int>(blockIdx.y);
  ExactSums<T, T::kDepth> keys = {};
  ExactSums<T, T::kValue> values = {};
  load_keys(problem, shared.own, row, min(T::kTile, problem.keys - row), head);
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment segment = read_segment(problem, s);
    const Run run = run_of(segment.key_row, segment.key_count, segment.key_position, row, T::kTile);
    if (run.first >= run.end) continue;
    Walk walk = walk_queries(problem.range, segment, run);
    for (Part part; next_part<T::kTile>(walk, segment.query_row, segment.query_position, part);) {
      Interval seen[T::kRows];
      for (int i = 0; i < T::kRows; i++)
        seen[i] = seen_queries(problem.range, run, part, row + y + i * T::kSide);
      __syncthreads();  // nobody reads the part before
      load_queries(problem, shared, shared.other, part.row, part.count, head);
      __syncthreads();
      weigh<false>(problem, shared, seen, x, y);
      __syncthreads();
      add<T, T::kDepth>(keys, shared.ds, shared.other.depth, part.count, x, y);
      add<T, T::kValue>(values, shared.p, shared.other.value, part.count, x, y);
    }
  }
  store_keys<T>(problem, keys, values, row, head, x, y);
}

// ---- Launch ----

template <int kDepth, int kValue>
void launch_exact_kernels(const Problem& problem, cudaStream_t stream) {
  using T = ExactTraits<kDepth, kValue>;
  constexpr size_t kBytes = sizeof(ExactStorage<T>);
  allow_shared_memory<exact_queries_kernel<T>>(kBytes);
  allow_shared_memory<exact_keys_kernel<T>>(kBytes);
  const auto grid = [&](int32_t rows) {
    return dim3(static_cast<unsigned>(ceil_div(rows, T::kTile)), problem.heads);
  };
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
  const int depth = problem.nope + problem.rope, value = problem.value;
  attention::launch_row_terms(params, problem, stream.handle());
  if (depth <= 64 && value <= 64)
    attention::launch_exact_kernels<64, 64>(problem, stream.handle());
  else if (depth <= 128 && value <= 128)
    attention::launch_exact_kernels<128, 128>(problem, stream.handle());
  else if (depth <= 192 && value <= 128)
    attention::launch_exact_kernels<192, 128>(problem, stream.handle());
  else if (depth <= 256 && value <= 256)
    attention::launch_exact_kernels<256, 256>(problem, stream.handle());
  else
    fail(code::kInternal, "attention_backward: no kernel for q ", params.q, " and out ",
         params.out);
  attention::launch_sum_heads(params, problem, stream.handle());
}

}  // namespace loza::cuda
