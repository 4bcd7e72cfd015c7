// Plans of absorbed attention (decode_records.cuh).
#include "cuda/barrier.cuh"
#include "cuda/cuda_stream.h"
#include "cuda/launch.h"
#include "ops/attention/decode_records.cuh"

namespace loza::cuda::attention {

namespace {

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

}  // namespace

void write_plan(const DecodeProblem& problem, const PlanLaunch& launch, void* plan,
                CudaStream& stream) {
  const Grid grid{dim3(static_cast<unsigned>((launch.clusters + 3) / 4)), dim3(128)};
  launch_kernel("attention_plan", plan_kernel, grid, stream.handle(), problem, launch,
                plan_at(problem, plan));
}

}  // namespace loza::cuda::attention
