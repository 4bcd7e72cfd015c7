// What both kernels of expanded attention read: the tensors by pointer and the segments table.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/attention/attention.h"
#include "ops/attention/key_range.h"

namespace loza::cuda::attention {

// Strides are in elements; the last dimension of everything is contiguous.
struct PrefillProblem {
  void* out;                    // f32 (merged into) or bf16 (overwritten) [rows, heads, value]
  float* lse;                   // [rows, heads]
  const __nv_bfloat16* q;       // [rows, heads, nope + rope]
  const __nv_bfloat16* kv;      // [keys, heads, nope + value]
  const __nv_bfloat16* k_rope;  // [keys, rope]
  const int32_t* segments;      // [segment_count, 6]
  int64_t out_row, out_head, lse_row, lse_head, q_row, q_head, kv_row, kv_head, k_rope_row,
      segments_row;
  int64_t keys;
  int32_t rows, heads, segment_count, nope, rope, value;
  float scale;  // softmax_scale log2(e): exponentials are powers of two
  KeyRange range;
  bool merges;  // out is f32
  bool vector;  // everything lies on 16-byte chunks

  template <class Out>
  __device__ Out* out_at(int64_t row, int32_t head) const {
    return static_cast<Out*>(out) + row * out_row + head * out_head;
  }
};

// Whether every row of the tensor begins on a 16-byte chunk.
inline bool on_chunks(const Tensor& tensor) {
  const int64_t chunk = 16 / size_of(tensor.dtype);
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  for (int i = 0; i + 1 < tensor.rank; i++)
    aligned = aligned && (tensor.dim(i) <= 1 || tensor.stride(i) % chunk == 0);
  return aligned;
}

inline PrefillProblem describe(const AttentionPrefillParams& params) {
  constexpr float kLog2OfE = 1.4426950408889634f;
  using bf16 = __nv_bfloat16;
  const Tensor &out = params.out, &lse = params.lse, &q = params.q, &kv = params.kv;
  const auto rope = static_cast<int32_t>(params.k_rope.dim(1));
  PrefillProblem problem{};
  problem.out = out.data, problem.out_row = out.stride(0), problem.out_head = out.stride(1);
  problem.lse = lse.as<float>(), problem.lse_row = lse.stride(0), problem.lse_head = lse.stride(1);
  problem.q = q.as<bf16>(), problem.q_row = q.stride(0), problem.q_head = q.stride(1);
  problem.kv = kv.as<bf16>(), problem.kv_row = kv.stride(0), problem.kv_head = kv.stride(1);
  problem.k_rope = params.k_rope.as<bf16>(), problem.k_rope_row = params.k_rope.stride(0);
  problem.segments = params.segments.as<int32_t>();
  problem.segments_row = params.segments.stride(0);
  problem.keys = kv.dim(0);
  problem.rows = static_cast<int32_t>(q.dim(0));
  problem.heads = static_cast<int32_t>(q.dim(1));
  problem.segment_count = static_cast<int32_t>(params.segments.dim(0));
  problem.nope = static_cast<int32_t>(q.dim(2)) - rope;
  problem.rope = rope;
  problem.value = static_cast<int32_t>(out.dim(2));
  problem.scale = params.softmax_scale * kLog2OfE;
  problem.range = params.range;
  problem.merges = out.dtype == DType::kF32;
  const auto whole = [](int32_t size) { return size % 8 == 0; };
  problem.vector = on_chunks(q) && on_chunks(kv) && on_chunks(params.k_rope) &&
                   whole(problem.nope) && whole(rope) && whole(problem.value);
  return problem;
}

struct Segment {
  int32_t query_row, query_count, query_position, key_row, key_count, key_position;
};

// A segment that points outside the tensors reads as one without rows.
template <class Problem>
__device__ inline Segment read_segment(const Problem& problem, int index) {
  const int32_t* f = problem.segments + index * problem.segments_row;
  Segment s{f[0], f[1], f[2], f[3], f[4], f[5]};
  const bool valid = s.query_row >= 0 && s.query_count > 0 && s.query_position >= 0 &&
                     int64_t{s.query_row} + s.query_count <= problem.rows && s.key_row >= 0 &&
                     s.key_count > 0 && s.key_position >= 0 &&
                     int64_t{s.key_row} + s.key_count <= problem.keys &&
                     int64_t{s.query_position} + s.query_count <= INT32_MAX - kBlockTokens &&
                     int64_t{s.key_position} + s.key_count <= INT32_MAX - kBlockTokens;
  if (!valid) s.query_count = s.key_count = 0;
  return s;
}

}  // namespace loza::cuda::attention
