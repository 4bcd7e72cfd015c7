// out[t, h, :] = W[h] x[t, h, :], the weight along k or along n.
// Few rows: the kernel of head_rows.cuh. Many: the matrix library, one batch entry a head. Otherwise,
// and for f32 weights, tiles; with f32 activations those of fp32 arithmetic (product.h).
#include "ops/head_linear/head_linear.h"

#include "cuda/cuda_ops.h"
#include "cuda/product.h"
#include "ops/head_linear/head_rows.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "head_linear";

}  // namespace

void launch(const HeadLinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  if (fits_head_rows(params)) return launch_head_rows(params, nullptr, stream, kName);
  const Product product = product_of(params);
  if (product.rows() > kHeadRowsMost && run_library(product, stream)) return;
  run_tiles(product, stream, kName);
}

void launch_exact(const HeadLinearParams& params, CudaStream& stream) {
  if (params.out.elements() > 0) run_exact(product_of(params), stream, kName);
}

}  // namespace loza::cuda
