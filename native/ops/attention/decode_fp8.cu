// Absorbed attention on CUDA over an FP8 latent cache (ops/latent_cache.h).
//
//   latent(j) = scale(j) codes(j)
//   out[t, h] = softmax_j(softmax_scale q[t, h] . [latent(j) | rope(j)]) latent(j)
//
// latent 512, rope 64: decode_fp8_tensor.cuh, with the plans of decode_plan.cuh and the grids of decode.cu.
// Other sizes: decode_exact.cu.
#include "ops/attention/decode_fp8.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "cuda/cuda_stream.h"
#include "cuda/launch.h"
#include "ops/attention/decode_fp8_load.cuh"
#include "ops/attention/decode_fp8_merge.cuh"
#include "ops/attention/decode_fp8_scores.cuh"
#include "ops/attention/decode_fp8_values.cuh"
#include "ops/attention/decode_shape.h"

namespace loza::cuda::attention {

namespace {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    decode_fp8_kernel(const __grid_constant__ DecodeProblem problem,
                      const __grid_constant__ Fp8Launch launch,
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
  wait_for_prerequisites();
  if (warp >= 12) {
    release_registers<40>();
    if (warp == 12)
      return produce_fp8(problem, launch, shared,
                         Fp8Maps{&q_map, &code_map, &rope_map, &scale_map});
    return cluster_wait();
  }
  if (warp >= 4) {
    claim_registers<176>();
    store_fp8_nothing<Traits>(problem, launch, warp - 4);
    cluster_wait();
    sum_fp8_values(problem, launch, shared);
    merge_fp8_cluster(problem, launch, shared);
  } else {
    release_registers<120>();
    cluster_wait();
    make_fp8_scores(problem, launch, shared);
    merge_fp8_cluster(problem, launch, shared);
  }
  // Until the others of the cluster no longer need this CTA's shared memory.
  cluster_arrive_relaxed();
  cluster_wait();
}

// ---- Launch ---------------------------------------------------------------------------------------

template <class Traits>
TensorMap map_queries(const DecodeProblem& problem) {
  const auto pairs = static_cast<uint64_t>(problem.rows) * problem.heads;
  const uint64_t sizes[] = {Traits::kPanel, pairs, Traits::kPanels};
  const uint64_t strides[] = {static_cast<uint64_t>(problem.q_head) * sizeof(bf16),
                              Traits::kPanel * sizeof(bf16)};
  const uint32_t box[] = {Traits::kPanel, Traits::kRows, Traits::kPanels};
  return make_tensor_map(DType::kBF16, problem.q, sizes, strides, box, Swizzle::k128Bytes);
}

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

template <class Traits>
void prepare() {
  constexpr size_t kBytes = sizeof(DecodeStorage<Traits>);
  static_assert(kBytes <= 227 * 1024);
  allow_shared_memory<decode_fp8_kernel<Traits>>(kBytes);
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
    check(cudaOccupancyMaxActiveClusters(&clusters, decode_fp8_kernel<Traits>, &config),
          "cudaOccupancyMaxActiveClusters");
    count.store(std::max(1, clusters), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

template <class Traits>
void launch_codes(const DecodeProblem& problem, const DecodeShape& shape, CudaStream& stream) {
  prepare<Traits>();
  const int pairs = problem.rows * problem.heads, cluster_ctas = shape.groups * shape.shares;
  const int unit_rows = Traits::kRows * shape.groups;
  Fp8Launch launch{};
  launch.groups = shape.groups, launch.shares = shape.shares;
  launch.row_units = problem.heads % unit_rows == 0 ? problem.heads / unit_rows : 0;
  launch.read_once = pairs <= std::min(problem.sequences, problem.rows) * unit_rows;
  if (shape.lined_up) {
    launch.parts = resident_clusters<Traits>(cluster_ctas);
    take_fp8_scratch<Traits>(stream, launch.parts * cluster_ctas, pairs, launch);
  }
  const int clusters = shape.lined_up ? launch.parts : units_at_most(problem, unit_rows);
  const Grid grid{dim3(static_cast<unsigned>(clusters * cluster_ctas)), dim3(Traits::kThreads),
                  sizeof(DecodeStorage<Traits>), static_cast<unsigned>(cluster_ctas)};
  launch_kernel("attention_decode", decode_fp8_kernel<Traits>, grid, stream.handle(), problem,
                launch, map_queries<Traits>(problem), map_codes<Traits>(problem),
                map_lines<Traits>(problem, DType::kBF16, kTileKeys, Swizzle::k128Bytes),
                map_lines<Traits>(problem, DType::kF32, 2, Swizzle::kNone));
  if (shape.lined_up)
    launch_fp8_merge<Traits>(problem, launch, clusters * cluster_ctas, stream.handle());
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

void launch_fp8_shape(const DecodeProblem& problem, const DecodeShape& shape, CudaStream& stream) {
  with_traits(shape.rows,
              [&](auto traits) { launch_codes<decltype(traits)>(problem, shape, stream); });
}

DecodeShape choose_fp8_shape(const DecodeProblem& problem) {
  DecodeShape shape = choose_shape(problem, [](int rows, int cluster_ctas) {
    return with_traits(
        rows, [&](auto traits) { return resident_clusters<decltype(traits)>(cluster_ctas); });
  });
  if (shape.rows == 56) shape.rows = 64;  // a form that there is not
  return shape;
}

void launch_quantised(const AttentionDecodeParams& params, CudaStream& stream) {
  if (!fits_tensor_cores(params)) return launch_quantised_simple(params, stream);
  const DecodeProblem problem = describe(params);
  launch_fp8_shape(problem, choose_fp8_shape(problem), stream);
}

}  // namespace loza::cuda::attention
