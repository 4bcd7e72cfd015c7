// f8e4m3 weights on CUDA: dequantised some columns at a time, into scratch memory.
#pragma once

#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/matrix_library.h"

namespace loza::cuda {

// body(part): the gradient of some columns of x, with a plain weight of type `dtype` at the front of
// the stream's scratch memory, which holds `in_use` bytes.
template <class Body>
void for_each_stripe(const LinearInputGradientParams& params, DType dtype, CudaStream& stream,
                     const Body& body) {
  constexpr int64_t kStripeBytes = int64_t{32} << 20;
  const int64_t n = params.weight.dim(0), k = params.weight.dim(1);
  const int64_t fitting = kStripeBytes / (n * size_of(dtype)) / kScaleBlock * kScaleBlock;
  const int64_t columns = std::max(kScaleBlock, fitting);
  const int64_t widest = (std::min(k, columns) + 7) / 8 * 8;  // rows at multiples of 16 bytes
  const auto in_use = static_cast<size_t>(n * widest * size_of(dtype));
  std::byte* scratch = stream.scratch(MatrixLibrary::scratch_bytes(in_use));
  for (int64_t first = 0; first < k; first += columns) {
    const int64_t end = std::min(k, first + columns);
    Tensor plain = params.weight.columns(first, end);
    plain.data = scratch;
    plain.dtype = dtype;
    plain.strides[0] = widest;
    launch(CastParams{.out = plain,
                      .in = params.weight.columns(first, end),
                      .scale = params.scale.columns(first / kScaleBlock,
                                                    (end + kScaleBlock - 1) / kScaleBlock)},
           stream);
    LinearInputGradientParams part = params;
    part.dx = params.dx.columns(first, end);
    part.weight = plain;
    part.scale = {};
    body(part, in_use);
  }
}

}  // namespace loza::cuda
