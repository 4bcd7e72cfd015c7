// Absorbed attention on CUDA over an FP8 latent cache (ops/latent_cache.h).
//
//   latent(j) = scale(j) codes(j)
//   out[t, h] = softmax_j(softmax_scale q[t, h] . [latent(j) | rope(j)]) latent(j)
//
// latent 512, rope 64: decode_fp8_tensor.cuh, launched as the bf16 kernel is (decode_launch.cuh).
// Other sizes: decode_exact.cu.
#include "ops/attention/decode_fp8.h"

#include "ops/attention/decode_fp8_load.cuh"
#include "ops/attention/decode_fp8_scores.cuh"
#include "ops/attention/decode_fp8_values.cuh"
#include "ops/attention/decode_launch.cuh"

namespace loza::cuda::attention {

namespace {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_fp8_kernel(const __grid_constant__ DecodeProblem problem,
                      const __grid_constant__ DecodeLaunch launch,
                      const __grid_constant__ TensorMap q_map,
                      const __grid_constant__ TensorMap code_map,
                      const __grid_constant__ TensorMap rope_map,
                      const __grid_constant__ TensorMap scale_map) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<DecodeStorage<Traits>*>(shared_bytes);
  // Uniform, as the compiler sees it: matrix instructions must not be in a divergent path.
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kLanes, 0);
  if (threadIdx.x == 0) init_barriers(shared, launch.groups);
  if (threadIdx.x < Traits::kRows) shared.highest[threadIdx.x] = negative_infinity();
  __syncwarp();
  cluster_arrive_relaxed();  // for the barriers; waited for where they are first needed
  launch_dependents();
  if (warp >= 12) {
    release_registers<40>();
    if (warp == 12)
      return produce<Fp8Tiles<Traits>>(problem, launch, shared,
                                       {&q_map, &code_map, &rope_map, &scale_map});
    return cluster_wait();
  }
  cluster_wait();
  if (warp >= 4) {
    claim_registers<176>();
    wait_for_prerequisites();
    store_nothing<Traits>(problem, warp - 4);
    sum_fp8_values(problem, launch, shared);
    merge_cluster(problem, launch, shared);
  } else {
    release_registers<120>();
    wait_for_prerequisites();
    make_fp8_scores(problem, launch, shared);
    merge_cluster(problem, launch, shared);
  }
  // Until the others of the cluster no longer need this CTA's shared memory.
  cluster_arrive_relaxed();
  cluster_wait();
}

// ---- Launch ---------------------------------------------------------------------------------------

template <class Traits>
TensorMap map_codes(const DecodeProblem& problem) {
  const uint64_t rows = problem.slots / kBlockTokens * (Traits::kRowBytes / 4);
  const uint64_t sizes[] = {Traits::kCodePanel, rows, Traits::kCodePanels};
  const uint64_t strides[] = {Traits::kLatent, Traits::kCodePanel};
  const uint32_t box[] = {Traits::kCodePanel, kTileKeys, 1};
  return make_tensor_map(DType::kF8E4M3, problem.cache, sizes, strides, box, Swizzle::k128Bytes);
}

// Rows of 128 bytes over the whole cache.
template <class Traits>
TensorMap map_lines(const DecodeProblem& problem, DType dtype, uint32_t box_rows, Swizzle swizzle) {
  constexpr uint64_t kLine = 128;
  const uint64_t columns = kLine / size_of(dtype);
  const uint64_t sizes[] = {
      columns, static_cast<uint64_t>(problem.slots / kBlockTokens) * Traits::kRowBytes};
  const uint64_t strides[] = {kLine};
  const uint32_t box[] = {static_cast<uint32_t>(columns), box_rows};
  return make_tensor_map(dtype, problem.cache, sizes, strides, box, swizzle);
}

// run(Traits{}) for a form of so many rows.
template <class Run>
auto with_traits(int rows, const Run& run) {
  switch (rows) {
    case 8:
      return run(Fp8Traits<8>{});
    case 16:
      return run(Fp8Traits<16>{});
    case 32:
      return run(Fp8Traits<32>{});
    default:
      return run(Fp8Traits<64>{});
  }
}

bool fits_tensor_cores(const AttentionDecodeParams& params) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return params.q.dim(2) == 576 && params.out.dim(2) == 512 && params.q.contiguous() &&
         params.out.contiguous() && (!params.lse || params.lse.contiguous()) &&
         aligned(params.q.data) && aligned(params.out.data) && aligned(params.cache.data);
}

}  // namespace

void launch_fp8_shape(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                      CudaStream& stream) {
  with_traits(shape.rows, [&](auto traits) {
    using Traits = decltype(traits);
    launch_form<Traits, decode_fp8_kernel<Traits>>(
        problem, shape, plan, stream, map_queries<Traits>(problem), map_codes<Traits>(problem),
        map_lines<Traits>(problem, DType::kBF16, kTileKeys, Swizzle::k128Bytes),
        map_lines<Traits>(problem, DType::kF32, 2, Swizzle::kNone));
  });
}

void launch_fp8_plan(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                     CudaStream& stream) {
  with_traits(shape.rows, [&](auto traits) {
    using Traits = decltype(traits);
    plan_form<Traits, decode_fp8_kernel<Traits>>(problem, shape, plan, stream);
  });
}

DecodeShape choose_fp8_shape(const DecodeProblem& problem) {
  constexpr static FormCost kForms[] = {
      {64, 4700, 6400}, {32, 2800, 3200}, {16, 2300, 1600}, {8, 1900, 800}};
  const CacheCosts costs{Fp8Tile::kBytes, kForms};
  DecodeShape shape = choose_shape(problem, costs, [](int rows, int cluster_ctas) {
    return with_traits(rows, [&](auto traits) {
      using Traits = decltype(traits);
      return resident_clusters<Traits, decode_fp8_kernel<Traits>>(cluster_ctas);
    });
  });
  if (shape.rows == 56) shape.rows = 64;  // a form that there is not
  return shape;
}

void launch_quantised(const AttentionDecodeParams& params, CudaStream& stream) {
  if (!fits_tensor_cores(params)) return launch_quantised_simple(params, stream);
  const DecodeProblem problem = describe(params);
  launch_fp8_shape(problem, choose_fp8_shape(problem), params.plan.data, stream);
}

void launch_quantised(const AttentionPlanParams& params, CudaStream& stream) {
  const DecodeProblem problem = describe(params);
  launch_fp8_plan(problem, choose_fp8_shape(problem), params.plan.data, stream);
}

}  // namespace loza::cuda::attention
