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
#include "cuda/cuda_ops.h"
#include "ops/attention/decode_fp8.h"
#include "ops/attention/decode_launch.cuh"
#include "ops/attention/decode_load.cuh"
#include "ops/attention/decode_scores.cuh"
#include "ops/attention/decode_simple.cuh"

namespace loza::cuda {
namespace attention {
namespace {

template <class Traits>
__global__ void __launch_bounds__(Traits::kRegisterThreads, 1)
    decode_kernel(const __grid_constant__ DecodeProblem problem,
                  const __grid_constant__ DecodeLaunch launch,
                  const __grid_constant__ TensorMap q_map,
                  const __grid_constant__ TensorMap k_map) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<DecodeStorage<Traits>*>(shared_bytes);
  // Uniform, as the compiler sees it: matrix instructions must not be in a divergent path.
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kLanes, 0);
  if (threadIdx.x == 0) prefetch(q_map), init_barriers(shared, launch.groups);
  __syncwarp();
  cluster_arrive_relaxed();  // for the barriers; waited for where they are first needed
  launch_dependents();
  if (warp >= 12) {
    if constexpr (!Traits::kLight) release_registers<Traits::kCopyRegisters>();
    if (warp == 12) return produce<PanelTiles<Traits>>(problem, launch, shared, k_map);
    return cluster_wait();
  }
  cluster_wait();
  if (warp >= 4) {
    if constexpr (!Traits::kLight) claim_registers<Traits::kValueRegisters>();
    wait_for_prerequisites();
    store_nothing<Traits>(problem, warp - 4);
    sum_values(problem, launch, shared);
    merge_cluster(problem, launch, shared);
  } else {
    if constexpr (Traits::kScoreRegisters > 128)
      claim_registers<Traits::kScoreRegisters>();
    else if constexpr (!Traits::kLight)
      release_registers<Traits::kScoreRegisters>();
    wait_for_prerequisites();
    make_scores(problem, launch, q_map, shared);
    merge_cluster(problem, launch, shared);
  }
  // Until the others of the cluster no longer need this CTA's shared memory.
  cluster_arrive_relaxed();
  cluster_wait();
}

// ---- Launch ---------------------------------------------------------------------------------------

// run(Traits{}) for a form of so many rows, and of CTAs that share tiles.
template <class Run>
auto with_traits(int rows, int groups, const Run& run) {
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
      return groups > 1 ? run(DecodeTraits<64, false, 3, 2>{})
                        : run(DecodeTraits<64, false, 2, 2>{});
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
  with_traits(shape.rows, shape.groups, [&](auto traits) {
    using Traits = decltype(traits);
    const TensorMap keys =
        map_rows<Traits>(problem.cache, problem.slots, problem.cache_row, kTileKeys, 1);
    launch_form<Traits, decode_kernel<Traits>>(problem, shape, plan, stream,
                                               map_queries<Traits>(problem), keys);
  });
}

void launch_plan(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                 CudaStream& stream) {
  with_traits(shape.rows, shape.groups, [&](auto traits) {
    using Traits = decltype(traits);
    plan_form<Traits, decode_kernel<Traits>>(problem, shape, plan, stream);
  });
}

DecodeShape choose_shape(const DecodeProblem& problem) {
  constexpr static FormCost kForms[] = {
      {64, 2400, 6400}, {56, 2400, 5600}, {32, 2200, 3200}, {16, 2000, 1600}, {8, 1900, 800}};
  const CacheCosts costs{kTileKeys * 1152, kForms};
  return choose_shape(problem, costs, [](int rows, int cluster_ctas) {
    return with_traits(rows, 1, [&](auto traits) {
      using Traits = decltype(traits);
      return resident_clusters<Traits, decode_kernel<Traits>>(cluster_ctas);
    });
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
  if (params.cache.dtype == DType::kF8E4M3) return attention::launch_quantised(params, stream);
  const attention::DecodeProblem problem = attention::describe(params);
  attention::launch_plan(problem, attention::choose_shape(problem), params.plan.data, stream);
}

}  // namespace loza::cuda
