#pragma once

#include "core/tensor.h"

namespace loza {

// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
struct SwigluParams {
  Tensor out;   // act [rows, width]; may be `gate` or `up`
  Tensor gate;  // act [rows, width]
  Tensor up;    // act [rows, width]

  void check(DType act) const;
};

}  // namespace loza
