// What both kernels of attention's reverse mode read, and how they walk: a CTA owns a tile of query
// rows (or of key rows) of one head, and tiles of keys (of queries) pass by.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/types.cuh"
#include "ops/attention/walk.cuh"
#include "ops/attention_backward/attention_backward.h"

namespace loza::cuda::attention {

// Strides are in elements; the last dimension of everything is contiguous.
template <class Act>
struct BackwardProblem {
  Act* d_q;                 // [rows, heads, nope + rope]
  Act* d_kv;                // [keys, heads, nope + value]
  const Act* q;             // [rows, heads, nope + rope]
  const Act* kv;            // [keys, heads, nope + value]
  const Act* k_rope;        // [keys, rope]
  const Act* d_out;         // [rows, heads, value]
  const int32_t* segments;  // [segment_count, 6]
  float* lse;               // [heads, rows], in powers of two; scratch, as the next two
  float* product;           // [heads, rows]: d_out . out
  float* d_k_rope;          // [heads, keys, rope], each head's part
  int64_t d_q_row, d_q_head, d_kv_row, d_kv_head, q_row, q_head, kv_row, kv_head, k_rope_row,
      d_out_row, d_out_head, segments_row;
  int32_t rows, keys, heads, segment_count, nope, rope, value;
  float scale;         // softmax_scale
  float binary_scale;  // softmax_scale log2(e): exponentials are powers of two
  KeyRange range;
  bool accumulate;
  bool vector;  // everything lies on 16-byte chunks
};

// The queries that see the key at `position` end here.
__device__ inline int64_t end_of_queries(const KeyRange& range, int64_t position) {
  const int64_t block = position / kBlockTokens;
  return block < range.sink_blocks ? INT64_MAX : (block + range.local_blocks) * kBlockTokens;
}

// The queries that see keys of the run: all between the first that does and the last.
__device__ inline Walk walk_queries(const KeyRange& range, const Segment& segment, const Run& run) {
  const int64_t first = run.first + run.shift, last = run.end - 1 + run.shift;
  const int64_t end = max(end_of_queries(range, first), end_of_queries(range, last));
  return {max(first, int64_t{segment.query_position}),
          min(int64_t{segment.query_position} + segment.query_count, end), 0, 0};
}

// What a key of the run sees of a part of the queries; `row` may lie outside the run.
__device__ inline Interval seen_queries(const KeyRange& range, const Run& run, const Part& part,
                                        int32_t row) {
  if (row < run.first || row >= run.end) return {0, 0};
  const int64_t key = row + run.shift, end = part.position + part.count;
  const int64_t from = min(max(key, part.position), end);
  const int64_t to = min(max(end_of_queries(range, key), part.position), end);
  return {static_cast<int32_t>(from - part.position), static_cast<int32_t>(to - part.position)};
}

// ---- Before and after -----------------------------------------------------------------------------

inline constexpr int kRowThreads = 256;

// d_out . out and the log-sum-exp in powers of two: a warp a row and head. Grid: x = warps.
template <class Act, class Out>
__global__ void __launch_bounds__(kRowThreads)
    row_terms_kernel(const __grid_constant__ BackwardProblem<Act> problem, const Out* out,
                     int64_t out_row, int64_t out_head, const float* lse, int64_t lse_row,
                     int64_t lse_head) {
  constexpr float kLog2OfE = 1.4426950408889634f;
  const int64_t item = (int64_t{blockIdx.x} * kRowThreads + threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (item >= int64_t{problem.rows} * problem.heads) return;
  const int64_t row = item / problem.heads, head = item % problem.heads;
  const Act* d_out = problem.d_out + row * problem.d_out_row + head * problem.d_out_head;
  const Out* o = out + row * out_row + head * out_head;
  float sum = 0;
  for (int i = lane; i < problem.value; i += kWarpSize)
    sum = fmaf(widen(d_out[i]), widen(o[i]), sum);
  sum = warp_sum(sum);
  if (lane != 0) return;
  problem.product[head * problem.rows + row] = sum;
  problem.lse[head * problem.rows + row] = lse[row * lse_row + head * lse_head] * kLog2OfE;
}

// d_k_rope = the sum of its heads' parts, in their order. A thread a value.
template <class Act, class Out>
__global__ void __launch_bounds__(kRowThreads)
    sum_heads_kernel(const __grid_constant__ BackwardProblem<Act> problem, Out* d_k_rope,
                     int64_t row_stride) {
  const int64_t values = int64_t{problem.keys} * problem.rope;
  const int64_t item = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (item >= values) return;
  Out* to = d_k_rope + item / problem.rope * row_stride + item % problem.rope;
  float sum = 0;
  for (int head = 0; head < problem.heads; head++) sum += problem.d_k_rope[head * values + item];
  *to = narrow<Out>(problem.accumulate ? widen(*to) + sum : sum);
}

// ---- Host -----------------------------------------------------------------------------------------

template <class Act>
BackwardProblem<Act> describe_backward(const AttentionBackwardParams& p, CudaStream& stream) {
  const auto rope = static_cast<int32_t>(p.k_rope.dim(1));
  BackwardProblem<Act> problem{};
  problem.d_q = p.d_q.as<Act>(), problem.d_q_row = p.d_q.stride(0);
  problem.d_q_head = p.d_q.stride(1);
  problem.d_kv = p.d_kv.as<Act>(), problem.d_kv_row = p.d_kv.stride(0);
  problem.d_kv_head = p.d_kv.stride(1);
  problem.q = p.q.as<Act>(), problem.q_row = p.q.stride(0), problem.q_head = p.q.stride(1);
  problem.kv = p.kv.as<Act>(), problem.kv_row = p.kv.stride(0), problem.kv_head = p.kv.stride(1);
  problem.k_rope = p.k_rope.as<Act>(), problem.k_rope_row = p.k_rope.stride(0);
  problem.d_out = p.d_out.as<Act>(), problem.d_out_row = p.d_out.stride(0);
  problem.d_out_head = p.d_out.stride(1);
  problem.segments = p.segments.as<int32_t>(), problem.segments_row = p.segments.stride(0);
  problem.rows = static_cast<int32_t>(p.q.dim(0)), problem.keys = static_cast<int32_t>(p.kv.dim(0));
  problem.heads = static_cast<int32_t>(p.q.dim(1));
  problem.segment_count = static_cast<int32_t>(p.segments.dim(0));
  problem.nope = static_cast<int32_t>(p.q.dim(2)) - rope, problem.rope = rope;
  problem.value = static_cast<int32_t>(p.d_out.dim(2));
  problem.scale = p.softmax_scale, problem.binary_scale = p.softmax_scale * 1.4426950408889634f;
  problem.range = p.range, problem.accumulate = p.accumulate;
  const auto whole = [](int32_t size) { return size % 8 == 0; };
  problem.vector = on_chunks(p.q) && on_chunks(p.kv) && on_chunks(p.k_rope) && on_chunks(p.d_out) &&
                   whole(problem.nope) && whole(rope) && whole(problem.value);
  const int64_t terms = int64_t{problem.rows} * problem.heads;
  const int64_t parts = int64_t{problem.keys} * problem.heads * rope;
  problem.lse = reinterpret_cast<float*>(stream.scratch((2 * terms + parts) * sizeof(float)));
  problem.product = problem.lse + terms, problem.d_k_rope = problem.product + terms;
  return problem;
}

template <class Act>
void launch_row_terms(const AttentionBackwardParams& params, const BackwardProblem<Act>& problem,
                      cudaStream_t stream) {
  const int64_t warps = int64_t{problem.rows} * problem.heads;
  if (warps == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div(warps * kWarpSize, kRowThreads));
  const Tensor &out = params.out, &lse = params.lse;
  with_float_type(out.dtype, [&]<class Out>(Out) {
    row_terms_kernel<Act, Out><<<blocks, kRowThreads, 0, stream>>>(
        problem, out.as<const Out>(), out.stride(0), out.stride(1), lse.as<const float>(),
        lse.stride(0), lse.stride(1));
  });
  check_launch("attention_backward");
}

template <class Act>
void launch_sum_heads(const AttentionBackwardParams& params, const BackwardProblem<Act>& problem,
                      cudaStream_t stream) {
  const Tensor& d_k_rope = params.d_k_rope;
  if (d_k_rope.elements() == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div(d_k_rope.elements(), kRowThreads));
  with_float_type(d_k_rope.dtype, [&]<class Out>(Out) {
    sum_heads_kernel<Act, Out>
        <<<blocks, kRowThreads, 0, stream>>>(problem, d_k_rope.as<Out>(), d_k_rope.stride(0));
  });
  check_launch("attention_backward");
}

}  // namespace loza::cuda::attention
