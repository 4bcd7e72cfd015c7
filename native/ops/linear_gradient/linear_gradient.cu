// dx = dy W and dw += dy^T x of bf16 activations: the matrix library, or where it is missing (or cannot:
// rows at odd places, f32 weights) the tiles of gemm_tile.cuh and outer_tile.cuh.
#include "ops/linear_gradient/linear_gradient.h"

#include "cuda/cuda_ops.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/matrix_library.h"
#include "cuda/outer_tile.cuh"
#include "ops/linear_gradient/stripes.h"

namespace loza::cuda {
namespace {

constexpr const char* kName = "linear gradient";

// out[rows, k] = dy[rows, n] W: W lies in memory as the product's [k, n].
bool run_library(const LinearInputGradientParams& params, size_t scratch_in_use,
                 CudaStream& stream) {
  const Tensor &dx = params.dx, &dy = params.dy, &weight = params.weight;
  if (weight.dtype != DType::kBF16) return false;
  return stream.matrix_library().matmul({.out = dx.data,
                                         .x = dy.data,
                                         .weight = weight.data,
                                         .rows = dy.dim(0),
                                         .n = weight.dim(1),
                                         .k = weight.dim(0),
                                         .out_stride = dx.stride(0),
                                         .x_stride = dy.stride(0),
                                         .weight_stride = weight.stride(0),
                                         .out_type = dx.dtype,
                                         .weight_is_transposed = true,
                                         .accumulate = params.accumulate,
                                         .scratch_in_use = scratch_in_use});
}

void run_tiles(const LinearInputGradientParams& params, CudaStream& stream) {
  const Tensor &dx = params.dx, &dy = params.dy, &weight = params.weight;
  const DenseParams dense{.x = dy.as<const Bf16>(),
                          .weight = weight.data,
                          .scale = nullptr,
                          .out = dx.data,
                          .x_stride = dy.stride(0),
                          .x_head_stride = 0,
                          .weight_stride = weight.stride(0),
                          .weight_head_stride = 0,
                          .scale_stride = 0,
                          .out_stride = dx.stride(0),
                          .out_head_stride = 0,
                          .rows = dy.dim(0),
                          .heads = 1,
                          .n = static_cast<int>(weight.dim(1)),
                          .k = static_cast<int>(weight.dim(0)),
                          .x_aligned = rows_aligned(dy, 16, 1),
                          .weight_aligned = rows_aligned(weight, 16, 1),
                          .out_aligned = rows_aligned(dx, 2 * size_of(dx.dtype), 1),
                          .out_is_f32 = dx.dtype == DType::kF32,
                          .accumulate = params.accumulate};
  if (weight.dtype == DType::kF32)
    launch_dense<ExactTile<false>>(dense, stream.handle(), kName);
  else
    launch_dense_rows<Bf16, false>(dense, stream.multiprocessors(), stream.handle(), kName);
}

void run_plain(const LinearInputGradientParams& params, size_t scratch_in_use, CudaStream& stream) {
  if (!run_library(params, scratch_in_use, stream)) run_tiles(params, stream);
}

// out[n, k] += dy^T[n, rows] x[rows, k]: both operands lie transposed.
bool run_library(const LinearWeightGradientParams& params, CudaStream& stream) {
  const Tensor &dw = params.dw, &dy = params.dy, &x = params.x;
  return stream.matrix_library().matmul({.out = dw.data,
                                         .x = dy.data,
                                         .weight = x.data,
                                         .rows = dw.dim(0),
                                         .n = dw.dim(1),
                                         .k = dy.dim(0),
                                         .out_stride = dw.stride(0),
                                         .x_stride = dy.stride(0),
                                         .weight_stride = x.stride(0),
                                         .out_type = DType::kF32,
                                         .weight_is_transposed = true,
                                         .x_is_transposed = true,
                                         .accumulate = true});
}

}  // namespace

void launch(const LinearInputGradientParams& params, CudaStream& stream) {
  if (params.dx.elements() == 0) return;
  if (params.weight.dtype != DType::kF8E4M3) return run_plain(params, 0, stream);
  for_each_stripe(params, DType::kBF16, stream,
                  [&](const LinearInputGradientParams& part, size_t scratch_in_use) {
                    run_plain(part, scratch_in_use, stream);
                  });
}

void launch(const LinearWeightGradientParams& params, CudaStream& stream) {
  const Tensor &dw = params.dw, &dy = params.dy, &x = params.x;
  if (dw.elements() == 0 || dy.dim(0) == 0 || run_library(params, stream)) return;
  launch_outer({.y = dy.as<const Bf16>(),
                .x = x.as<const Bf16>(),
                .out = dw.as<float>(),
                .starts = nullptr,
                .order = nullptr,
                .y_stride = dy.stride(0),
                .x_stride = x.stride(0),
                .out_stride = dw.stride(0),
                .out_expert_stride = 0,
                .rows = dy.dim(0),
                .n = static_cast<int>(dw.dim(0)),
                .k = static_cast<int>(dw.dim(1)),
                .top_k = 1,
                .y_aligned = rows_aligned(dy, 16, 1),
                .x_aligned = rows_aligned(x, 16, 1),
                .out_aligned = rows_aligned(dw, 8, 1)},
               1, stream.handle(), kName);
}

}  // namespace loza::cuda
