#pragma once

#include "core/tensor.h"

namespace loza {

// out = scale * weight * x / sqrt(mean(x^2) + eps), row by row; mean in fp32.
// `scale` is LongCat's a_q or a_kv (model-spec section 1.3), 1 elsewhere.
struct RmsNormParams {
  Tensor out;     // act [rows, width], rows may be strided
  Tensor x;       // act | f32 [rows, width], rows may be strided; may be `out`
  Tensor weight;  // f32 | bf16 [width]
  float eps = 0;
  float scale = 1;

  void check(DType act) const;
};

}  // namespace loza
