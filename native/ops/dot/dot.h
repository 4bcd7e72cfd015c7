#pragma once

#include "core/tensor.h"

namespace loza {

// out = sum over all elements of x * y, added in a fixed order in fp32 and, between blocks, in fp64.
// dot(x, x) is the square of a norm.
struct DotParams {
  Tensor out;  // f32 [1]
  Tensor x;    // f32 | bf16, contiguous
  Tensor y;    // f32 | bf16, contiguous, the shape of x; may be `x`

  void check(DType act) const;
};

}  // namespace loza
