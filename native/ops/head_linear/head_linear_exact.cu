// out[t, h, :] = W[h] x[t, h, :] of f32 activations: the tiles of exact_tile.cuh.
#include "cuda/cuda_ops.h"
#include "cuda/exact_tile.cuh"

namespace loza::cuda {

void launch_exact(const HeadLinearParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &weight = params.weight, &out = params.out;
  if (out.elements() == 0) return;
  const bool along_k = weight.stride(2) == 1 || weight.dim(2) == 1;
  with_float_type(weight.dtype, [&]<class Weight>(Weight) {
    const ExactParams<Weight> exact{.x = x.as<const float>(),
                                    .weight = weight.as<const Weight>(),
                                    .scale = nullptr,
                                    .out = out.as<float>(),
                                    .x_stride = x.stride(0),
                                    .x_head_stride = x.stride(1),
                                    .weight_stride = weight.stride(1),
                                    .weight_step = along_k ? 1 : weight.stride(2),
                                    .weight_head_stride = weight.stride(0),
                                    .scale_stride = 0,
                                    .out_stride = out.stride(0),
                                    .out_head_stride = out.stride(1),
                                    .rows = x.dim(0),
                                    .heads = static_cast<int>(weight.dim(0)),
                                    .n = static_cast<int>(weight.dim(1)),
                                    .k = static_cast<int>(weight.dim(2)),
                                    .accumulate = false};
    run_exact(exact, stream.handle(), "head_linear");
  });
}

}  // namespace loza::cuda
