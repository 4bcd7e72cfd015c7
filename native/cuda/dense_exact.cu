// The product of one matrix, or of one a head, with f32 activations: the tiles of exact_tile.cuh.
#include "cuda/exact_tile.cuh"
#include "cuda/product.h"

namespace loza::cuda {
namespace {

template <class Weight>
struct ExactParams {
  const float* x;        // [rows, heads, k]
  const Weight* weight;  // [heads, n, k], any strides
  const float* scale;    // f32 [ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  float* out;            // [rows, heads, n]
  int64_t x_stride, x_head_stride;
  int64_t weight_stride, weight_step, weight_head_stride;
  int64_t scale_stride;
  int64_t out_stride, out_head_stride;
  int64_t rows;
  int heads, n, k;
  bool accumulate;
};

// Grid: x = tiles of rows, y = tiles of columns, z = heads.
template <class Weight>
__global__ void __launch_bounds__(ExactTile::kThreads)
    exact_kernel(const __grid_constant__ ExactParams<Weight> params) {
  using T = ExactTile;
  __shared__ ExactStorage shared;
  const int64_t row = int64_t{blockIdx.x} * T::kRows, head = blockIdx.z;
  const int column = static_cast<int>(blockIdx.y) * T::kColumns;
  const ExactTask<Weight> task{
      .x = params.x + head * params.x_head_stride + row * params.x_stride,
      .weight = params.weight + head * params.weight_head_stride + column * params.weight_stride,
      .scale = params.scale ? params.scale + column / kScaleBlock * params.scale_stride : nullptr,
      .out = params.out + row * params.out_stride + head * params.out_head_stride + column,
      .x_stride = params.x_stride,
      .weight_stride = params.weight_stride,
      .weight_step = params.weight_step,
      .out_stride = params.out_stride,
      .rows = static_cast<int>(min(int64_t{T::kRows}, params.rows - row)),
      .columns = min(T::kColumns, params.n - column),
      .k = params.k,
      .accumulate = params.accumulate};
  run_exact_tile(shared, task, [](int i) { return int64_t{i}; });
}

template <class Weight>
ExactParams<Weight> exact_of(const Product& product) {
  const Tensor &x = product.x, &weight = product.weight, &out = product.out;
  return {.x = x.as<const float>(),
          .weight = weight.as<const Weight>(),
          .scale = product.scale.as<const float>(),
          .out = out.as<float>(),
          .x_stride = x.stride(0),
          .x_head_stride = product.x_head_stride(),
          .weight_stride = weight.stride(-2),
          .weight_step = product.along_n ? weight.stride(-1) : 1,
          .weight_head_stride = product.weight_head_stride(),
          .scale_stride = product.scale_stride(),
          .out_stride = out.stride(0),
          .out_head_stride = product.out_head_stride(),
          .rows = product.rows(),
          .heads = static_cast<int>(product.heads()),
          .n = static_cast<int>(product.n()),
          .k = static_cast<int>(product.k()),
          .accumulate = product.accumulate};
}

}  // namespace

void run_exact(const Product& product, CudaStream& stream, const char* operation) {
  const dim3 grid(static_cast<unsigned>(ceil_div(product.rows(), ExactTile::kRows)),
                  static_cast<unsigned>(ceil_div(product.n(), ExactTile::kColumns)),
                  static_cast<unsigned>(product.heads()));
  with_weight_type(product.weight.dtype, [&]<class Weight>(Weight) {
    exact_kernel<<<grid, ExactTile::kThreads, 0, stream.handle()>>>(exact_of<Weight>(product));
    check_launch(operation);
  });
}

}  // namespace loza::cuda
