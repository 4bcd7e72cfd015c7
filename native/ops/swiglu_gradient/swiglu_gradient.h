#pragma once

#include "core/tensor.h"

namespace loza {

// The gradients of swiglu, y = silu(gate) * up, with s = 1 / (1 + exp(-gate)):
//   dgate = dy * up * s * (1 + gate * (1 - s)),   dup = dy * gate * s
struct SwigluGradientParams {
  Tensor dgate;  // act [rows, width], rows may be strided, like all of them; may be `gate`
  Tensor dup;    // act [rows, width]; may be `up`
  Tensor dy;     // act [rows, width]
  Tensor gate;   // act [rows, width]
  Tensor up;     // act [rows, width]

  void check(DType act) const;
};

}  // namespace loza
