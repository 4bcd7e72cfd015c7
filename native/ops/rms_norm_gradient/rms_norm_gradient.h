#pragma once

#include "core/tensor.h"

namespace loza {

// The gradients of rms_norm, y = scale * weight * x * r with r = 1 / sqrt(mean(x^2) + eps):
//   g = scale * weight * dy
//   dx (+)= r * (g - x * r^2 * mean(g * x))
//   dweight += sum over rows of scale * dy * x * r
// The rows of dweight are summed in a fixed order: first blocks of them, then the blocks.
struct RmsNormGradientParams {
  Tensor dx;       // act | f32 [rows, width], rows may be strided; may be `dy`
  Tensor dweight;  // f32 [width]; may be absent
  Tensor dy;       // act | f32 [rows, width], rows may be strided
  Tensor x;        // act | f32 [rows, width], rows may be strided
  Tensor weight;   // f32 | bf16 [width]
  float eps = 0;
  float scale = 1;
  bool accumulate = false;  // into dx; dweight always accumulates

  void check(DType act) const;
};

}  // namespace loza
