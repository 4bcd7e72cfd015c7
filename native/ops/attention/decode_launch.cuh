// Launches of the tensor-core kernels over either type of cache: scratch memory, plan, kernel, merge.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>

#include "cuda/cuda_stream.h"
#include "ops/attention/decode_merge.cuh"
#include "ops/attention/decode_shape.h"

namespace loza::cuda::attention {

// Of a CTA. Lined up without what only clusters need: that leaves room for CTAs of the merge.
template <class Traits>
size_t shared_bytes(bool lined_up) {
  using Storage = DecodeStorage<Traits>;
  static_assert(sizeof(Storage) <= 227 * 1024);
  return lined_up ? offsetof(Storage, parts) : sizeof(Storage);
}

template <class Traits, auto kKernel>
void prepare() {
  allow_shared_memory<kKernel>(shared_bytes<Traits>(false));
}

// How many clusters of so many CTAs the device runs at a time.
template <class Traits, auto kKernel>
int resident_clusters(int cluster_ctas) {
  static std::array<std::atomic<int>, 17> known{};
  std::atomic<int>& count = known[cluster_ctas];
  if (count.load(std::memory_order_relaxed) == 0) {
    prepare<Traits, kKernel>();
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(cluster_ctas), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(cluster_ctas));
    config.blockDim = dim3(Traits::kThreads);
    config.dynamicSmemBytes = shared_bytes<Traits>(false);
    config.attrs = &cluster, config.numAttrs = 1;
    int clusters = 0;
    check(cudaOccupancyMaxActiveClusters(&clusters, kKernel, &config),
          "cudaOccupancyMaxActiveClusters");
    count.store(std::max(1, clusters), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

// Scratch memory of a call: a plan of its own, if it was given none, and the partial results.
template <class Traits>
std::byte* take_scratch(const DecodeProblem& problem, int ctas, bool own_plan, CudaStream& stream,
                        DecodeScratch& scratch) {
  const size_t slots = size_t{2} * ctas * Traits::kRows;
  const size_t sums = slots * Traits::kLatent * sizeof(uint16_t);
  const size_t plan =
      own_plan ? plan_ints(problem.rows, problem.heads, problem.sequences) * sizeof(int32_t) : 0;
  std::byte* memory = stream.scratch(plan + sums + slots * sizeof(Stats));
  scratch.sums = reinterpret_cast<uint16_t*>(memory + plan);  // a multiple of 16 bytes
  scratch.stats = reinterpret_cast<Stats*>(memory + plan + sums);
  scratch.ctas = ctas;
  return memory;
}

// Clusters of a call in this form.
template <class Traits, auto kKernel>
int clusters_of(const DecodeProblem& problem, const DecodeShape& shape) {
  if (shape.lined_up)
    return std::min(int{kMostParts},
                    resident_clusters<Traits, kKernel>(shape.groups * shape.shares));
  return units_at_most(problem, Traits::kRows * shape.groups);
}

template <class Traits, auto kKernel>
void plan_form(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
               CudaStream& stream) {
  const int unit_rows = Traits::kRows * shape.groups;
  const int clusters = clusters_of<Traits, kKernel>(problem, shape);
  const int row_units = problem.heads % unit_rows == 0 ? problem.heads / unit_rows : 0;
  write_plan(problem,
             {Traits::kRows, shape.groups, clusters, shape.lined_up ? clusters : 0, row_units},
             plan, stream);
}

// `maps`: what the kernel takes besides problem and launch. Without a plan the call makes its own.
template <class Traits, auto kKernel, class... Maps>
void launch_form(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                 CudaStream& stream, const Maps&... maps) {
  prepare<Traits, kKernel>();
  const int pairs = problem.rows * problem.heads, cluster_ctas = shape.groups * shape.shares;
  const int clusters = clusters_of<Traits, kKernel>(problem, shape), ctas = clusters * cluster_ctas;
  DecodeLaunch launch{.groups = shape.groups, .shares = shape.shares};
  launch.parts = shape.lined_up ? clusters : 0;
  launch.whole = shape.lined_up && shape.groups == 1;
  launch.read_once =
      pairs <= std::min(problem.sequences, problem.rows) * Traits::kRows * shape.groups;
  std::byte* scratch = take_scratch<Traits>(problem, shape.lined_up ? ctas : 0, plan == nullptr,
                                            stream, launch.scratch);
  if (plan == nullptr) plan_form<Traits, kKernel>(problem, shape, plan = scratch, stream);
  const DecodePlan parts = plan_at(problem, plan);
  launch.records = parts.records;
  const Grid grid{dim3(static_cast<unsigned>(ctas)), dim3(Traits::kThreads),
                  shared_bytes<Traits>(shape.lined_up), static_cast<unsigned>(cluster_ctas)};
  launch_kernel("attention_decode", kKernel, grid, stream.handle(), problem, launch, maps...);
  if (shape.lined_up)
    launch_merge<Traits>(problem, launch.scratch, parts.splits, ctas, stream.handle());
}

// [panels, rows, 64] of bf16 rows in memory, as the copies of queries and bf16 caches see them.
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
TensorMap map_queries(const DecodeProblem& problem) {
  return map_rows<Traits>(problem.q, int64_t{problem.rows} * problem.heads, problem.q_head,
                          Traits::kRows, Traits::kQueryBox);
}

}  // namespace loza::cuda::attention
