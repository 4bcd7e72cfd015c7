// Sums of outer products with f32 activations, in plain fp32 arithmetic. A CTA computes 64 x 64 sums,
// a thread 4 x 4 of them; the products of each step of kDepth rows are summed by themselves and then
// added to the total, which keeps rounding errors near those of the inputs.
// Grid: x = tiles along k, y = tiles along n, z = experts.
#include "cuda/check.h"
#include "cuda/outer_operands.cuh"

namespace loza::cuda {
namespace {

using OuterParams = OuterOperands<float>;

struct OuterExact {
  static constexpr int kSide = 64, kDepth = 16, kThreadsX = 16, kThreads = 256;
  static constexpr int kEach = kSide / kThreadsX;  // rows, and columns, of a thread
};

struct OuterExactStorage {
  float y[OuterExact::kDepth][OuterExact::kSide];
  float x[OuterExact::kDepth][OuterExact::kSide];
};

// Fills a step; what does not exist becomes zeros.
__device__ inline void load_outer_step(OuterExactStorage& shared, const OuterParams& params,
                                       int64_t first, int64_t end) {
  using T = OuterExact;
  for (int i = static_cast<int>(threadIdx.x); i < T::kDepth * T::kSide; i += T::kThreads) {
    const int depth = i / T::kSide, column = i % T::kSide;
    const int n = static_cast<int>(blockIdx.y) * T::kSide + column;
    const int k = static_cast<int>(blockIdx.x) * T::kSide + column;
    const int64_t row = first + depth;
    const bool exists = row < end;
    const int64_t source = exists && params.order ? params.order[row] / params.top_k : row;
    shared.y[depth][column] = exists && n < params.n ? params.y[row * params.y_stride + n] : 0.0f;
    shared.x[depth][column] =
        exists && k < params.k ? params.x[source * params.x_stride + k] : 0.0f;
  }
}

using OuterExactSums = float[OuterExact::kEach][OuterExact::kEach];

__device__ inline void add_outer_step(OuterExactSums& totals, const OuterExactStorage& shared,
                                      int x, int y) {
  using T = OuterExact;
  OuterExactSums sums = {};
#pragma unroll
  for (int depth = 0; depth < T::kDepth; depth++)
#pragma unroll
    for (int row = 0; row < T::kEach; row++)
#pragma unroll
      for (int column = 0; column < T::kEach; column++)
        sums[row][column] = fmaf(shared.y[depth][y + row * T::kThreadsX],
                                 shared.x[depth][x + column * T::kThreadsX], sums[row][column]);
#pragma unroll
  for (int row = 0; row < T::kEach; row++)
#pragma unroll
    for (int column = 0; column < T::kEach; column++) totals[row][column] += sums[row][column];
}

__global__ void __launch_bounds__(OuterExact::kThreads)
    outer_exact_kernel(const __grid_constant__ OuterParams params) {
  using T = OuterExact;
  __shared__ OuterExactStorage shared;
  const int x = static_cast<int>(threadIdx.x) % T::kThreadsX;
  const int y = static_cast<int>(threadIdx.x) / T::kThreadsX;
  const int64_t expert = blockIdx.z;
  const int64_t first = params.starts ? params.starts[expert] : 0;
  const int64_t end = params.starts ? params.starts[expert + 1] : params.rows;
  OuterExactSums totals = {};
  for (int64_t step = first; step < end; step += T::kDepth) {
    load_outer_step(shared, params, step, end);
    __syncthreads();
    add_outer_step(totals, shared, x, y);
    __syncthreads();
  }
  float* out = params.out + expert * params.out_expert_stride;
  for (int row = 0; row < T::kEach; row++) {
    for (int column = 0; column < T::kEach; column++) {
      const int n = static_cast<int>(blockIdx.y) * T::kSide + y + row * T::kThreadsX;
      const int k = static_cast<int>(blockIdx.x) * T::kSide + x + column * T::kThreadsX;
      if (n < params.n && k < params.k) out[n * params.out_stride + k] += totals[row][column];
    }
  }
}

}  // namespace

void run_exact(const OuterProduct& product, CudaStream& stream, const char* operation) {
  outer_exact_kernel<<<outer_grid(product, OuterExact::kSide), OuterExact::kThreads, 0,
                       stream.handle()>>>(operands_of<float>(product));
  check_launch(operation);
}

}  // namespace loza::cuda
