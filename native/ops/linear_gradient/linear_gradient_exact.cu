// dx = dy W and dw += dy^T x of f32 activations: the tiles of exact_tile.cuh and outer_exact.cuh.
#include "cuda/cuda_ops.h"
#include "cuda/exact_tile.cuh"
#include "cuda/outer_exact.cuh"
#include "ops/linear_gradient/stripes.h"

namespace loza::cuda {
namespace {

constexpr const char* kName = "linear gradient";

void run_plain(const LinearInputGradientParams& params, CudaStream& stream) {
  const Tensor &dx = params.dx, &dy = params.dy, &weight = params.weight;
  with_float_type(weight.dtype, [&]<class Weight>(Weight) {
    const ExactParams<Weight> exact{.x = dy.as<const float>(),
                                    .weight = weight.as<const Weight>(),
                                    .scale = nullptr,
                                    .out = dx.as<float>(),
                                    .x_stride = dy.stride(0),
                                    .x_head_stride = 0,
                                    .weight_stride = 1,
                                    .weight_step = weight.stride(0),
                                    .weight_head_stride = 0,
                                    .scale_stride = 0,
                                    .out_stride = dx.stride(0),
                                    .out_head_stride = 0,
                                    .rows = dy.dim(0),
                                    .heads = 1,
                                    .n = static_cast<int>(weight.dim(1)),
                                    .k = static_cast<int>(weight.dim(0)),
                                    .accumulate = params.accumulate};
    run_exact(exact, stream.handle(), kName);
  });
}

}  // namespace

void launch_exact(const LinearInputGradientParams& params, CudaStream& stream) {
  if (params.dx.elements() == 0) return;
  if (params.weight.dtype != DType::kF8E4M3) return run_plain(params, stream);
  for_each_stripe(params, DType::kF32, stream,
                  [&](const LinearInputGradientParams& part, size_t) { run_plain(part, stream); });
}

void launch_exact(const LinearWeightGradientParams& params, CudaStream& stream) {
  const Tensor &dw = params.dw, &dy = params.dy, &x = params.x;
  if (dw.elements() == 0 || dy.dim(0) == 0) return;
  launch_outer_exact({.y = dy.as<const float>(),
                      .x = x.as<const float>(),
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
                      .top_k = 1},
                     1, stream.handle(), kName);
}

}  // namespace loza::cuda
