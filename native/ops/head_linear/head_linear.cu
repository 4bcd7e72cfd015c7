// out[t, h, :] = W[h] x[t, h, :], the weight along k or along n.
// Few rows: the kernel of head_rows.cuh. Many: the matrix library, one batch entry a head. Otherwise,
// and for f32 weights, the tiles of gemm_tile.cuh, grid z = head.
#include "ops/head_linear/head_linear.h"

#include "cuda/cuda_ops.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/matrix_library.h"
#include "ops/head_linear/head_rows.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "head_linear";

bool along_k(const Tensor& weight) { return weight.stride(2) == 1 || weight.dim(2) == 1; }

DenseParams dense_of(const HeadLinearParams& params) {
  const Tensor &x = params.x, &weight = params.weight, &out = params.out;
  const bool k_contiguous = along_k(weight);
  return {.x = x.as<const Bf16>(),
          .weight = weight.data,
          .scale = nullptr,
          .out = out.data,
          .x_stride = x.stride(0),
          .x_head_stride = x.stride(1),
          .weight_stride = weight.stride(k_contiguous ? 1 : 2),
          .weight_head_stride = weight.stride(0) * size_of(weight.dtype),
          .scale_stride = 0,
          .out_stride = out.stride(0),
          .out_head_stride = out.stride(1),
          .rows = x.dim(0),
          .heads = static_cast<int>(weight.dim(0)),
          .n = static_cast<int>(weight.dim(1)),
          .k = static_cast<int>(weight.dim(2)),
          .x_aligned = rows_aligned(x, 16, 2),
          .weight_aligned = rows_aligned(weight, 16, k_contiguous ? 2 : 1),
          .out_aligned = rows_aligned(out, 2 * size_of(out.dtype), 2),
          .out_is_f32 = out.dtype == DType::kF32,
          .accumulate = false};
}

bool run_library(const HeadLinearParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &weight = params.weight, &out = params.out;
  const bool k_contiguous = along_k(weight);
  return stream.matrix_library().matmul({.out = out.data,
                                         .x = x.data,
                                         .weight = weight.data,
                                         .rows = x.dim(0),
                                         .n = weight.dim(1),
                                         .k = weight.dim(2),
                                         .out_stride = out.stride(0),
                                         .x_stride = x.stride(0),
                                         .weight_stride = weight.stride(k_contiguous ? 1 : 2),
                                         .out_type = out.dtype,
                                         .weight_is_transposed = !k_contiguous,
                                         .batch = weight.dim(0),
                                         .out_batch_stride = out.stride(1),
                                         .x_batch_stride = x.stride(1),
                                         .weight_batch_stride = weight.stride(0)});
}

template <bool kAlongK>
void run_tiles(const HeadLinearParams& params, CudaStream& stream) {
  const DenseParams dense = dense_of(params);
  if (params.weight.dtype == DType::kF32)
    launch_dense<ExactTile<kAlongK>>(dense, stream.handle(), kName);
  else
    launch_dense_rows<Bf16, kAlongK>(dense, stream.multiprocessors(), stream.handle(), kName);
}

}  // namespace

void launch(const HeadLinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  if (fits_head_rows(params)) return launch_head_rows(params, nullptr, stream, kName);
  const bool library = params.weight.dtype == DType::kBF16 && params.x.dim(0) > kHeadRowsMost;
  if (library && run_library(params, stream)) return;
  if (along_k(params.weight))
    run_tiles<true>(params, stream);
  else
    run_tiles<false>(params, stream);
}

}  // namespace loza::cuda
