// The product of a matrix an expert with f32 activations: the tiles of exact_tile.cuh.
// Grid: x = row tiles, y = column tiles.
#include "cuda/exact_tile.cuh"
#include "cuda/grouped_rows.cuh"
#include "cuda/product.h"

namespace loza::cuda {
namespace {

template <class Weight>
struct GroupedParams {
  const float* x;         // [rows, k]
  const Weight* weight;   // [experts, n, k], any strides
  const float* scale;     // f32 [experts, ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  float* out;             // [slots, n]
  const int32_t* starts;  // [experts + 1]
  const int32_t* order;   // [slots], or null
  int64_t x_stride, weight_stride, weight_step, weight_expert_stride;
  int64_t scale_stride, scale_expert_stride, out_stride;
  int experts, n, k, top_k;
  bool accumulate;
};

template <class Weight>
__global__ void __launch_bounds__(ExactTile::kThreads)
    grouped_exact_kernel(const __grid_constant__ GroupedParams<Weight> params) {
  __shared__ ExactStorage shared;
  __shared__ ExpertRows found;
  const ExpertRows rows = find_expert_rows<ExactTile::kRows>(found, params.starts, params.experts,
                                                             static_cast<int>(blockIdx.x));
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
                               .weight_step = params.weight_step,
                               .out_stride = params.out_stride,
                               .rows = rows.count,
                               .columns = min(ExactTile::kColumns, params.n - column),
                               .k = params.k,
                               .accumulate = params.accumulate};
  run_exact_tile(shared, task, GatheredRows{params.order, rows.first, params.top_k});
}

template <class Weight>
GroupedParams<Weight> grouped_of(const GroupedProduct& product) {
  const Tensor &x = product.x, &weight = product.weight, &out = product.out;
  return {.x = x.as<const float>(),
          .weight = weight.as<const Weight>(),
          .scale = product.scale.as<const float>(),
          .out = out.as<float>(),
          .starts = product.starts.as<const int32_t>(),
          .order = product.order.as<const int32_t>(),
          .x_stride = x.stride(0),
          .weight_stride = weight.stride(1),
          .weight_step = product.along_n ? weight.stride(2) : 1,
          .weight_expert_stride = weight.stride(0),
          .scale_stride = product.scale_stride(),
          .scale_expert_stride = product.scale_expert_stride(),
          .out_stride = out.stride(0),
          .experts = static_cast<int>(product.experts()),
          .n = static_cast<int>(product.n()),
          .k = static_cast<int>(product.k()),
          .top_k = product.top_k,
          .accumulate = product.accumulate};
}

}  // namespace

void run_exact(const GroupedProduct& product, CudaStream& stream, const char* operation) {
  const int64_t tiles = expert_tiles(product.slots(), ExactTile::kRows, product.experts());
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>(ceil_div(product.n(), ExactTile::kColumns)));
  with_weight_type(product.weight.dtype, [&]<class Weight>(Weight) {
    grouped_exact_kernel<<<grid, ExactTile::kThreads, 0, stream.handle()>>>(
        grouped_of<Weight>(product));
    check_launch(operation);
  });
}

}  // namespace loza::cuda
