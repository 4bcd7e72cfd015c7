#include "cuda/product.h"

#include "cuda/matrix_library.h"

namespace loza::cuda {

bool run_library(const Product& product, CudaStream& stream, size_t scratch_in_use) {
  const Tensor &x = product.x, &weight = product.weight, &out = product.out;
  if (weight.dtype != DType::kBF16) return false;
  return stream.matrix_library().matmul({.out = out.data,
                                         .x = x.data,
                                         .weight = weight.data,
                                         .rows = product.rows(),
                                         .n = product.n(),
                                         .k = product.k(),
                                         .out_stride = out.stride(0),
                                         .x_stride = x.stride(0),
                                         .weight_stride = product.weight_stride(),
                                         .out_type = out.dtype,
                                         .weight_is_transposed = product.along_n,
                                         .accumulate = product.accumulate,
                                         .batch = product.heads(),
                                         .out_batch_stride = product.out_head_stride(),
                                         .x_batch_stride = product.x_head_stride(),
                                         .weight_batch_stride = product.weight_head_stride(),
                                         .scratch_in_use = scratch_in_use});
}

// out[n, k] += y^T[n, rows] x[rows, k]: both operands lie transposed.
bool run_library(const OuterProduct& product, CudaStream& stream) {
  const Tensor &out = product.out, &y = product.y, &x = product.x;
  return stream.matrix_library().matmul({.out = out.data,
                                         .x = y.data,
                                         .weight = x.data,
                                         .rows = product.n(),
                                         .n = product.k(),
                                         .k = y.dim(0),
                                         .out_stride = out.stride(0),
                                         .x_stride = y.stride(0),
                                         .weight_stride = x.stride(0),
                                         .out_type = DType::kF32,
                                         .weight_is_transposed = true,
                                         .x_is_transposed = true,
                                         .accumulate = true});
}

}  // namespace loza::cuda
