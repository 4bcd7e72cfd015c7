// out = x W^T, or out += x W^T, of f32 activations: the tiles of exact_tile.cuh.
#include "cuda/cuda_ops.h"
#include "cuda/exact_tile.cuh"

namespace loza::cuda {

void launch_exact(const LinearParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &weight = params.weight, &scale = params.scale, &out = params.out;
  if (out.elements() == 0) return;
  with_weight_type(weight.dtype, [&]<class Weight>(Weight) {
    const ExactParams<Weight> exact{.x = x.as<const float>(),
                                    .weight = weight.as<const Weight>(),
                                    .scale = scale.as<const float>(),
                                    .out = out.as<float>(),
                                    .x_stride = x.stride(0),
                                    .x_head_stride = 0,
                                    .weight_stride = weight.stride(0),
                                    .weight_step = 1,
                                    .weight_head_stride = 0,
                                    .scale_stride = scale ? scale.stride(0) : 0,
                                    .out_stride = out.stride(0),
                                    .out_head_stride = 0,
                                    .rows = x.dim(0),
                                    .heads = 1,
                                    .n = static_cast<int>(weight.dim(0)),
                                    .k = static_cast<int>(weight.dim(1)),
                                    .accumulate = params.accumulate};
    run_exact(exact, stream.handle(), "linear");
  });
}

}  // namespace loza::cuda
