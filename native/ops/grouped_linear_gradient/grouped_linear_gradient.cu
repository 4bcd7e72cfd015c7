// dx[i] = dy[i] W[e] and dw[e] += dy^T x, in tiles (product.h).
#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"

#include "cuda/cuda_ops.h"
#include "cuda/product.h"

namespace loza::cuda {
namespace {

constexpr const char* kName = "grouped_linear gradient";

}  // namespace

void launch(const GroupedLinearInputGradientParams& params, CudaStream& stream) {
  if (params.dx.elements() == 0 || params.weight.dim(0) == 0) return;
  run_tiles(product_of(params), stream, kName);
}

void launch(const GroupedLinearWeightGradientParams& params, CudaStream& stream) {
  if (params.dw.elements() == 0 || params.dy.dim(0) == 0) return;
  run_tiles(product_of(params), stream, kName);
}

void launch_exact(const GroupedLinearInputGradientParams& params, CudaStream& stream) {
  if (params.dx.elements() == 0 || params.weight.dim(0) == 0) return;
  run_exact(product_of(params), stream, kName);
}

void launch_exact(const GroupedLinearWeightGradientParams& params, CudaStream& stream) {
  if (params.dw.elements() == 0 || params.dy.dim(0) == 0) return;
  run_exact(product_of(params), stream, kName);
}

}  // namespace loza::cuda
