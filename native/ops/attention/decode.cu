// Absorbed attention on CUDA over the paged latent cache.
//
//   out[t, h] = softmax_j(scale q[t, h] . cache[slot(j)]) cache[slot(j)][:latent]
//   lse[t, h] = log sum_j exp(scale q[t, h] . cache[slot(j)])
//   q [rows, heads, latent + rope], out [rows, heads, latent] bf16; cache [slots, latent + rope]
//
// latent 512, rope 64, bf16 cache: decode_tensor.cuh. Grid: one persistent CTA
// an SM with an equal part of all visible keys, and a second kernel that merges; where a sequence
// shows few keys, a cluster a unit (decode_plan.cuh) and no second kernel. A kernel before them writes
// down who does what (decode_records.cuh), once for all calls with the same tables.
// Everything else: decode_simple.cuh.
//
// The device cannot fail a stream: rows whose table or sequence is broken become NaN.
#include <algorithm>
#include <array>
#include <atomic>

#include "cuda/cuda_ops.h"
#include "cuda/launch.h"
#include "ops/attention/decode_fp8.h"
#include "ops/attention/decode_producer.cuh"
#include "ops/attention/decode_scores.cuh"
#include "ops/attention/decode_shape.h"
#include "ops/attention/decode_simple.cuh"
#include "ops/attention/decode_values.cuh"

namespace loza::cuda {
namespace attention {
namespace {

// Rows that see nothing: padding becomes zeros, rows of no sequence NaN. By the values warpgroups,
// which have to wait anyway.
template <class Traits>
__device__ void store_nothing(const DecodeProblem& problem, int warp) {
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
  if (threadIdx.x == 0) prefetch(q_map), init_barriers(shared, launch.groups);
  if (threadIdx.x < Traits::kRows) shared.highest[threadIdx.x] = negative_infinity();
  __syncwarp();
  cluster_arrive_relaxed();  // for the barriers; waited for where they are first needed
  launch_dependents();
  if (warp >= 12) {
    release_registers<64>();
    if (warp == 12) return produce(problem, launch, shared, k_map);
    return cluster_wait();
  }
  cluster_wait();
  if (warp >= 4) {
    claim_registers<168>();
    wait_for_prerequisites();
    store_nothing<Traits>(problem, warp - 4);
    sum_values(problem, launch, shared);
    merge_cluster(problem, launch, shared);
  } else {
    release_registers<112>();
    wait_for_prerequisites();
    make_scores(problem, launch, q_map, shared);
    merge_cluster(problem, launch, shared);
  }
  // Until the others of the cluster no longer need this CTA's shared memory.
  cluster_arrive_relaxed();
  cluster_wait();
}

// Merges the partial results of one (row, head) and 128 latent columns: by a warp, or by many that take
// equal runs of the splits. Short code, because it runs cold.
template <class Traits, int kSplitWarps>
__global__ void __launch_bounds__(kSplitWarps == 1 ? 256 : 32 * kSplitWarps)
    merge_kernel(const __grid_constant__ DecodeProblem problem,
                 const __grid_constant__ DecodeScratch scratch, const Splits* all_splits) {
  constexpr int kBatch = 4;  // sums under way at a time
  __shared__ float4 exchange[kSplitWarps][kLanes];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, cta = static_cast<int>(blockIdx.x);
  const int task = kSplitWarps == 1 ? cta * 8 + warp : cta;
  const int flat = task / 4, column = task % 4 * 128 + lane * 4;
  launch_dependents();
  if (flat >= problem.rows * problem.heads) return wait_for_prerequisites();
  const int4 found = __ldcg(reinterpret_cast<const int4*>(all_splits + flat));  // of the plan
  const Splits splits{found.x, found.y, found.z, found.w};
  wait_for_prerequisites();
  if (splits.count <= 1) return;
  const auto* stats = reinterpret_cast<const float2*>(scratch.stats) + splits.row;
  const float* sums = scratch.sums + splits.row * Traits::kLatent + column;
  const int run = (splits.count + kSplitWarps - 1) / kSplitWarps;
  const int first = kSplitWarps == 1 ? 0 : warp * run, end = min(splits.count, first + run);
  float best = negative_infinity(), total = 0;
  for (int s = lane; s < splits.count; s += kLanes)
    best = fmaxf(best, stats[splits.slot(s) * Traits::kRows].x);
  float4 sum = make_float4(0, 0, 0, 0), own[kBatch];
#pragma unroll 1
  for (int begin = first; begin < end || begin == first; begin += kBatch) {
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (begin + i < end)
        own[i] = *reinterpret_cast<const float4*>(sums + int64_t{splits.slot(begin + i)} *
                                                             Traits::kRows * Traits::kLatent);
    if (begin == first) {  // while the first batch is on its way
      best = warp_max(best);
      if (best == negative_infinity()) return;  // padding
      for (int s = lane; s < splits.count; s += kLanes) {
        const float2 part = stats[splits.slot(s) * Traits::kRows];
        total += exp2_fast(part.x - best) * part.y;
      }
      total = warp_sum(total);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (begin + i >= end) continue;
      const float weight = exp2_fast(stats[splits.slot(begin + i) * Traits::kRows].x - best);
      sum.x += own[i].x * weight, sum.y += own[i].y * weight;
      sum.z += own[i].z * weight, sum.w += own[i].w * weight;
    }
  }
  if constexpr (kSplitWarps > 1) {
    exchange[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
#pragma unroll 5
    for (int w = 1; w < kSplitWarps; w++) {
      const float4 part = exchange[w][lane];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
  }
  const float inverse = 1 / total;
  *reinterpret_cast<uint2*>(problem.out + int64_t{flat} * Traits::kLatent + column) =
      make_uint2(pack(sum.x * inverse, sum.y * inverse), pack(sum.z * inverse, sum.w * inverse));
  if (problem.lse != nullptr && task % 4 == 0 && lane == 0)
    problem.lse[flat] = log_sum(best, total);
}

// Calls that follow read the plan, and what this step does not write, before the kernel before theirs
// has ended: so they must not start before this one has ended (no launch_dependents), which itself
// waits for all that was launched before.
__global__ void __launch_bounds__(128) plan_kernel(const __grid_constant__ DecodeProblem problem,
                                                   const __grid_constant__ PlanLaunch launch,
                                                   const __grid_constant__ DecodePlan plan) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(blockIdx.x * 4 + threadIdx.x / kLanes);
  wait_for_prerequisites();
  if (warp < launch.clusters) {
    if (launch.parts > 0)
      write_part(problem, launch, warp, lane, plan);
    else
      write_unit(problem, launch, warp, lane, plan);
  }
  if (launch.parts > 0) write_no_splits(problem, warp, static_cast<int>(gridDim.x) * 4, lane, plan);
  __threadfence();
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
void launch_merge(const DecodeProblem& problem, const DecodeScratch& scratch, const Splits* splits,
                  int ctas, cudaStream_t stream) {
  const int pairs = problem.rows * problem.heads;
  constexpr int kManyWarps = 16;  // divide many splits of few rows
  const bool many = ctas * Traits::kRows > pairs * 12;
  const auto kernel = many ? merge_kernel<Traits, kManyWarps> : merge_kernel<Traits, 1>;
  const Grid grid{dim3(static_cast<unsigned>(many ? pairs * 4 : (pairs + 1) / 2)),
                  dim3(many ? kManyWarps * kLanes : 256)};
  launch_kernel("attention_decode: merge", kernel, grid, stream, problem, scratch, splits);
}

template <class Traits>
void prepare() {
  constexpr size_t kBytes = sizeof(DecodeStorage<Traits>);
  static_assert(kBytes <= 227 * 1024);
  allow_shared_memory<decode_kernel<Traits>>(kBytes);
}

// How many clusters of so many CTAs the device runs at a time.
template <class Traits>
int resident_clusters(int cluster_ctas) {
  static std::array<std::atomic<int>, 17> known{};
  std::atomic<int>& count = known[cluster_ctas];
  if (count.load(std::memory_order_relaxed) == 0) {
    prepare<Traits>();
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(cluster_ctas), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(cluster_ctas));
    config.blockDim = dim3(Traits::kThreads);
    config.dynamicSmemBytes = sizeof(DecodeStorage<Traits>);
    config.attrs = &cluster, config.numAttrs = 1;
    int clusters = 0;
    check(cudaOccupancyMaxActiveClusters(&clusters, decode_kernel<Traits>, &config),
          "cudaOccupancyMaxActiveClusters");
    count.store(std::max(1, clusters), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

// Scratch memory of a call: a plan of its own, if it was given none, and the partial results.
template <class Traits>
std::byte* take_scratch(const DecodeProblem& problem, int ctas, bool own_plan, CudaStream& stream,
                        DecodeScratch& scratch) {
  const size_t slots = size_t{2} * ctas * Traits::kRows, floats = slots * (Traits::kLatent + 2);
  const size_t plan =
      own_plan ? plan_ints(problem.rows, problem.heads, problem.sequences) * sizeof(int32_t) : 0;
  std::byte* memory = stream.scratch(plan + floats * sizeof(float));
  scratch.sums = reinterpret_cast<float*>(memory + plan);  // a multiple of 16 bytes
  scratch.stats = scratch.sums + slots * Traits::kLatent;
  return memory;
}

// Clusters of a call in this form.
template <class Traits>
int clusters_of(const DecodeProblem& problem, const DecodeShape& shape) {
  if (shape.lined_up)
    return std::min(int{kMostParts}, resident_clusters<Traits>(shape.groups * shape.shares));
  return units_at_most(problem, Traits::kRows * shape.groups);
}

template <class Traits>
void launch_plan_of(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                    CudaStream& stream) {
  const int unit_rows = Traits::kRows * shape.groups,
            clusters = clusters_of<Traits>(problem, shape);
  const PlanLaunch launch{Traits::kRows, shape.groups, clusters, shape.lined_up ? clusters : 0,
                          problem.heads % unit_rows == 0 ? problem.heads / unit_rows : 0};
  launch_kernel("attention_plan", plan_kernel,
                {dim3(static_cast<unsigned>((clusters + 3) / 4)), dim3(128)}, stream.handle(),
                problem, launch, plan_at(problem, plan));
}

template <class Traits>
void launch_tensor(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                   CudaStream& stream) {
  prepare<Traits>();
  const int pairs = problem.rows * problem.heads, cluster_ctas = shape.groups * shape.shares;
  const TensorMap q_map =
      map_rows<Traits>(problem.q, pairs, problem.q_head, Traits::kRows, Traits::kPanels);
  const TensorMap k_map =
      map_rows<Traits>(problem.cache, problem.slots, problem.cache_row, kTileKeys, 1);
  const int clusters = clusters_of<Traits>(problem, shape), ctas = clusters * cluster_ctas;
  DecodeLaunch launch{.groups = shape.groups, .shares = shape.shares};
  launch.parts = shape.lined_up ? clusters : 0;
  launch.whole = shape.lined_up && shape.groups == 1;
  launch.read_once =
      pairs <= std::min(problem.sequences, problem.rows) * Traits::kRows * shape.groups;
  std::byte* scratch = take_scratch<Traits>(problem, shape.lined_up ? ctas : 0, plan == nullptr,
                                            stream, launch.scratch);
  if (plan == nullptr) launch_plan_of<Traits>(problem, shape, plan = scratch, stream);
  const DecodePlan parts = plan_at(problem, plan);
  launch.records = parts.records;
  const Grid grid{dim3(static_cast<unsigned>(ctas)), dim3(Traits::kThreads),
                  sizeof(DecodeStorage<Traits>), static_cast<unsigned>(cluster_ctas)};
  launch_kernel("attention_decode", decode_kernel<Traits>, grid, stream.handle(), problem, launch,
                q_map, k_map);
  if (shape.lined_up)
    launch_merge<Traits>(problem, launch.scratch, parts.splits, ctas, stream.handle());
}

// run(Traits{}) for a form of so many rows.
template <class Run>
auto with_traits(int rows, const Run& run) {
  switch (rows) {
    case 8:
      return run(DecodeTraits<8, true, 3, 3>{});
    case 16:
      return run(DecodeTraits<16, true, 3, 2>{});
    case 32:
      return run(DecodeTraits<32, true, 3, 2>{});
    case 56:
      return run(DecodeTraits<56, true, 2, 2>{});
    default:
      return run(DecodeTraits<64, false, 2, 2>{});
  }
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

void launch_shape(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                  CudaStream& stream) {
  with_traits(shape.rows,
              [&](auto traits) { launch_tensor<decltype(traits)>(problem, shape, plan, stream); });
}

void launch_plan(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                 CudaStream& stream) {
  with_traits(shape.rows,
              [&](auto traits) { launch_plan_of<decltype(traits)>(problem, shape, plan, stream); });
}

DecodeShape choose_shape(const DecodeProblem& problem) {
  return choose_shape(problem, [](int rows, int cluster_ctas) {
    return with_traits(
        rows, [&](auto traits) { return resident_clusters<decltype(traits)>(cluster_ctas); });
  });
}

}  // namespace attention

void launch(const AttentionDecodeParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  if (params.cache.dtype == DType::kF8E4M3) return attention::launch_quantised(params, stream);
  const attention::DecodeProblem problem = attention::describe(params);
  if (attention::fits_tensor_cores(params)) {
    attention::launch_shape(problem, attention::choose_shape(problem), params.plan.data, stream);
  } else if (params.cache.dtype == DType::kF32) {
    attention::launch_simple<float>(problem, stream.handle());
  } else {
    attention::launch_simple<attention::bf16>(problem, stream.handle());
  }
}

void launch(const AttentionPlanParams& params, CudaStream& stream) {
  if (params.positions.elements() == 0) return;
  const attention::DecodeProblem problem = attention::describe(params);
  attention::launch_plan(problem, attention::choose_shape(problem), params.plan.data, stream);
}

}  // namespace loza::cuda
