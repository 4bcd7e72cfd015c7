// Expanded attention of f32 activations: a CTA a query row and head goes through the segments that the
// row belongs to, kTile keys at a time, and merges the result by log-sum-exp. See exact.cuh.
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "ops/attention/exact.cuh"

namespace loza::cuda {
namespace exact {
namespace {

// Strides are in elements; the last dimension of everything is contiguous.
struct PrefillParams {
  float* out;               // [rows, heads, value]
  float* lse;               // [rows, heads]
  const float* q;           // [rows, heads, nope + rope]
  const float* kv;          // [keys, heads, nope + value]
  const float* k_rope;      // [keys, rope]
  const int32_t* segments;  // [segments, 6]
  int64_t out_row, out_head, lse_row, q_row, q_head, kv_row, kv_head, k_rope_row, segments_row;
  int segment_count, nope, rope, value;
  float scale;
  KeyRange range;
};

// What a query row sees of a segment: keys from `first` on, at positions from `position` on.
struct Keys {
  int64_t first;
  int position, count;
};

__device__ inline void attend_keys(Softmax& softmax, const Storage& shared,
                                   const PrefillParams& params, const Keys& keys,
                                   int query_position) {
  const float* kv = params.kv + keys.first * params.kv_row + blockIdx.y * params.kv_head;
  const float* k_rope = params.k_rope + keys.first * params.k_rope_row;
  for (int begin = 0; begin < keys.count; begin += kTile) {
    attend(
        softmax, shared, min(kTile, keys.count - begin), params.value,
        [&](int j) {
          const int64_t key = begin + j;
          if (!params.range.allows(query_position, keys.position + begin + j))
            return negative_infinity();
          const float nope = dot_part(shared.query, kv + key * params.kv_row, params.nope);
          const float rope =
              dot_part(shared.query + params.nope, k_rope + key * params.k_rope_row, params.rope);
          return params.scale * warp_sum(nope + rope);
        },
        [&](int j, int i) { return kv[(begin + j) * params.kv_row + params.nope + i]; });
  }
}

// out and lse hold what earlier rounds found; lse -infinity: nothing.
__device__ inline void merge(const Softmax& softmax, const Storage& shared,
                             const PrefillParams& params) {
  const int64_t row = blockIdx.x, head = blockIdx.y;
  float* lse = params.lse + row * params.lse_row + head;
  const float found = softmax.highest + logf(softmax.total), old = *lse;
  const bool first = old == negative_infinity();
  const float highest = fmaxf(found, old);
  const float new_part = expf(found - highest), old_part = first ? 0.0f : expf(old - highest);
  const float share = first ? 1.0f : new_part / (old_part + new_part);
  float* out = params.out + row * params.out_row + head * params.out_head;
  for (int i = static_cast<int>(threadIdx.x); i < params.value; i += kThreads) {
    const float value = shared.sums[i] / softmax.total;
    out[i] = first ? value : out[i] + (value - out[i]) * share;
  }
  __syncthreads();  // everybody has read what one thread overwrites
  if (threadIdx.x == 0) *lse = first ? found : highest + logf(old_part + new_part);
}

// Grid: x = query rows, y = heads.
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ float memory[];
  const int depth = params.nope + params.rope, thread = static_cast<int>(threadIdx.x);
  const Storage shared(memory, depth, params.value);
  const int row = static_cast<int>(blockIdx.x);
  const float* q = params.q + row * params.q_row + blockIdx.y * params.q_head;
  for (int i = thread; i < depth; i += kThreads) shared.query[i] = q[i];
  for (int i = thread; i < params.value; i += kThreads) shared.sums[i] = 0;
  __syncthreads();
  Softmax softmax;
  for (int i = 0; i < params.segment_count; i++) {
    const int32_t* segment = params.segments + i * params.segments_row;
    const int at = row - segment[0];  // in the segment's run of queries
    if (at < 0 || at >= segment[1]) continue;
    const Keys keys{segment[3], segment[5], segment[4]};
    attend_keys(softmax, shared, params, keys, segment[2] + at);
  }
  // A row that sees no key stays as it was.
  if (softmax.highest != negative_infinity() || softmax.total != 0) merge(softmax, shared, params);
}

}  // namespace
}  // namespace exact

void launch_exact(const AttentionPrefillParams& params, CudaStream& stream) {
  const Tensor &out = params.out, &lse = params.lse, &q = params.q, &kv = params.kv;
  const Tensor &k_rope = params.k_rope, &segments = params.segments;
  if (out.elements() == 0 || segments.dim(0) == 0 || kv.dim(0) == 0) return;
  const auto rope = static_cast<int>(k_rope.dim(1));
  const exact::PrefillParams prefill{.out = out.as<float>(),
                                     .lse = lse.as<float>(),
                                     .q = q.as<const float>(),
                                     .kv = kv.as<const float>(),
                                     .k_rope = k_rope.as<const float>(),
                                     .segments = segments.as<const int32_t>(),
                                     .out_row = out.stride(0),
                                     .out_head = out.stride(1),
                                     .lse_row = lse.stride(0),
                                     .q_row = q.stride(0),
                                     .q_head = q.stride(1),
                                     .kv_row = kv.stride(0),
                                     .kv_head = kv.stride(1),
                                     .k_rope_row = k_rope.stride(0),
                                     .segments_row = segments.stride(0),
                                     .segment_count = static_cast<int>(segments.dim(0)),
                                     .nope = static_cast<int>(q.dim(2)) - rope,
                                     .rope = rope,
                                     .value = static_cast<int>(out.dim(2)),
                                     .scale = params.softmax_scale,
                                     .range = params.range};
  const size_t bytes = exact::Storage::bytes(q.dim(2), out.dim(2));
  loza::check(bytes <= 48 * 1024, "attention_prefill: no kernel for q ", q, " and out ", out);
  const dim3 grid(static_cast<unsigned>(q.dim(0)), static_cast<unsigned>(q.dim(1)));
  exact::prefill_kernel<<<grid, exact::kThreads, bytes, stream.handle()>>>(prefill);
  check_launch("attention_prefill");
}

}  // namespace loza::cuda
