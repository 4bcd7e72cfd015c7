// dx[i] = dy[i] W[e] and dw[e] += dy^T x of f32 activations: the tiles of exact_tile.cuh and
// outer_exact.cuh.
#include "cuda/cuda_ops.h"
#include "cuda/exact_tile.cuh"
#include "cuda/grouped_rows.cuh"
#include "cuda/outer_exact.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear gradient";

template <class Weight>
struct GroupedExactParams {
  const float* dy;        // [slots, n]
  const Weight* weight;   // [experts, n, k]
  float* dx;              // [slots, k]
  const int32_t* starts;  // [experts + 1]
  int64_t dy_stride, weight_stride, weight_expert_stride, dx_stride;
  int experts, n, k;
  bool accumulate;
};

// Grid: x = row tiles, y = column tiles.
template <class Weight>
__global__ void __launch_bounds__(ExactTile::kThreads)
    grouped_exact_kernel(const __grid_constant__ GroupedExactParams<Weight> params) {
  __shared__ ExactStorage shared;
  __shared__ ExpertRows found;
  const ExpertRows rows = find_expert_rows<ExactTile::kRows>(found, params.starts, params.experts,
                                                             static_cast<int>(blockIdx.x));
  if (rows.count == 0) return;
  const int column = static_cast<int>(blockIdx.y) * ExactTile::kColumns;
  const ExactTask<Weight> task{
      .x = params.dy,
      .weight = params.weight + rows.expert * params.weight_expert_stride + column,
      .scale = nullptr,
      .out = params.dx + rows.first * params.dx_stride + column,
      .x_stride = params.dy_stride,
      .weight_stride = 1,
      .weight_step = params.weight_stride,
      .out_stride = params.dx_stride,
      .rows = rows.count,
      .columns = min(ExactTile::kColumns, params.k - column),
      .k = params.n,
      .accumulate = params.accumulate};
  run_exact_tile(shared, task, [&](int row) { return int64_t{rows.first + row}; });
}

}  // namespace

void launch_exact(const GroupedLinearInputGradientParams& params, CudaStream& stream) {
  const Tensor &dx = params.dx, &dy = params.dy, &weight = params.weight;
  const int64_t slots = dy.dim(0), experts = weight.dim(0);
  if (dx.elements() == 0 || experts == 0) return;
  const dim3 grid(static_cast<unsigned>(expert_tiles(slots, ExactTile::kRows, experts)),
                  static_cast<unsigned>(ceil_div(dx.dim(1), ExactTile::kColumns)));
  with_float_type(weight.dtype, [&]<class Weight>(Weight) {
    const GroupedExactParams<Weight> grouped{.dy = dy.as<const float>(),
                                             .weight = weight.as<const Weight>(),
                                             .dx = dx.as<float>(),
                                             .starts = params.starts.as<const int32_t>(),
                                             .dy_stride = dy.stride(0),
                                             .weight_stride = weight.stride(1),
                                             .weight_expert_stride = weight.stride(0),
                                             .dx_stride = dx.stride(0),
                                             .experts = static_cast<int>(experts),
                                             .n = static_cast<int>(weight.dim(1)),
                                             .k = static_cast<int>(weight.dim(2)),
                                             .accumulate = params.accumulate};
    grouped_exact_kernel<<<grid, ExactTile::kThreads, 0, stream.handle()>>>(grouped);
    check_launch(kName);
  });
}

void launch_exact(const GroupedLinearWeightGradientParams& params, CudaStream& stream) {
  const Tensor &dw = params.dw, &dy = params.dy, &x = params.x;
  if (dw.elements() == 0 || dy.dim(0) == 0) return;
  launch_outer_exact({.y = dy.as<const float>(),
                      .x = x.as<const float>(),
                      .out = dw.as<float>(),
                      .starts = params.starts.as<const int32_t>(),
                      .order = params.order.as<const int32_t>(),
                      .y_stride = dy.stride(0),
                      .x_stride = x.stride(0),
                      .out_stride = dw.stride(1),
                      .out_expert_stride = dw.stride(0),
                      .rows = dy.dim(0),
                      .n = static_cast<int>(dw.dim(1)),
                      .k = static_cast<int>(dw.dim(2)),
                      .top_k = params.top_k},
                     dw.dim(0), stream.handle(), kName);
}

}  // namespace loza::cuda
