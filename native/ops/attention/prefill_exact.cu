// Expanded attention of f32 activations in fp32 arithmetic: flash attention on the tiles of
// exact_panel.cuh. Grid: (tiles of kTile query rows, heads). A CTA treats the runs of segments that its
// rows belong to one after the other; rows of other runs see no key meanwhile, so that a run's values
// never enter another's results. Key parts lie at absolute positions: a row's bits do not depend on its
// neighbours.
#include "cuda/cuda_ops.h"
#include "ops/attention/exact_panel.cuh"
#include "ops/attention/walk.cuh"

namespace loza::cuda {
namespace attention {
namespace {

// Strides are in elements; the last dimension of everything is contiguous.
struct ExactProblem {
  float* out;               // [rows, heads, value]
  float* lse;               // [rows, heads]
  const float* q;           // [rows, heads, nope + rope]
  const float* kv;          // [keys, heads, nope + value]
  const float* k_rope;      // [keys, rope]
  const int32_t* segments;  // [segment_count, 6]
  int64_t out_row, out_head, lse_row, lse_head, q_row, q_head, kv_row, kv_head, k_rope_row,
      segments_row;
  int64_t keys;
  int32_t rows, heads, segment_count, nope, rope, value;
  float scale;
  KeyRange range;
  bool vector;  // everything lies on 16-byte chunks
};

template <class T>
struct ExactPrefillStorage {
  ExactRows<T, T::kDepth> q;
  ExactPanel<T> keys;
  ExactRows<T, T::kTile> weights;
};

// What each of a thread's rows has summed up; the 16 threads of a row agree on the first two.
template <class T>
struct ExactState {
  float highest[T::kRows], total[T::kRows] = {};
  ExactSums<T, T::kValue> sums = {};

  __device__ ExactState() {
#pragma unroll
    for (float& value : highest) value = negative_infinity();
  }
};

// Over the 16 threads that share a row.
__device__ inline float row_max(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}
__device__ inline float row_sum(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

template <class T>
__device__ void load_keys(const ExactProblem& problem, ExactPanel<T>& to, const Part& part,
                          int head) {
  const float* kv = problem.kv + part.row * problem.kv_row + head * problem.kv_head;
  const float* k_rope = problem.k_rope + part.row * problem.k_rope_row;
  const int nope = problem.nope;
  load_rows<T>(to.depth, part.count, nope + problem.rope, problem.vector, [&](int r, int i) {
    return i < nope ? kv + r * problem.kv_row + i : k_rope + r * problem.k_rope_row + (i - nope);
  });
  load_rows<T>(to.value, part.count, problem.value, problem.vector,
               [&](int r, int i) { return kv + r * problem.kv_row + nope + i; });
}

// Writes the weights of a part and rescales what the rows have summed up so far.
template <class T>
__device__ void weigh(const ExactProblem& problem, ExactPrefillStorage<T>& shared,
                      ExactState<T>& state, const Interval (&seen)[T::kRows],
                      const ExactPlace& at) {
  ExactProducts<T> scores = {};
  multiply<T>(scores, shared.q, shared.keys.depth, problem.nope + problem.rope, at);
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
    float best = negative_infinity();
#pragma unroll
    for (int j = 0; j < T::kRows; j++) {
      if (!seen[i].has(at.x + j * T::kSide)) scores[i][j] = negative_infinity();
      best = fmaxf(best, scores[i][j]);
    }
    const float highest = fmaxf(state.highest[i], row_max(best) * problem.scale);
    // A row that has seen nothing yet must not subtract infinities.
    const float base = highest == negative_infinity() ? 0.0f : highest;
    const float shrink = expf(state.highest[i] - base);
    float total = 0;
#pragma unroll
    for (int j = 0; j < T::kRows; j++) {
      const float weight = expf(fmaf(scores[i][j], problem.scale, -base));
      shared.weights[at.y + i * T::kSide][at.x + j * T::kSide] = weight;
      total += weight;
    }
    state.highest[i] = highest;
    state.total[i] = state.total[i] * shrink + row_sum(total);
#pragma unroll
    for (float4& sum : state.sums[i])
      sum.x *= shrink, sum.y *= shrink, sum.z *= shrink, sum.w *= shrink;
  }
}

template <class T>
__device__ void attend(const ExactProblem& problem, ExactPrefillStorage<T>& shared,
                       ExactState<T>& state, const Segment& segment, const Run& run, int tile,
                       int head, const ExactPlace& at) {
  Walk walk = walk_keys(problem.range, segment, run);
  for (Part part; next_part<T::kTile>(walk, segment.key_row, segment.key_position, part);) {
    Interval seen[T::kRows];
    for (int i = 0; i < T::kRows; i++)
      seen[i] = seen_keys(problem.range, run, part, tile + at.y + i * T::kSide);
    __syncthreads();  // nobody reads the part before
    load_keys(problem, shared.keys, part, head);
    wait_for_copies();
    __syncthreads();
    weigh(problem, shared, state, seen, at);
    __syncthreads();
    add<T, T::kValue>(state.sums, shared.weights, shared.keys.value, part.count, at);
  }
}

// Merges by log-sum-exp; an old lse of -inf says that `out` holds nothing, maybe NaN. A row that saw
// no key stays as it was.
template <class T>
__device__ void merge(const ExactProblem& problem, const ExactState<T>& state, int tile, int head,
                      const ExactPlace& at) {
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
    const int64_t row = tile + at.y + i * T::kSide;
    const bool found_any = state.highest[i] != negative_infinity() || state.total[i] != 0;
    float* lse = problem.lse + row * problem.lse_row + head * problem.lse_head;
    const float old = found_any ? *lse : 0.0f;
    __syncwarp();  // everybody has read what one thread overwrites
    if (!found_any) continue;
    const float found = state.highest[i] + logf(state.total[i]);
    const bool first = old == negative_infinity();
    const float highest = fmaxf(found, old);
    const float new_part = expf(found - highest), old_part = first ? 0.0f : expf(old - highest);
    const float share = first ? 1.0f : new_part / (old_part + new_part);
    float* out = problem.out + row * problem.out_row + head * problem.out_head;
    for_each_sum<T, T::kValue>(state.sums, i, problem.value, at, [&](int column, float sum) {
      const float value = sum / state.total[i];
      out[column] = first ? value : out[column] + (value - out[column]) * share;
    });
    if (at.x == 0) *lse = first ? found : highest + logf(old_part + new_part);
  }
}

// Whether an earlier segment has the same run of queries, which then has been treated.
__device__ inline bool is_repeated(const ExactProblem& problem, const Segment& segment, int index) {
  for (int i = 0; i < index; i++) {
    const Segment other = read_segment(problem, i);
    if (other.query_count > 0 && other.query_row == segment.query_row) return true;
  }
  return false;
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    exact_prefill_kernel(const __grid_constant__ ExactProblem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ExactPrefillStorage<T>*>(shared_bytes);
  const ExactPlace at;
  // Late rows see the most keys: they go first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x) * T::kTile;
  const int head = static_cast<int>(blockIdx.y);
  const float* q = problem.q + tile * problem.q_row + head * problem.q_head;
  load_rows<T>(shared.q, min(T::kTile, problem.rows - tile), problem.nope + problem.rope,
               problem.vector, [&](int r, int i) { return q + r * problem.q_row + i; });
  for (int s = 0; s < problem.segment_count; s++) {
    const Segment first = read_segment(problem, s);
    const Run run = run_of(first.query_row, first.query_count, 0, tile, T::kTile);
    if (run.first >= run.end || is_repeated(problem, first, s)) continue;
    ExactState<T> state;
    for (int i = s; i < problem.segment_count; i++) {
      const Segment segment = read_segment(problem, i);
      if (segment.query_count == 0 || segment.query_row != first.query_row) continue;
      const Run placed =
          run_of(segment.query_row, segment.query_count, segment.query_position, tile, T::kTile);
      attend(problem, shared, state, segment, placed, tile, head, at);
    }
    merge(problem, state, tile, head, at);
  }
  wait_for_copies();  // of the queries, where no key was seen
}

ExactProblem describe_exact(const AttentionPrefillParams& p) {
  const auto rope = static_cast<int32_t>(p.k_rope.dim(1));
  const auto nope = static_cast<int32_t>(p.q.dim(2)) - rope;
  const auto value = static_cast<int32_t>(p.out.dim(2));
  const auto whole = [](int32_t size) { return size % 4 == 0; };
  return {.out = p.out.as<float>(),
          .lse = p.lse.as<float>(),
          .q = p.q.as<const float>(),
          .kv = p.kv.as<const float>(),
          .k_rope = p.k_rope.as<const float>(),
          .segments = p.segments.as<const int32_t>(),
          .out_row = p.out.stride(0),
          .out_head = p.out.stride(1),
          .lse_row = p.lse.stride(0),
          .lse_head = p.lse.stride(1),
          .q_row = p.q.stride(0),
          .q_head = p.q.stride(1),
          .kv_row = p.kv.stride(0),
          .kv_head = p.kv.stride(1),
          .k_rope_row = p.k_rope.stride(0),
          .segments_row = p.segments.stride(0),
          .keys = p.kv.dim(0),
          .rows = static_cast<int32_t>(p.q.dim(0)),
          .heads = static_cast<int32_t>(p.q.dim(1)),
          .segment_count = static_cast<int32_t>(p.segments.dim(0)),
          .nope = nope,
          .rope = rope,
          .value = value,
          .scale = p.softmax_scale,
          .range = p.range,
          .vector = on_chunks(p.q) && on_chunks(p.kv) && on_chunks(p.k_rope) && whole(nope) &&
                    whole(rope) && whole(value)};
}

template <class T>
void launch_exact_prefill(const ExactProblem& problem, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(ExactPrefillStorage<T>);
  allow_shared_memory<exact_prefill_kernel<T>>(kBytes);
  const dim3 grid((problem.rows + T::kTile - 1) / T::kTile, problem.heads);
  exact_prefill_kernel<T><<<grid, T::kThreads, kBytes, stream>>>(problem);
  check_launch("attention_prefill");
}

}  // namespace
}  // namespace attention

void launch_exact(const AttentionPrefillParams& params, CudaStream& stream) {
  const attention::ExactProblem problem = attention::describe_exact(params);
  if (params.out.elements() == 0 || problem.segment_count == 0 || problem.keys == 0) return;
  const bool found =
      attention::with_exact_traits(problem.nope + problem.rope, problem.value, [&](auto traits) {
        attention::launch_exact_prefill<decltype(traits)>(problem, stream.handle());
      });
  loza::check(found, "attention_prefill: no kernel for q ", params.q, " and out ", params.out);
}

}  // namespace loza::cuda
