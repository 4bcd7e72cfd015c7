// The experts' matrices on f32 activations: the tiles of exact_tile.cuh. The host knows only how many
// slots there are: the grid has as many row tiles as any split of them among the experts can need, and
// each CTA counts through the experts for its own.
#include "cuda/cuda_ops.h"
#include "cuda/exact_tile.cuh"

namespace loza::cuda {
namespace {

template <class Weight>
struct GroupedExactParams {
  const float* x;         // [rows, k]
  const Weight* weight;   // [experts, n, k]
  const float* scale;     // f32 [experts, ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  float* out;             // [slots, n]
  const int32_t* starts;  // [experts + 1]
  const int32_t* order;   // [slots], or null
  int64_t x_stride, weight_stride, weight_expert_stride, scale_stride, scale_expert_stride;
  int64_t out_stride;
  int experts, n, k, top_k;
};

// Rows first to first + count of `out`, all of one expert; no work: count is 0.
struct ExactRows {
  int expert, first, count;
};

__device__ inline ExactRows find_rows(const int32_t* starts, int experts, int tile) {
  for (int expert = 0; expert < experts; expert++) {
    const int begin = starts[expert], rows = starts[expert + 1] - begin;
    const int tiles = (rows + ExactTile::kRows - 1) / ExactTile::kRows;
    if (tile < tiles) {
      const int done = tile * ExactTile::kRows;
      return {expert, begin + done, min(ExactTile::kRows, rows - done)};
    }
    tile -= tiles;
  }
  return {0, 0, 0};
}

// Grid: x = row tiles, y = column tiles.
template <class Weight>
__global__ void __launch_bounds__(ExactTile::kThreads)
    grouped_exact_kernel(const __grid_constant__ GroupedExactParams<Weight> params) {
  __shared__ ExactStorage shared;
  __shared__ ExactRows found;
  if (threadIdx.x == 0)
    found = find_rows(params.starts, params.experts, static_cast<int>(blockIdx.x));
  __syncthreads();
  const ExactRows rows = found;
  if (rows.count == 0) return;
  const int column = static_cast<int>(blockIdx.y) * ExactTile::kColumns;
  const float* scale = params.scale ? params.scale + rows.expert * params.scale_expert_stride +
                                          column / kScaleBlock * params.scale_stride
                                    : nullptr;
  const ExactTask<Weight> task{.x = params.x,
                               .weight = params.weight + rows.expert * params.weight_expert_stride +
                                         column * params.weight_stride,
                               .scale = scale,
                               .out = params.out + rows.first * params.out_stride + column,
                               .x_stride = params.x_stride,
                               .weight_stride = params.weight_stride,
                               .weight_step = 1,
                               .out_stride = params.out_stride,
                               .rows = rows.count,
                               .columns = min(ExactTile::kColumns, params.n - column),
                               .k = params.k,
                               .accumulate = false};
  run_exact_tile(shared, task, [&](int row) -> int64_t {
    return params.order ? params.order[rows.first + row] / params.top_k : rows.first + row;
  });
}

}  // namespace

void launch_exact(const GroupedLinearParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &weight = params.weight, &scale = params.scale, &out = params.out;
  const int64_t slots = out.dim(0), experts = weight.dim(0), n = weight.dim(1);
  if (out.elements() == 0 || experts == 0) return;
  const dim3 grid(static_cast<unsigned>(slots / ExactTile::kRows + std::min(experts, slots)),
                  static_cast<unsigned>(ceil_div(n, ExactTile::kColumns)));
  with_weight_type(weight.dtype, [&]<class Weight>(Weight) {
    const GroupedExactParams<Weight> grouped{.x = x.as<const float>(),
                                             .weight = weight.as<const Weight>(),
                                             .scale = scale.as<const float>(),
                                             .out = out.as<float>(),
                                             .starts = params.starts.as<const int32_t>(),
                                             .order = params.order.as<const int32_t>(),
                                             .x_stride = x.stride(0),
                                             .weight_stride = weight.stride(1),
                                             .weight_expert_stride = weight.stride(0),
                                             .scale_stride = scale ? scale.stride(1) : 0,
                                             .scale_expert_stride = scale ? scale.stride(0) : 0,
                                             .out_stride = out.stride(0),
                                             .experts = static_cast<int>(experts),
                                             .n = static_cast<int>(n),
                                             .k = static_cast<int>(weight.dim(2)),
                                             .top_k = params.top_k};
    grouped_exact_kernel<<<grid, ExactTile::kThreads, 0, stream.handle()>>>(grouped);
    check_launch("grouped_linear");
  });
}

}  // namespace loza::cuda
