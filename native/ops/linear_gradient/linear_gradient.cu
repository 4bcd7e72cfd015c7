// dx = dy W and dw += dy^T x: the matrix library, or where it is missing (or cannot: rows at odd places,
// f32 weights) tiles; with f32 activations those of fp32 arithmetic (product.h).
#include "ops/linear_gradient/linear_gradient.h"

#include "cuda/cuda_ops.h"
#include "cuda/product.h"
#include "ops/linear_gradient/stripes.h"

namespace loza::cuda {
namespace {

constexpr const char* kName = "linear gradient";

void run_plain(const LinearInputGradientParams& params, size_t scratch_in_use, CudaStream& stream) {
  const Product product = product_of(params);
  if (!run_library(product, stream, scratch_in_use)) run_tiles(product, stream, kName);
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
  if (params.dw.elements() == 0 || params.dy.dim(0) == 0) return;
  const OuterProduct product = product_of(params);
  if (!run_library(product, stream)) run_tiles(product, stream, kName);
}

void launch_exact(const LinearInputGradientParams& params, CudaStream& stream) {
  if (params.dx.elements() == 0) return;
  if (params.weight.dtype != DType::kF8E4M3) return run_exact(product_of(params), stream, kName);
  for_each_stripe(params, DType::kF32, stream, [&](const LinearInputGradientParams& part, size_t) {
    run_exact(product_of(part), stream, kName);
  });
}

void launch_exact(const LinearWeightGradientParams& params, CudaStream& stream) {
  if (params.dw.elements() == 0 || params.dy.dim(0) == 0) return;
  run_exact(product_of(params), stream, kName);
}

}  // namespace loza::cuda
