#pragma once

#include "core/tensor.h"

namespace loza {

// out = a * x + b * y, element by element: sums of gradients, and LoZA's mix of two attentions.
// Each tensor has its own dtype; all have one shape, rank 2 or less.
struct BlendParams {
  Tensor out;  // f32 | bf16, rows may be strided; may be `x` or `y`
  Tensor x;    // f32 | bf16, rows may be strided
  Tensor y;    // f32 | bf16, rows may be strided; may be absent, and is not read when b is 0
  float a = 1;
  float b = 0;

  void check(DType act) const;
};

}  // namespace loza
