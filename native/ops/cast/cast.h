#pragma once

#include "core/tensor.h"

namespace loza {

// out = in, converted, element by element; both may be strided. f32 to bf16 rounds to nearest even.
// With `scale` the input is f8e4m3 [n, k] and is dequantised: out = in * scale of its 128 x 128 block.
struct CastParams {
  Tensor out;    // f32 | bf16, shape of `in`, rank <= 4
  Tensor in;     // f32 | bf16 | f8e4m3
  Tensor scale;  // f32 [ceil(n / 128), ceil(k / 128)]; may be absent

  void check(DType act) const;
};

}  // namespace loza
