// Absorbed attention on CUDA over the paged latent cache.
//
//   out[t, h] = softmax_j(scale q[t, h] . cache[slot(j)]) cache[slot(j)][:latent]
//   lse[t, h] = log sum_j exp(scale q[t, h] . cache[slot(j)])
//   q [rows, heads, latent + rope], out [rows, heads, latent] bf16; cache [slots, latent + rope]
//
// latent 512, rope 64, bf16 cache: decode_tensor.cuh and decode_values.cuh. Grid: one persistent CTA
// an SM with an equal part of all visible keys, and a second kernel that merges; where a sequence
// shows few keys, a cluster a unit (decode_plan.cuh) and no second kernel.
// Everything else: decode_simple.cuh.
//
// The device cannot fail a stream: rows whose table or sequence is broken become NaN.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "ops/attention/decode_shape.h"
#include "ops/attention/decode_simple.cuh"
#include "ops/attention/decode_values.cuh"

namespace loza::cuda {
namespace attention {
namespace {

// Rows that see nothing: padding becomes zeros, rows of no sequence NaN. By the values warpgroups,
// which have to wait anyway.
template <class Traits>
__device__ void store_nothing(const DecodeProblem& problem, const DecodeLaunch& launch, int warp) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int begin = problem.query_starts[0];
  const int end = problem.query_starts[problem.sequences * problem.starts_step];
  const int step = static_cast<int>(gridDim.x) * 8;
  for (int row = static_cast<int>(blockIdx.x) * 8 + warp; row < problem.rows; row += step) {
    const bool padding = problem.positions[row * problem.positions_step] < 0;
    if (!padding && row >= begin && row < end) continue;
    const int first = row * problem.heads;
    const bf16 value = __float2bfloat16(padding ? 0.0f : not_a_number());
    for (int i = lane; i < problem.heads * Traits::kLatent; i += kLanes)
      problem.out[int64_t{first} * Traits::kLatent + i] = value;
    for (int head = lane; head < problem.heads; head += kLanes) {
      if (problem.lse != nullptr)
        problem.lse[first + head] = padding ? negative_infinity() : not_a_number();
      if (launch.parts > 0) launch.scratch.splits[first + head] = {0, 0, 0};
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeProblem problem,
                  const __grid_constant__ DecodeLaunch launch,
                  const __grid_constant__ TensorMap q_map,
                  const __grid_constant__ TensorMap k_map) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<DecodeStorage<Traits>*>(shared_bytes);
  // Uniform, as the compiler sees it: matrix instructions must not be in a divergent path.
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kLanes, 0);
  if (threadIdx.x == 0) init_barriers(shared);
  if (threadIdx.x < Traits::kRows) shared.highest[threadIdx.x] = negative_infinity();
  __syncthreads();
  launch_dependents();
  if (warp >= 12) {
    release_registers<56>();
    if (warp == 12) produce(problem, launch, shared, {&q_map, &k_map});
  } else if (warp >= 4) {
    claim_registers<168>();
    store_nothing<Traits>(problem, launch, warp - 4);
    sum_values(problem, launch, shared);
    if (launch.parts == 0) merge_cluster(problem, launch, shared);
  } else {
    release_registers<120>();
    make_scores(problem, shared);
    if (launch.parts == 0) merge_cluster(problem, launch, shared);
  }
}

// Merges the partial results of one (row, head) and 128 latent columns: by a warp, or by eight that
// take equal runs of the splits.
template <class Traits, int kSplitWarps>
__global__ void __launch_bounds__(256) merge_kernel(const __grid_constant__ DecodeProblem problem,
                                                    const __grid_constant__ DecodeScratch scratch) {
  __shared__ float4 exchange[kSplitWarps][kLanes];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int task = kSplitWarps == 1 ? static_cast<int>(blockIdx.x) * 8 + warp : blockIdx.x;
  const int flat = task / 4, column = task % 4 * 128 + lane * 4;
  wait_for_prerequisites();
  if (flat >= problem.rows * problem.heads) return;
  const Splits splits = scratch.splits[flat];
  if (splits.count <= 1) return;
  const auto* stats = reinterpret_cast<const float2*>(scratch.stats) + splits.row;
  const float* sums = scratch.sums + splits.row * Traits::kLatent + column;
  float best = negative_infinity(), total = 0;
  for (int s = lane; s < splits.count; s += kLanes)
    best = fmaxf(best, stats[splits.slot(s) * Traits::kRows].x);
  best = warp_max(best);
  if (best == negative_infinity()) return;  // padding
  for (int s = lane; s < splits.count; s += kLanes) {
    const float2 own = stats[splits.slot(s) * Traits::kRows];
    total += exp2_fast(own.x - best) * own.y;
  }
  total = warp_sum(total);
  const int run = (splits.count + kSplitWarps - 1) / kSplitWarps;
  const int first = kSplitWarps == 1 ? 0 : warp * run, end = min(splits.count, first + run);
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int s = first; s < end; s++) {
    const int64_t slot = splits.slot(s) * Traits::kRows;
    const float weight = exp2_fast(stats[slot].x - best);
    const float4 own = *reinterpret_cast<const float4*>(sums + slot * Traits::kLatent);
    sum.x += own.x * weight, sum.y += own.y * weight;
    sum.z += own.z * weight, sum.w += own.w * weight;
  }
  if constexpr (kSplitWarps > 1) {
    exchange[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
    for (int w = 1; w < kSplitWarps; w++) {
      const float4 own = exchange[w][lane];
      sum.x += own.x, sum.y += own.y, sum.z += own.z, sum.w += own.w;
    }
  }
  const float inverse = 1 / total;
  *reinterpret_cast<uint2*>(problem.out + int64_t{flat} * Traits::kLatent + column) =
      make_uint2(pack(sum.x * inverse, sum.y * inverse), pack(sum.z * inverse, sum.w * inverse));
  if (problem.lse != nullptr && task % 4 == 0 && lane == 0)
    problem.lse[flat] = log_sum(best, total);
}

// ---- Launch ---------------------------------------------------------------------------------------

template <class Traits>
TensorMap map_rows(const void* data, int64_t rows, int64_t row_stride, uint32_t box_rows,
                   uint32_t box_panels) {
  const uint64_t sizes[] = {Traits::kPanel, static_cast<uint64_t>(rows), Traits::kPanels};
  const uint64_t strides[] = {static_cast<uint64_t>(row_stride) * sizeof(bf16),
                              Traits::kPanel * sizeof(bf16)};
  const uint32_t box[] = {Traits::kPanel, box_rows, box_panels};
  return make_tensor_map(DType::kBF16, data, sizes, strides, box, Swizzle::k128Bytes);
}

template <class Traits>
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, int parts,
                  cudaStream_t stream) {
  const int pairs = problem.rows * problem.heads;
  // Many splits of few rows: eight warps divide them.
  const bool many = pairs * 4 < parts * 16;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(many ? pairs * 4 : (pairs + 1) / 2));
  config.blockDim = dim3(256);
  config.stream = stream;
  config.attrs = &early, config.numAttrs = 1;
  const auto kernel = many ? merge_kernel<Traits, 8> : merge_kernel<Traits, 1>;
  check(cudaLaunchKernelEx(&config, kernel, problem, scratch), "attention_decode: merge");
}

template <class Traits>
void launch_tensor(const DecodeProblem& problem, const DecodeShape& shape, CudaStream& stream) {
  constexpr size_t kBytes = sizeof(DecodeStorage<Traits>);
  static_assert(kBytes <= 227 * 1024);
  allow_shared_memory<decode_kernel<Traits>>(kBytes);
  const int pairs = problem.rows * problem.heads;
  const TensorMap q_map = map_rows<Traits>(problem.q, pairs, problem.q_head, Traits::kRows,
                                           Traits::kPanels);
  const TensorMap k_map = map_rows<Traits>(problem.cache, problem.slots, problem.cache_row,
                                           kTileKeys, Traits::kCopyPanels);
  DecodeLaunch launch{};
  launch.parts = shape.parts, launch.min_tiles = shape.min_tiles;
  launch.cluster_ctas = shape.cluster_ctas;
  if (shape.parts > 0) {
    const size_t slots = size_t{2} * shape.parts * Traits::kRows;
    const size_t floats = slots * (Traits::kLatent + 2);
    auto* scratch = stream.scratch(floats * sizeof(float) + pairs * sizeof(Splits));
    launch.scratch.sums = reinterpret_cast<float*>(scratch);
    launch.scratch.stats = launch.scratch.sums + slots * Traits::kLatent;
    launch.scratch.splits = reinterpret_cast<Splits*>(launch.scratch.sums + floats);
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_ctas), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(
      shape.parts > 0 ? shape.parts : units_at_most(problem, Traits::kRows) * shape.cluster_ctas));
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream.handle();
  config.attrs = &cluster, config.numAttrs = shape.parts > 0 ? 0 : 1;
  check(cudaLaunchKernelEx(&config, decode_kernel<Traits>, problem, launch, q_map, k_map),
        "attention_decode");
  if (shape.parts > 0) launch_merge<Traits>(problem, launch.scratch, shape.parts, stream.handle());
}

bool fits_tensor_cores(const AttentionDecodeParams& params) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const Tensor& cache = params.cache;
  return params.q.dim(2) == 576 && params.out.dim(2) == 512 && cache.dtype == DType::kBF16 &&
         params.q.contiguous() && params.out.contiguous() &&
         (!params.lse || params.lse.contiguous()) && aligned(params.q.data) &&
         aligned(params.out.data) && aligned(cache.data) &&
         (cache.dim(0) <= 1 || cache.stride(0) % 8 == 0);
}

}  // namespace

void launch_shape(const DecodeProblem& problem, const DecodeShape& shape, CudaStream& stream) {
  switch (shape.rows) {
    case 8:
      return launch_tensor<DecodeTraits<8, true, 3>>(problem, shape, stream);
    case 16:
      return launch_tensor<DecodeTraits<16, true, 2>>(problem, shape, stream);
    case 32:
      return launch_tensor<DecodeTraits<32, true, 2>>(problem, shape, stream);
    case 56:
      return launch_tensor<DecodeTraits<56, true, 2>>(problem, shape, stream);
    default:
      return launch_tensor<DecodeTraits<64, false, 2>>(problem, shape, stream);
  }
}

}  // namespace attention

void launch(const AttentionDecodeParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  const attention::DecodeProblem problem = attention::describe(params);
  if (attention::fits_tensor_cores(params)) {
    attention::launch_shape(problem, attention::choose_shape(problem, stream.multiprocessors()),
                            stream);
  } else if (params.cache.dtype == DType::kF32) {
    attention::launch_simple<float>(problem, stream.handle());
  } else {
    attention::launch_simple<attention::bf16>(problem, stream.handle());
  }
}

}  // namespace loza::cuda
