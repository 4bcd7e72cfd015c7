// dx[i] = dy[i] W[e] and dw[e] += dy^T x of bf16 activations: the tiles of gemm_tile.cuh, whose weight
// lies along the outputs here, and of outer_tile.cuh.
#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"

#include "cuda/cuda_ops.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/grouped_rows.cuh"
#include "cuda/outer_tile.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear gradient";

struct GroupedGradientParams {
  const Bf16* dy;         // [slots, n]
  const void* weight;     // [experts, n, k]
  void* dx;               // bf16 | f32 [slots, k]
  const int32_t* starts;  // [experts + 1]
  int64_t dy_stride, weight_stride, weight_expert_stride, dx_stride;
  int64_t slots;
  int experts, n, k;
  bool dy_aligned, weight_aligned, dx_aligned, dx_is_f32, accumulate;
};

template <class T>
struct SharedStorage {
  TileStorage<T> tile;
  ExpertRows rows;
};

// Grid: x = column tiles, y = row tiles. CTAs beside each other share the rows.
template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kCtas)
    grouped_gradient_kernel(const __grid_constant__ GroupedGradientParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(memory);
  const ExpertRows rows = find_expert_rows<T::kRows>(shared.rows, params.starts, params.experts,
                                                     static_cast<int>(blockIdx.y));
  if (rows.count == 0) return;
  const int column = static_cast<int>(blockIdx.x) * T::kColumns;
  const int64_t out = rows.first * params.dx_stride + column;
  const TileTask task{.x = params.dy,
                      .weight = static_cast<const typename T::Weight*>(params.weight) +
                                rows.expert * params.weight_expert_stride + column,
                      .scale = nullptr,
                      .out = static_cast<char*>(params.dx) + out * (params.dx_is_f32 ? 4 : 2),
                      .x_stride = params.dy_stride,
                      .weight_stride = params.weight_stride,
                      .out_stride = params.dx_stride,
                      .rows = rows.count,
                      .columns = min(T::kColumns, params.k - column),
                      .k = params.n,
                      .x_aligned = params.dy_aligned,
                      .weight_aligned = params.weight_aligned,
                      .out_aligned = params.dx_aligned,
                      .out_is_f32 = params.dx_is_f32,
                      .accumulate = params.accumulate};
  run_tile<T>(shared.tile, task, [&](int row) { return int64_t{rows.first} + row; });
}

template <class T>
void launch_grouped(const GroupedGradientParams& params, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(SharedStorage<T>);
  const dim3 grid(static_cast<unsigned>((params.k + T::kColumns - 1) / T::kColumns),
                  static_cast<unsigned>(expert_tiles(params.slots, T::kRows, params.experts)));
  allow_shared(grouped_gradient_kernel<T>, kShared, kName);
  grouped_gradient_kernel<T><<<grid, T::kThreads, kShared, stream>>>(params);
  check_launch(kName);
}

// By the rows an expert has on average.
void launch_rows(const GroupedGradientParams& params, cudaStream_t stream) {
  using Tile = Tiles<Bf16, false>;
  if (params.slots <= 96 * int64_t{params.experts})
    launch_grouped<Tile::Rows64>(params, stream);
  else
    launch_grouped<Tile::Rows128>(params, stream);
}

}  // namespace

void launch(const GroupedLinearInputGradientParams& params, CudaStream& stream) {
  const Tensor &dx = params.dx, &dy = params.dy, &weight = params.weight;
  if (dx.elements() == 0 || weight.dim(0) == 0) return;
  const GroupedGradientParams grouped{.dy = dy.as<const Bf16>(),
                                      .weight = weight.data,
                                      .dx = dx.data,
                                      .starts = params.starts.as<const int32_t>(),
                                      .dy_stride = dy.stride(0),
                                      .weight_stride = weight.stride(1),
                                      .weight_expert_stride = weight.stride(0),
                                      .dx_stride = dx.stride(0),
                                      .slots = dy.dim(0),
                                      .experts = static_cast<int>(weight.dim(0)),
                                      .n = static_cast<int>(weight.dim(1)),
                                      .k = static_cast<int>(weight.dim(2)),
                                      .dy_aligned = rows_aligned(dy, 16, 1),
                                      .weight_aligned = rows_aligned(weight, 16, 2),
                                      .dx_aligned = rows_aligned(dx, 2 * size_of(dx.dtype), 1),
                                      .dx_is_f32 = dx.dtype == DType::kF32,
                                      .accumulate = params.accumulate};
  if (weight.dtype == DType::kF32)
    launch_grouped<ExactTile<false>>(grouped, stream.handle());
  else
    launch_rows(grouped, stream.handle());
}

void launch(const GroupedLinearWeightGradientParams& params, CudaStream& stream) {
  const Tensor &dw = params.dw, &dy = params.dy, &x = params.x;
  if (dw.elements() == 0 || dy.dim(0) == 0) return;
  launch_outer({.y = dy.as<const Bf16>(),
                .x = x.as<const Bf16>(),
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
                .top_k = params.top_k,
                .y_aligned = rows_aligned(dy, 16, 1),
                .x_aligned = rows_aligned(x, 16, 1),
                .out_aligned = rows_aligned(dw, 8, 2)},
               dw.dim(0), stream.handle(), kName);
}

}  // namespace loza::cuda
