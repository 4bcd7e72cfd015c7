#pragma once

#include "core/tensor.h"

namespace loza {

// Weights quantised to f8e4m3 carry one fp32 scale a block of 128 x 128: W = W_f8 * scale (one
// multiplies, although checkpoints call it "scale_inv").
inline constexpr int64_t kScaleBlock = 128;

// out = x W^T, or out += x W^T.
// The sum over `in` runs in one fixed order whatever `rows` is: a row's result does not depend on
// the batch around it. On CUDA it does, a little: with many rows other kernels run, and f8e4m3 weights
// then multiply an x that is rounded to f8e4m3 too, one scale a row and 128 columns (quantise.h).
struct LinearParams {
  Tensor out;     // act | f32 [rows, n], rows may be strided
  Tensor x;       // act [rows, k], rows may be strided
  Tensor weight;  // f32 | bf16 | f8e4m3 [n, k]
  Tensor scale;   // f32 [ceil(n / 128), ceil(k / 128)]; only, and always, with f8e4m3
  bool accumulate = false;

  void check(DType act) const;
};

}  // namespace loza
