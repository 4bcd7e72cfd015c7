#pragma once

#include "core/tensor.h"

namespace loza {

// The gradients of linear, y = x W^T.

// dx = dy W, or dx += dy W.
// f8e4m3 weights are dequantised (on CUDA to bf16, some columns at a time).
struct LinearInputGradientParams {
  Tensor dx;      // act | f32 [rows, k], rows may be strided
  Tensor dy;      // act [rows, n], rows may be strided
  Tensor weight;  // f32 | bf16 | f8e4m3 [n, k]
  Tensor scale;   // f32 [ceil(n / 128), ceil(k / 128)]; only, and always, with f8e4m3
  bool accumulate = false;

  void check(DType act) const;
};

// dw += dy^T x, in fp32.
struct LinearWeightGradientParams {
  Tensor dw;  // f32 [n, k], rows may be strided
  Tensor dy;  // act [rows, n], rows may be strided
  Tensor x;   // act [rows, k], rows may be strided

  void check(DType act) const;
};

}  // namespace loza
